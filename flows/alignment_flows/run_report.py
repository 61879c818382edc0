"""The page of a whole run in Prefect: where the adapter is, how to use it, what it is made from, what it gained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact

from alignment_core.config import PipelineConfig
from alignment_core.stages.build import Built
from alignment_flows.progress import if_server_answers
from alignment_flows.report import table


def publish_run_report(config: PipelineConfig, built: Mapping[str, Built]) -> None:
    """Put the run's report on its page."""
    with if_server_answers():
        create_markdown_artifact(run_report(config, built), key="run-report", description=f"{config.name}: the adapter")


def run_report(config: PipelineConfig, built: Mapping[str, Built]) -> str:
    """The report of a finished run as markdown.

    Args:
        config: the settings of the run.
        built: its stages by the names of the plan, parents before children.
    """
    parts = [
        f"# {config.name}",
        _headline(built),
        "## The adapter",
        _usage(config, built["optimize"]),
        "## Before and after",
        _gain(built["evaluate_sft"].metrics, built["evaluate"].metrics),
        "## What it is made from",
        _lineage(built),
    ]
    return "\n\n".join(parts) + "\n"


def _headline(built: Mapping[str, Built]) -> str:
    new = [name for name, stage in built.items() if not stage.cached]
    if not new:
        return "**Nothing new**: every stage was in the store already."
    return f"{len(new)} of {len(built)} stages were built in this run: {', '.join(new)}."


def _usage(config: PipelineConfig, policy: Built) -> str:
    place = policy.artifact.uri
    lines = [
        f"`{place}` is a PEFT folder in safetensors, trained on `{config.model.base}`.",
        "```python\n"
        "from pathlib import Path\n\n"
        "from peft import AutoPeftModelForCausalLM\n"
        "from transformers import AutoTokenizer\n\n"
        f'adapter = Path("{place.removeprefix("file://")}")\n'
        "model = AutoPeftModelForCausalLM.from_pretrained(adapter)\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{config.model.base}")\n'
        'tokenizer.chat_template = (adapter / "chat_template.jinja").read_text()\n'
        "```",
    ]
    store = Path(place.removeprefix("file://")).parents[1]
    command = f"align export {policy.artifact.key[:12]} --store {store} --out my-model"
    lines.append(
        "For others, with the tokenizer and the tokens that end an answer:\n\n"
        f"```bash\n{command} --to vllm    # or merged, adapter, ollama, hub\n```"
    )
    return "\n\n".join(lines)


def _gain(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    lines = ["| held-out metric | before | after |", "| --- | --- | --- |"]
    for name, value in after.items():
        if isinstance(value, int | float):
            start = before.get(name)
            was = f"{start:.4g}" if isinstance(start, int | float) else ""
            lines.append(f"| {name} | {was} | {value:.4g} |")
    return "\n".join(lines)


def _lineage(built: Mapping[str, Built]) -> str:
    names = {stage.artifact.key: name for name, stage in built.items()}
    rows = {}
    for name, stage in built.items():
        manifest = stage.artifact.manifest()
        read = ", ".join(names.get(key, key) for key in manifest.parents.values())
        state = "cached" if stage.cached else f"built in {stage.seconds:.0f} s"
        rows[name] = f"`{stage.artifact.key}` {state}" + (f", from {read}" if read else "")
    return table("stage", rows)
