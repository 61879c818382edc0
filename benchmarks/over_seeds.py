"""Measure intervals over seeds by simulation: how often they contain the truth, and how often a rule stops the best.

    python benchmarks/over_seeds.py [--draws 1000] [--out benchmarks/results/over-seeds.json]

Verdicts are drawn with random effects of seeds and of prompts. `independent` takes all answers as independent,
`prompts` clusters them by prompt only, and `seeds` is Student's interval over the means of the seeds.

The rule is that of `align compare --stop-losers`. Two contenders are equally good on average over seeds; with each seed
their win rates differ by luck. `stopped after one seed` is the share of draws in which one of them is stopped.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from report import circumstances, report
from scipy import stats

from alignment_core.evaluation.over_seeds import mean_over_seeds

PROMPTS = 200
SEEDS = (2, 3, 5)
SPREADS = {"no luck": 0.0, "3 points": 0.08, "10 points": 0.27}
"""Standard deviation of the effect of a seed, by about how many points it moves a win rate of 50 %."""
PROMPT_SPREAD, MEAN = 1.0, 0.3

Table = np.ndarray[Any, np.dtype[np.float64]]


def verdicts(rng: np.random.Generator, seeds: int, seed_spread: float, prompts: Table) -> Table:
    """Return verdicts, shape (seeds, prompts). `prompts` are the effects of the prompts, which contenders share."""
    luck = seed_spread * rng.normal(size=(seeds, 1))
    return (rng.normal(size=(seeds, PROMPTS)) + luck + prompts + MEAN > 0).astype(float)


def independent(table: Table) -> tuple[float, float]:
    half = 1.96 * math.sqrt(table.mean() * (1 - table.mean()) / table.size)
    return table.mean() - half, table.mean() + half


def student(means: Table) -> tuple[float, float]:
    found = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    return found.low, found.high


def ours(table: Table) -> tuple[float, float]:
    found = mean_over_seeds(table.tolist(), (0.0, 1.0))
    return found.low, found.high


METHODS = {
    "independent": independent,
    "prompts": lambda table: student(table.mean(axis=0)),
    "seeds": lambda table: student(table.mean(axis=1)),
    "mean_over_seeds": ours,
}


def coverage(rng: np.random.Generator, seeds: int, spread: float, draws: int) -> dict[str, dict[str, float]]:
    """Return, for each interval, the share of draws in which it contains the truth, and its mean width in points."""
    truth = stats.norm.cdf(MEAN / math.sqrt(1 + spread**2 + PROMPT_SPREAD**2))
    hits, widths = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0.0)
    for _ in range(draws):
        table = verdicts(rng, seeds, spread, PROMPT_SPREAD * rng.normal(size=PROMPTS))
        for name, method in METHODS.items():
            low, high = method(table)
            hits[name] += low <= truth <= high
            widths[name] += 100 * (high - low)
    return {
        name: {"coverage": round(hits[name] / draws, 3), "points wide": round(widths[name] / draws, 1)}
        for name in METHODS
    }


def stopped(rng: np.random.Generator, seeds: int, spread: float, draws: int) -> float:
    """Return the share of draws in which one of two equally good contenders is stopped."""
    count = 0
    for _ in range(draws):
        prompts = PROMPT_SPREAD * rng.normal(size=PROMPTS)
        apart = verdicts(rng, seeds, spread, prompts) - verdicts(rng, seeds, spread, prompts)
        found = mean_over_seeds(apart.tolist(), (-1.0, 1.0))
        count += found.low > 0 or found.high < 0
    return round(count / draws, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {
        "what": f"intervals over seeds of verdicts on {PROMPTS} prompts, by how much luck in training moves a win rate",
        **circumstances("numpy", "scipy"),
        "draws": arguments.draws,
        "coverage": {
            f"{seeds} seeds": {name: coverage(rng, seeds, spread, arguments.draws) for name, spread in SPREADS.items()}
            for seeds in SEEDS
        },
        "one of two equals stopped": {
            f"after {seeds} {'seed' if seeds == 1 else 'seeds'}": {
                name: stopped(rng, seeds, spread, arguments.draws) for name, spread in SPREADS.items()
            }
            for seeds in (1, *SEEDS)
        },
    }
    report(result, arguments.out)


if __name__ == "__main__":
    main()
