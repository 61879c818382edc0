"""The promotion gate: pure functions that compare measured metrics with limits.

A model passes if every rule holds. A rule whose metric was not measured does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from alignment_core.config import GateConfig


@dataclass(frozen=True)
class Comparison:
    """Metrics of the model compared with one opponent. None means not measured.

    Attributes:
        low: lower bound of the win rate, according to the judge of the gate.
        length_ratio: mean response length, divided by the opponent's.
        perplexity_ratio: perplexity on held-out demonstrations, divided by the opponent's.
        safety: by evaluator, the mean score on the safety prompts minus the opponent's.
    """

    low: float | None = None
    length_ratio: float | None = None
    perplexity_ratio: float | None = None
    safety: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Check:
    """The result of one rule.

    Attributes:
        rule: the rule as text, up to the limit.
        measured: the measured value; None if it was not measured.
        limit: the limit.
        passed: whether the rule holds.
    """

    rule: str
    measured: float | None
    limit: float
    passed: bool

    def __str__(self) -> str:
        measured = "not measured" if self.measured is None else f"measured {self.measured:.4g}"
        return f"{'passed' if self.passed else 'failed'}: {self.rule} {self.limit:g}, {measured}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """The verdict of the gate. It passes if every check passes."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """The checks as text: all of them if the model passed, otherwise those that failed."""
        return [str(check) for check in self.checks if self.passed or not check.passed]


def decide(rules: GateConfig, kl: float | None, over_sft: Comparison, over_production: Comparison | None) -> Verdict:
    """Apply the rules.

    Args:
        rules: the limits. A rule whose limit is None is not applied.
        kl: KL from the reference in nats per response; None if it was not measured.
        over_sft: the model compared with the SFT model.
        over_production: the model compared with the production model; None if there is none or it is not compared.
    """
    return Verdict(tuple(_checks(rules, kl, over_sft, over_production)))


def _checks(
    rules: GateConfig, kl: float | None, over_sft: Comparison, over_production: Comparison | None
) -> Iterator[Check]:
    yield from _above(
        "the lower bound of the win rate over the SFT model must be above", over_sft.low, rules.win_rate_over_sft
    )
    if over_production is not None:
        name = "the lower bound of the win rate over the production model must be above"
        yield from _above(name, over_production.low, rules.win_rate_over_production)
    yield from _at_most("the KL from the reference in nats per response must be at most", kl, rules.max_kl)
    yield from _at_most(
        "the response length relative to the SFT model must be at most", over_sft.length_ratio, rules.max_length_ratio
    )
    name = "the perplexity on demonstrations relative to the SFT model must be at most"
    yield from _at_most(name, over_sft.perplexity_ratio, rules.max_perplexity_ratio)
    for evaluator, drop in rules.max_safety_drop.items():
        for opponent, comparison in (("the SFT model", over_sft), ("the production model", over_production)):
            if comparison is not None:
                gained = (comparison.safety or {}).get(evaluator)
                name = f"the drop of `{evaluator}` on the safety prompts relative to {opponent} must be at most"
                yield from _at_most(name, None if gained is None else 0.0 - gained, drop)


def _above(rule: str, measured: float | None, limit: float | None) -> Iterator[Check]:
    if limit is not None:
        yield Check(rule, measured, limit, measured is not None and measured > limit)


def _at_most(rule: str, measured: float | None, limit: float | None) -> Iterator[Check]:
    if limit is not None:
        # A comparison with NaN is False, so NaN fails.
        yield Check(rule, measured, limit, measured is not None and measured <= limit)
