"""What a sweep found: the win rates of its contenders over seeds, their differences, and who got no more seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alignment_core.evaluation.over_seeds import SeedMean
from alignment_core.outcome.sentences import percent_range
from alignment_core.texts import percent

RULE = (
    "After each seed, a contender got no more seeds if the 95 % interval of its difference to the best one lay wholly "
    "below 0."
)
ALL_SEEDS = "Every contender got every seed, unless it failed."


@dataclass(frozen=True)
class Stopped:
    """A contender that got no more seeds because it lost.

    Attributes:
        model: its name.
        best: the best contender at that time.
        difference: its win rate minus that of the best, over the seeds until then.
    """

    model: str
    best: str
    difference: SeedMean


@dataclass(frozen=True)
class OverSeeds:
    """The contenders of a sweep, by the first judge.

    Attributes:
        seeds: the seeds.
        judge: name of the judge; None if there is none, and then nothing below either.
        rates: the win rate over the SFT model of each contender, by seed.
        means: its mean over the seeds that the contender got, and the prompts.
        best: the contender with the highest mean.
        differences: mean of each other contender minus that of the best, over the seeds and prompts that both have.
        stopped: the contenders that got no more seeds because they lost.
        stops: whether the sweep stops losers.
    """

    seeds: Sequence[int]
    judge: str | None
    rates: Mapping[str, Mapping[int, float]]
    means: Mapping[str, SeedMean]
    best: str | None
    differences: Mapping[str, SeedMean]
    stopped: Sequence[Stopped]
    stops: bool

    @property
    def rule(self) -> str:
        """How many seeds each contender got, as a sentence."""
        return RULE if self.stops else ALL_SEEDS

    @property
    def meaning(self) -> str:
        """What the intervals cover, in a sentence."""
        if len(self.seeds) == 1:
            return (
                "The intervals cover other prompts, not other seeds: one seed says nothing about them. A contender "
                "that is ahead may be so by luck in training."
            )
        return (
            "The 95 % intervals cover other prompts and other seeds. They are from the analysis of variance of seeds × "
            "prompts, and never narrower than Student's over the seeds: with few seeds they are wide."
        )

    @property
    def unsure(self) -> list[str]:
        """The contenders that are not clearly worse than the best."""
        return [model for model, found in self.differences.items() if found.high >= 0]

    def sentences(self) -> list[str]:
        """Return what each contender achieved, one sentence each, and how to read it."""
        stopped = {one.model for one in self.stopped}
        return [*(f"`{model}`: {self._of(model)}." for model in self.means if model not in stopped), *self.remarks()]

    def remarks(self) -> list[str]:
        """Return who was stopped, and what choosing the best does to its win rate, as sentences."""
        found = [
            f"`{one.model}` got no more seeds after {_seeds(one.difference.seeds)}: {interval(one.difference)} points "
            f"against `{one.best}`."
            for one in self.stopped
        ]
        if len(self.means) > 1:
            found.append(
                f"`{self.best}` was chosen by the numbers that it is reported with, so its win rate is likely too "
                "high. Run it with other seeds to confirm it."
            )
        return found

    def _of(self, model: str) -> str:
        mean, difference = self.means[model], self.differences.get(model)
        rate = f"{percent(mean.mean)} ({percent_range(mean.low, mean.high)})"
        shown = f"preferred to sft on {rate} of {mean.prompts} prompts with {_seeds(mean.seeds)}"
        return shown if difference is None else f"{shown}; {interval(difference)} points against `{self.best}`"

    def to_json(self) -> dict[str, Any]:
        """Return everything, with the rule and the meaning of the intervals."""
        return {**asdict(self), "rule": self.rule, "meaning": self.meaning}


def _seeds(count: int) -> str:
    return f"{count} {'seed' if count == 1 else 'seeds'}"


def interval(difference: SeedMean) -> str:
    """Return a difference of win rates in points, with its interval, such as `-3 (-7 to 1)`."""
    return " ".join((f"{100 * difference.mean:+.0f}", f"({100 * difference.low:+.0f} to {100 * difference.high:+.0f})"))
