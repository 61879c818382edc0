"""What the vetting of optimizers with their defaults measures in one run, and how its tables are written."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import fmean, stdev
from typing import Any, Self

from alignment_core.execution.build import StageResult
from alignment_core.execution.stage import StageCall


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The effect of one run of an on-policy optimizer.

    Attributes:
        seed: seed of the run.
        prompts: number of held-out prompts that were not used to select the policy.
        before, after: mean score of the SFT model's and of the aligned model's responses to them.
        lower: lower bound of the gain's 95 % interval, by prompt.
        kl: KL from the SFT model in nats per response.
        ceiling: the KL at which training would have stopped.
        length: mean tokens of a response, before and after.
        kept: number of rollouts after which the kept policy was saved.
        warnings: the warnings of the training.
    """

    seed: int
    prompts: int
    before: float
    after: float
    lower: float
    kl: float
    ceiling: float
    length: tuple[float, float]
    kept: int
    warnings: list[str]

    @classmethod
    def of(cls, built: Mapping[str, StageResult], optimizer: Any, seed: int, score: str, /, **more: Any) -> Self:
        """Return the effect of a run from its stages.

        Args:
            score: name of the score in `responses.jsonl`.
            more: fields of the subclass.
        """
        before, after = scores_of(built, optimizer, score)
        gains = [now - then for then, now in zip(before, after, strict=True)]
        history = json_lines(built["optimize"], "metrics.jsonl")
        return cls(
            seed=seed,
            prompts=len(gains),
            before=fmean(before),
            after=fmean(after),
            lower=fmean(gains) - 1.96 * stdev(gains) / math.sqrt(len(gains)),
            kl=built["evaluate"].metrics["kl"],
            ceiling=optimizer.kl_ceiling,
            length=(built["evaluate_sft"].metrics["response_length"], built["evaluate"].metrics["response_length"]),
            kept=round([line["kept_after_rollout"] for line in history if "kept_after_rollout" in line][-1]),
            warnings=built["optimize"].metrics["warnings"],
            **more,
        )

    def cells(self) -> tuple[str, str, str, str]:
        """Return KL, length, kept policy and warnings as a table shows them."""
        return (
            f"{self.kl:.2f} of {self.ceiling:g}",
            f"{self.length[0]:.1f} → {self.length[1]:.1f}",
            f"{self.kept} rollouts",
            "; ".join(self.warnings) or "none",
        )


def scores_of(built: Mapping[str, StageResult], optimizer: Any, score: str) -> tuple[list[float], list[float]]:
    """Return a score of the responses of the SFT model and of the aligned model to prompts that selected no policy."""
    # The first held-out prompts were used to select it.
    before, after = (
        [line[score] for line in json_lines(built[stage], "responses.jsonl")[optimizer.held_out_prompts :]]
        for stage in ("evaluate_sft", "evaluate")
    )
    return before, after


def inline(call: StageCall) -> StageCall:
    return call.model_copy(update={"runtime": call.runtime.model_copy(update={"isolation": "inline"})})


def json_lines(stage: StageResult, file: str) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file in the stage's artifact."""
    return [json.loads(line) for line in (stage.artifact.path / file).read_text(encoding="utf-8").splitlines()]


def environment() -> str:
    """Return date, machine and versions of the measurement."""
    packages = ("torch", "transformers", "peft")
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])
    return f"{datetime.date.today()}; {os.cpu_count()} cores of {platform.machine()}, no GPU; {versions}."


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"
