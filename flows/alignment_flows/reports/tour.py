"""The answers of a model to held-out questions before and after training, and how many of them follow a rule."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.execution.build import StageResult
from alignment_core.texts import percent

RESPONSES = "responses.jsonl"


@dataclass(frozen=True)
class Answer:
    """One question with both answers, and whether each follows the rule (None: there is no rule)."""

    question: str
    before: str
    after: str
    before_follows: bool | None
    after_follows: bool | None


@dataclass(frozen=True)
class Share:
    """How many answers follow the rule.

    Attributes:
        count, of: number of answers that follow it, and of all.
        low, high: exact 95 % interval of the share (Clopper and Pearson, Biometrika 26, 1934).
    """

    count: int
    of: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.count} of {self.of} ({100 * self.low:.0f} to {percent(self.high)})"


def share(count: int, of: int) -> Share:
    """Return a count with its exact interval."""
    from scipy.stats import binomtest

    interval = binomtest(count, of).proportion_ci(0.95, method="exact")
    return Share(count, of, float(interval.low), float(interval.high))


def answers(stages: Mapping[str, StageResult], rule: str | None) -> list[Answer]:
    """Return the answers to the held-out questions of a finished run.

    Args:
        stages: the results of the run by name.
        rule: name of the evaluator that says whether an answer follows the rule, or None.
    """
    before, after = (_lines(stages[name].artifact.path) for name in ("evaluate_sft", "evaluate"))
    return [
        Answer(
            old["prompt"][-1]["content"],
            old["response"],
            new["response"],
            None if rule is None else bool(old[rule]),
            None if rule is None else bool(new[rule]),
        )
        for old, new in zip(before, after, strict=True)
    ]


def shares(found: list[Answer]) -> tuple[Share, Share]:
    """Return how many answers follow the rule, before and after."""
    before, after = sum(bool(one.before_follows) for one in found), sum(bool(one.after_follows) for one in found)
    return share(before, len(found)), share(after, len(found))


def _lines(folder: Path) -> list[dict[str, Any]]:
    with (folder / RESPONSES).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
