"""Our side of `vs_trl.py`, which starts this script and requests one run at a time."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from world import (
    BATCH,
    END,
    EPISODES,
    GROUP,
    KL_COEF,
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_RANK,
    NEW_TOKENS,
    ON_POLICY,
    PAD,
    PPO_EPOCHS,
    Meter,
    read_rows,
    rule,
    serve,
    warm_up,
)

from alignment_core.config import LoraConfig
from alignment_core.models.base.loading import load_base
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.stages.reward import BradleyTerry
from alignment_core.stages.sft import SFT
from alignment_core.training.loop import train
from alignment_core.training.rewards import Part, Rewards
from alignment_core.training.rows import Rows, Vocabulary
from alignment_core.training.run import Run
from alignment_plugins.dpo import DPO
from alignment_plugins.grpo import GRPO
from alignment_plugins.kto import KTO
from alignment_plugins.ppo import PPO

STEP: dict[str, Any] = {"learning_rate": LEARNING_RATE, "batch_size": BATCH, "epochs": 1}
LORA = LoraConfig(rank=LORA_RANK, alpha=LORA_ALPHA)


def objective_of(task: str, steps: int) -> Any:
    """Return the training objective, with the same settings as on TRL's side."""
    if task in ON_POLICY:
        sampling: dict[str, Any] = {
            "learning_rate": LEARNING_RATE,
            "rollouts": steps,
            "rollout_size": EPISODES,
            "batch_size": EPISODES,
            "max_new_tokens": NEW_TOKENS,
            "kl_coef": KL_COEF,
            "step_kl": None,
            "kl_ceiling": 1e9,
        }
        if task == "grpo":
            return GRPO(**sampling, epochs=1, samples=GROUP)
        return PPO(**sampling, epochs=PPO_EPOCHS)
    return {"sft": SFT, "reward": BradleyTerry, "dpo": DPO, "kto": KTO}[task.removesuffix("-cached")](**STEP)


def rows_of(folder: Path, task: str, steps: int) -> Rows:
    """Return the rows for `steps` optimizer steps."""
    on_policy = {"ppo": EPISODES, "grpo": EPISODES // GROUP}
    rows = read_rows(folder)[: on_policy.get(task, BATCH) * (1 if task == "ppo" else steps)]

    def sequence(row: dict[str, list[int]], name: str) -> TokenSequence:
        return TokenSequence((*row["prompt"], *row[name], END), len(row["prompt"]))

    prompts = [TokenSequence(tuple(row["prompt"]), len(row["prompt"])) for row in rows]
    feedback = []
    for i, row in enumerate(rows):
        name = "chosen" if i % 2 == 0 else "rejected"
        other = (*row["prompt"], *rows[i - 1]["rejected" if i % 2 == 0 else "chosen"], END)
        pair = {"response": sequence(row, name), "mismatched": TokenSequence(other, len(row["prompt"]))}
        feedback.append(Row(str(i), pair, {"desirable": float(i % 2 == 0), "weight": 1.0}))
    both = [{name: sequence(row, name) for name in ("chosen", "rejected")} for row in rows]
    return Rows(
        demonstrations=[Row(str(i), {"demonstration": pair["chosen"]}) for i, pair in enumerate(both)],
        preferences=[Row(str(i), pair, {"margin": 0.0}) for i, pair in enumerate(both)],
        feedback=feedback,
        prompts=[Row(str(i), {"prompt": prompt}) for i, prompt in enumerate(prompts)],
    )


class Timed:
    """Progress that notifies the meter after each optimizer step."""

    stopping = False

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        if metrics is not None:
            self.meter.step()

    def log(self, message: str) -> None: ...
    def warn(self, message: str) -> None:
        print(message, file=sys.stderr)


def counting(objective: Any, task: str, meter: Meter) -> Any:
    """Return the objective with counters for micro-batches and tokens. As with TRL, every sequence counts in full."""
    kind = type(objective)

    def counted(self: Any, run: Any, micro: Any) -> Any:
        names = ["response"] if task.startswith("kto") else list(micro.rows[0].sequences)
        meter.tokens += sum(len(row.sequences[name].ids) for row in micro.rows for name in names)
        meter.micro_batches += 1
        return kind.loss(self, run, micro)

    return type(kind.__name__, (kind,), {"loss": counted, "__annotations__": {}}).model_validate(objective.model_dump())


def open_run(folder: Path, task: str, dtype: str, micro: int, rows: Rows) -> tuple[Run, Meter]:
    """Return the run and a meter that measures memory from the point where the base model is loaded."""
    model = str(folder / "model")
    roles = Roles(load_base(model, revision=None, load_in=dtype, device=torch.device("cpu")), model)  # type: ignore[arg-type]
    warm_up(roles.model)
    meter = Meter()
    trained = ["policy"]
    roles.add_new("policy", LORA, 0)
    if task == "reward":
        roles.add_new("reward", LORA, 0)
        roles.add_head("reward")
        trained = ["reward"]
    elif task != "sft":
        roles.add_base("reference")
    if task == "ppo":
        roles.add_new("reward", LORA, 1)
        roles.add_head("reward", 0.02 * torch.randn(1, 512))
        roles.add_copy("value", of="reward")
        trained = ["policy", "value"]
    roles.train_only(trained)
    # As on TRL's side, no response ends early: every token counts.
    vocabulary = Vocabulary(AutoTokenizer.from_pretrained(model), PAD, (-1,))
    cached = {}
    if task.endswith("-cached"):
        found = [s for r in (*rows.preferences, *rows.feedback) for s in r.sequences.values()]
        # Values of a uniform model: far from the policy's, the gradient of log-sigmoid is denormal and slow.
        cached = {s.digest(): -math.log(roles.model.config.vocab_size) * (len(s.ids) - s.start) for s in found}
    rewards = Rewards((Part("rule", lambda found: [rule(one.sequence.completion) for one in found]),))
    rewarded_by = {"ppo": Rewards(), "grpo": rewards}.get(task)
    run = Run(roles, rows, vocabulary, Budget(micro), 0, Timed(meter), cached, rewarded_by=rewarded_by)
    return run, meter


def measure(folder: str, task: str, dtype: str, steps: int, micro: int) -> dict[str, Any]:
    run, meter = open_run(Path(folder), task, dtype, micro, rows_of(Path(folder), task, steps))
    objective = counting(objective_of(task, steps), task, meter)
    with tempfile.TemporaryDirectory() as checkpoints:
        meter.start()
        train(objective, run, Path(checkpoints), 1e9)
    return meter.result() | {"loss": run.history[-1]["loss"]}


if __name__ == "__main__":
    serve(measure)
