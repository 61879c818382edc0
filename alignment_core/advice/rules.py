"""The rules that hold for every optimizer. They read only metrics that the stages of Alignment Flows define.

A rule whose metrics were not measured finds nothing. Every threshold is named here, and docs/reference/advice.md says
where it is from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alignment_core.config import StepSettings
from alignment_core.config.learning_rates import LARGEST_RATE, distance, suitable_rate
from alignment_core.data.ingestion.counts import counted
from alignment_core.texts import percent

Metrics = Mapping[str, Mapping[str, Any]]
"""The metrics of the stages by their names in the plan."""
Found = Iterator[tuple[str, str, str]]
"""Findings of a rule: what was measured, what it means, what to do."""

NORMAL_95 = 1.96
MANY_NATS = 25.0
"""KL per response, in nats. Half of the ceiling at which on-policy optimizers stop."""
FEW_NATS = 0.1
"""KL per response, in nats. Below it, SmolLM2 followed a rule no more often than before."""
LONGER, SHORTER = 1.25, 0.8
"""Length of the responses relative to the opponent's."""
GAP = 0.1
"""Share of pairs by which training accuracy may exceed held-out accuracy."""
NATS_WORSE = 0.3
"""Nats per token by which the held-out loss may exceed the training loss."""
FEW_STEPS = 20
"""On SmolLM2, 8 steps were too few for one of three seeds, and 20 steps, on more data, enough."""
HARDLY_FAR = 0.001
"""Sum of the learning rates of all steps, with which SmolLM2 followed a rule about as often as before."""
FEW_PROMPTS = 50
"""With 50 prompts, the 95 % interval of a win rate near 50 % is about 14 points wide on each side."""
LARGE_SHARE = 0.5
BARELY = 0.55
"""Share of pairs of responses that the reward model orders as an evaluator does. 0.5 is chance."""


@dataclass(frozen=True)
class Policy:
    """What the rules know of the optimizer.

    Attributes:
        settings: its settings.
        closer: a sentence on how to hold the policy closer to where it started.
    """

    settings: StepSettings
    closer: str


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: its name.
        source: the paper or the measurement that it is from.
        find: returns its findings.
    """

    name: str
    source: str
    find: Callable[[Metrics, Policy], Found]


def of(metrics: Metrics, stage: str, *names: str) -> Any:
    """Return a metric of a stage, or None if it was not measured."""
    found: Any = metrics.get(stage, {})
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _worse_than_start(metrics: Metrics, policy: Policy) -> Found:
    kl = of(metrics, "evaluate", "kl")
    closer = "" if kl is not None and kl < FEW_NATS else f"{policy.closer}, and "  # it is as close as can be
    for judge, rate in (of(metrics, "over_sft", "win_rate") or {}).items():
        if rate["high"] < 0.5:
            yield (
                f"{_named(judge)} prefers the model that training started from: the win rate is at most "
                f"{percent(rate['high'])}",
                "training has made the answers worse",
                f"{closer}look at the answers side by side in the report",
            )


def _kl_runs_away(metrics: Metrics, policy: Policy) -> Found:
    if (kl := of(metrics, "evaluate", "kl")) is not None and kl > MANY_NATS:
        yield (
            f"the KL from the start is {kl:.0f} nats per response",
            "this far away, the reward keeps rising while the answers get worse, and the model forgets what it knew",
            policy.closer,
        )


def _hardly_moved(metrics: Metrics, policy: Policy) -> Found:
    if (kl := of(metrics, "evaluate", "kl")) is not None and kl < FEW_NATS:
        yield (
            f"the KL from the start is only {max(kl, 0.0):.2g} nats per response",
            "the model answers much as before",
            "raise `optimizer.learning_rate`, up to ten times, or `optimizer.epochs`",
        )


def _length_drifts(metrics: Metrics, policy: Policy) -> Found:
    ratio = of(metrics, "over_sft", "length_ratio")
    if ratio is not None and not SHORTER <= ratio <= LONGER:
        more = ratio > 1
        yield (
            f"answers are {percent(abs(ratio - 1))} {'longer' if more else 'shorter'} than at the start",
            f"often all that was learned is that raters or rewards like {'long' if more else 'short'} answers",
            "compare the lengths of the preferred answers in the data report, set `gate.max_length_ratio`, and judge "
            f"with an evaluator that does not count words; {policy.closer}",
        )


def _reward_at_chance(metrics: Metrics, policy: Policy) -> Found:
    accuracy, pairs = of(metrics, "reward", "held_out_accuracy"), _held_out(metrics, "preferences")
    if accuracy is not None and accuracy - _noise(0.5, pairs) <= 0.5:
        yield (
            f"the reward model orders {percent(accuracy)} of {pairs or 'the'} held-out pairs as people did, maybe by "
            "luck",
            "an optimizer that maximizes this reward learns noise",
            "add pairs, raise `reward.epochs`, see how often raters agree (`align feedback show`), or set rules in "
            "`reward.by`",
        )


def _worse_on_held_out(metrics: Metrics, policy: Policy) -> Found:
    trained, held_out = of(metrics, "reward", "accuracy"), of(metrics, "reward", "held_out_accuracy")
    pairs = _held_out(metrics, "preferences")
    if None not in (trained, held_out) and trained - held_out > max(GAP, _noise(held_out, pairs)):
        yield (
            f"the reward model orders {percent(trained)} of the training pairs as people did, but {percent(held_out)} "
            "of the held-out pairs",
            "it has memorized the pairs, and its scores of new answers are worth less than they seem",
            "lower `reward.epochs` or `reward.learning_rate`, or add pairs on other prompts",
        )
    loss, new = of(metrics, "sft", "loss"), of(metrics, "sft", "held_out_loss")
    if None not in (loss, new) and new - loss > NATS_WORSE:
        yield (
            f"the SFT loss is {loss:.2f} nats per token in training, but {new:.2f} on held-out demonstrations",
            "the SFT model has memorized the demonstrations",
            "lower `sft.epochs` or `sft.learning_rate`, or add demonstrations",
        )


def _few_steps(metrics: Metrics, policy: Policy) -> Found:
    steps = of(metrics, "optimize", "steps")
    if steps is not None and steps < FEW_STEPS:
        made = "made" if "loss" in metrics["optimize"] else "makes"
        rate = suitable_rate(policy.settings, steps)
        larger = f". With a small model, also set `optimizer.learning_rate` to about {rate:g}"
        yield (
            f"the optimizer {made} only {counted(int(steps), 'step')}",
            "warmup and decay of the learning rate take up most of the training, so little is learned",
            "add data, raise `optimizer.epochs`, or lower `optimizer.batch_size`"
            + (larger if _hardly_far(policy, steps) else ""),
        )


def _small_steps(metrics: Metrics, policy: Policy) -> Found:
    steps = of(metrics, "optimize", "steps")
    if steps is not None and steps >= FEW_STEPS and _hardly_far(policy, steps):
        peak, rate = policy.settings.learning_rate, suitable_rate(policy.settings, steps)
        yield (
            f"{counted(int(steps), 'step')} with learning rates up to {peak:g} move no weight by more than about "
            f"{distance(policy.settings, steps):.1g}",
            f"a small model answered as before after {HARDLY_FAR:g}",
            f"set `optimizer.learning_rate` to about {rate:g} (less for a large model), or make more steps",
        )


def _hardly_far(policy: Policy, steps: float) -> bool:
    return distance(policy.settings, steps) < HARDLY_FAR and policy.settings.learning_rate < LARGEST_RATE


def _few_prompts(metrics: Metrics, policy: Policy) -> Found:
    prompts, there = of(metrics, "evaluate", "prompts"), _held_out(metrics, "prompts")
    rates = of(metrics, "over_sft", "win_rate")
    decided = any(rate["low"] > 0.5 or rate["high"] < 0.5 for rate in (rates or {}).values())
    unjudged = rates is not None and not rates
    if prompts is not None and prompts < FEW_PROMPTS and not (decided or unjudged):
        limit = there is not None and there > prompts
        yield (
            f"the model is evaluated on {prompts:.0f} held-out prompts",
            f"its win rate is known only to about ±{100 * _noise(0.5, prompts):.0f} points, too wide to see most gains",
            "raise `evaluation.max_prompts`" if limit else "add data, or raise `data.held_out_fraction`",
        )


def _one_rater(metrics: Metrics, policy: Policy) -> Found:
    raters = of(metrics, "ingest", "raters") or {}
    if raters.get("count", 0) > 1 and raters["largest"] > LARGE_SHARE:
        yield (
            f"one of {raters['count']:.0f} raters gave {percent(raters['largest'])} of the judgments that name a rater",
            "the model learns this person's taste",
            "ask others to rate, or lower `data.sources[].weight` of the source with these judgments",
        )


def _judges_disagree(metrics: Metrics, policy: Policy) -> Found:
    rates = of(metrics, "over_sft", "win_rate") or {}
    if (reward := rates.get("reward")) is not None and reward["low"] > 0.5:
        for judge, rate in rates.items():
            if judge != "reward" and rate["rate"] < 0.5:
                yield (
                    f"the reward model prefers the new answers ({percent(reward['rate'])}), and `{judge}` the old ones "
                    f"({percent(1 - rate['rate'])})",
                    "the policy has learned what the reward model likes rather than what is good",
                    f"let `{judge}` decide (`gate.judge`), and train the reward model on more pairs; {policy.closer}",
                )
    for name, share in metrics.get("evaluate", {}).items():
        if name.startswith(ORDERS) and share is not None and share < BARELY:
            yield (
                f"the reward model orders two answers as `{name.removeprefix(ORDERS)}` does in {percent(share)} of "
                "cases",
                "one of the two does not measure what you want",
                "read the answers that they rank differently, and reward with the better one (`reward.by`)",
            )


ORDERS = "reward_orders_as_"


def _named(judge: str) -> str:
    return "the reward model" if judge == "reward" else f"`{judge}`"


def _held_out(metrics: Metrics, kind: str) -> int | None:
    """Return the number of held-out rows of a kind, those of a ranking included."""
    counts = [of(metrics, stage, "rows", "held_out", kind) for stage in ("ingest", "rank")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _noise(share: float, count: float | None) -> float:
    """Return the half-width of the 95 % interval of a share of `count` cases, by the normal approximation."""
    return NORMAL_95 * math.sqrt(share * (1 - share) / count) if count else 0.0


OVEROPTIMIZED = "Gao et al., arXiv 2210.10760: the true reward rises, then falls, as the KL grows"
MEASURED = "measured on SmolLM2: docs/decisions/defaults-on-smollm2.md"
BINOMIAL = "95 % interval of a binomial share"

RULES = (
    Rule("worse-than-start", "the interval of the win rate (Clopper and Pearson 1934)", _worse_than_start),
    Rule("kl-runs-away", f"{OVEROPTIMIZED}; half of the on-policy `kl_ceiling`", _kl_runs_away),
    Rule("hardly-moved", MEASURED, _hardly_moved),
    Rule(
        "length-drifts", "Singhal et al., arXiv 2310.03716: length explains most of the gain in reward", _length_drifts
    ),
    Rule("judges-disagree", OVEROPTIMIZED, _judges_disagree),
    Rule("reward-at-chance", BINOMIAL, _reward_at_chance),
    Rule("worse-on-held-out", f"{BINOMIAL}; the thresholds are our choice", _worse_on_held_out),
    Rule("few-steps", MEASURED, _few_steps),
    Rule("small-steps", MEASURED, _small_steps),
    Rule("few-held-out-prompts", BINOMIAL, _few_prompts),
    Rule("one-rater", "Geva et al., arXiv 1908.07898: models learn the annotator", _one_rater),
)
