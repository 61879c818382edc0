"""A nightly policy for a support assistant, as part of a flow of your own.

The flow collects yesterday's conversations, trains a policy on them with `align`, and reports the result. It shows how
the pipeline fits into Prefect:

- `align` is an ordinary flow. Called inside another flow it is a subflow with one task per stage, and the stages whose
  settings and data have not changed are found in the artifact store;
- tasks before and after it have retries and tags of their own;
- the variable `assistant_base_model` says which model to start from, so that an operator can change it in the browser;
- the flow sends an event of its own, and runs again when somebody rolls a model back.

Set the variable, then serve the flow. It runs every night at three and after every rollback:

    prefect variable set assistant_base_model Qwen/Qwen2.5-0.5B-Instruct
    python nightly_assistant.py
"""

import json
from pathlib import Path
from typing import Any

from prefect import flow, tags, task
from prefect.artifacts import create_table_artifact
from prefect.events import DeploymentEventTrigger, emit_event
from prefect.variables import Variable

import alignment_flows as af
from alignment_flows import align

ROLLED_BACK = DeploymentEventTrigger(
    name="assistant: train after a rollback",
    expect={"alignment.model.rolled-back"},
    match={"alignment.alias": "production"},
)
SETTINGS: dict[str, Any] = {
    "name": "assistant",
    "sft": None,
    "optimizer": {"name": "kto", "learning_rate": 1e-4},
    "data": {"held_out_fraction": 0.2},
    "evaluation": {"max_prompts": 64},
}


@task(retries=3, retry_delay_seconds=60)
def collect(folder: Path) -> Path:
    """Write the rated answers to a file. Yours would ask a database or an API, which is why it is tried again."""
    folder.mkdir(parents=True, exist_ok=True)
    topics = ("an invoice", "a refund", "the price", "my account", "a delivery", "the app", "a password", "an order")
    rows = [
        {
            "prompt": f"Question {number}: what about {topic}?",
            "completion": answer,
            "label": answer.startswith("Gladly"),
        }
        for number in range(3)
        for topic in topics
        for answer in (f"Gladly: let us look at {topic} together.", "No idea.")
    ]
    file = folder / "rated.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@task
def report(stages: dict[str, af.StageResult]) -> float:
    """Publish what the stages took, and return the KL from the reference."""
    rows = [
        {"stage": name, "cached": stage.cached, "seconds": round(stage.seconds, 1)} for name, stage in stages.items()
    ]
    create_table_artifact(rows, key="assistant-stages", description="The stages of tonight's run")
    return float(stages["evaluate"].metrics["kl"])


@flow(log_prints=True)
def nightly_assistant(folder: Path = Path("assistant"), changes: dict[str, Any] | None = None) -> str:
    """Train the assistant's policy on the newest ratings and return the folder of its adapter.

    Args:
        folder: Folder for the ratings and the artifact store.
        changes: Settings to change, such as `{"optimizer.beta": 0.2}`.
    """
    with tags("assistant", "nightly"):
        ratings = collect(folder.absolute())
        base = Variable.get("assistant_base_model", default="Qwen/Qwen2.5-0.5B-Instruct")
        settings = af.load_settings(
            {**SETTINGS, "model": {"base": base}, "store": str(folder.absolute() / "store")},
            {"data.sources": [{"path": str(ratings)}], **(changes or {})},
        )
        stages = align(settings)
        kl = report(stages)
    adapter = stages["optimize"].artifact
    print(f"The adapter is in {adapter.uri}. KL from the reference: {kl:.3f}")
    emit_event(
        "assistant.policy.trained",
        resource={"prefect.resource.id": f"assistant.policy.{adapter.key}"},
        payload={"folder": adapter.uri, "kl": kl, "new": not stages["optimize"].cached},
    )
    return adapter.uri


if __name__ == "__main__":
    nightly_assistant.serve(name="nightly", cron="0 3 * * *", triggers=[ROLLED_BACK])
