"""Whether a model is better enough, and harmless enough, to be promoted: pure rules on what was measured.

Every rule is a comparison that must hold. What a rule needs and was not measured does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from alignment_core.config import GateConfig


@dataclass(frozen=True)
class Comparison:
    """The model beside one opponent.

    Attributes:
        low: lower end of its win rate's interval, by the judge that the gate asks; None without one.
        length_ratio: mean length of its responses, divided by the opponent's.
        perplexity_ratio: its perplexity on held-out demonstrations, divided by the opponent's.
        safety: mean score of its responses to the safety prompts minus the opponent's, by evaluator.
    """

    low: float | None = None
    length_ratio: float | None = None
    perplexity_ratio: float | None = None
    safety: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Check:
    """One rule, applied.

    Attributes:
        rule: what must hold, in words.
        measured: the number; None if there is none.
        limit: what it is compared with.
        passed: whether it holds.
    """

    rule: str
    measured: float | None
    limit: float
    passed: bool

    def __str__(self) -> str:
        found = "not measured" if self.measured is None else f"{self.measured:.4g}"
        return f"{'passed' if self.passed else 'failed'}: {self.rule} {self.limit:g}: {found}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """What the gate says: passed if every check did."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """Each check in words: of a model that did not pass, those that failed."""
        return [str(check) for check in self.checks if self.passed or not check.passed]


def decide(rules: GateConfig, kl: float | None, over_sft: Comparison, over_production: Comparison | None) -> Verdict:
    """Apply the rules.

    Args:
        rules: the limits; a rule whose limit is null is not applied.
        kl: KL from the reference, nats per response.
        over_sft: the model beside the SFT model.
        over_production: the model beside the promoted one; None where there is none, or it is not compared.
    """
    return Verdict(tuple(_checks(rules, kl, over_sft, over_production)))


def _checks(
    rules: GateConfig, kl: float | None, over_sft: Comparison, over_production: Comparison | None
) -> Iterator[Check]:
    yield from _above("lower bound of the win rate over the SFT model above", over_sft.low, rules.win_rate_over_sft)
    if over_production is not None:
        name = "lower bound of the win rate over the model in production above"
        yield from _above(name, over_production.low, rules.win_rate_over_production)
    yield from _at_most("KL from the reference, nats per response, at most", kl, rules.max_kl)
    yield from _at_most(
        "length of the responses over the SFT model's at most", over_sft.length_ratio, rules.max_length_ratio
    )
    name = "perplexity on demonstrations over the SFT model's at most"
    yield from _at_most(name, over_sft.perplexity_ratio, rules.max_perplexity_ratio)
    for evaluator, drop in rules.max_safety_drop.items():
        for opponent, comparison in (("the SFT model", over_sft), ("the model in production", over_production)):
            if comparison is not None:
                gained = (comparison.safety or {}).get(evaluator)
                name = f"`{evaluator}` on the safety prompts below that of {opponent} by at most"
                yield from _at_most(name, None if gained is None else 0.0 - gained, drop)


def _above(rule: str, measured: float | None, limit: float | None) -> Iterator[Check]:
    if limit is not None:
        yield Check(rule, measured, limit, measured is not None and measured > limit)


def _at_most(rule: str, measured: float | None, limit: float | None) -> Iterator[Check]:
    if limit is not None:
        # NaN is not at most anything.
        yield Check(rule, measured, limit, measured is not None and measured <= limit)
