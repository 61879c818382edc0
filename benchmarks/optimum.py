"""The best policy under a KL budget, estimated on samples of the reference policy.

Among all policies with the same KL from the reference, the largest mean of a score r is reached by
reference(y|x) * exp(lambda r(x, y)) / Z(x), with one lambda = 1 / beta for all prompts (arXiv 2305.18290, equation 4).
Responses of the reference, weighted by exp(lambda r) and normalized per prompt, stand for responses of that policy:
self-normalized importance sampling (Owen, Monte Carlo theory, methods and examples, 2013, section 9.2).

With n responses per prompt, no estimated KL exceeds log n, and a response that was not drawn has no weight. Where the
budget approaches that, the estimate is too low: the true optimum is at least as good. `Point.effective` shows how many
responses carry the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEPS = 400
SMALLEST, LARGEST = 1e-3, 300.0
"""Range of lambda, in units of 1 / standard deviation of the scores."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Point:
    """The optimum at one KL.

    Attributes:
        value: mean value over prompts.
        low, high: 95 % bootstrap interval over prompts (percentiles), each resample with a lambda of its own.
        kl: KL from the reference in nats per response: the budget, or less if `saturated`.
        multiplier: lambda.
        effective: mean effective sample size, 1 / sum of squared weights, per prompt.
        saturated: whether the budget exceeds what any reweighting of these samples spends.
    """

    value: float
    low: float
    high: float
    kl: float
    multiplier: float
    effective: float
    saturated: bool


class Frontier:
    """The optima of all KL budgets for one score."""

    def __init__(self, scores: Array, values: Array) -> None:
        """
        Args:
            scores: r of each response, shape (prompts, samples): what the policy is the best for.
            values: what is reported of each response, such as whether it satisfies a rule, of the same shape.
        """
        spread = float(scores.std()) or 1.0
        self.multipliers = np.concatenate([[0.0], np.geomspace(SMALLEST, LARGEST, STEPS)]) / spread
        columns = [_tilted(scores, values, multiplier) for multiplier in self.multipliers]
        self.kl, self.value, self.effective = (np.stack(each, axis=1) for each in zip(*columns, strict=True))

    def at_kl(self, kl: float, seed: int = 0) -> Point:
        """Return the optimum whose KL is `kl`."""
        means = self.kl.mean(axis=0)
        value, spent, multiplier, effective = (
            float(np.interp(kl, means, each))
            for each in (self.value.mean(axis=0), means, self.multipliers, self.effective.mean(axis=0))
        )
        drawn = np.random.default_rng(seed).integers(len(self.kl), size=(RESAMPLES, len(self.kl)))
        resampled = [np.interp(kl, self.kl[rows].mean(axis=0), self.value[rows].mean(axis=0)) for rows in drawn]
        low, high = np.percentile(resampled, [2.5, 97.5])
        return Point(value, float(low), float(high), spent, multiplier, effective, bool(kl > means[-1]))

    def least_kl(self, value: float) -> float:
        """Return the least KL with which any policy has this mean value. For a frontier whose values are its scores."""
        return float(np.interp(value, self.value.mean(axis=0), self.kl.mean(axis=0)))


def _tilted(scores: Array, values: Array, multiplier: float) -> tuple[Array, Array, Array]:
    """Return KL, mean value and effective sample size of the tilted samples of each prompt, shape (prompts,) each."""
    exponents = multiplier * (scores - scores.max(axis=1, keepdims=True))
    weights = np.exp(exponents)
    weights /= weights.sum(axis=1, keepdims=True)
    relative = weights * scores.shape[1]  # to the reference, which gives each sample 1 / n
    logs = np.log(relative, out=np.zeros_like(relative), where=relative > 0)
    kl = (weights * logs).sum(axis=1)
    return kl, (weights * values).sum(axis=1), 1 / (weights**2).sum(axis=1)
