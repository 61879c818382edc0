"""The reference of a run, with the log-probabilities that an earlier stage has cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignment_core.models.roles.logps import LanguageModel
from alignment_core.plugin_api import TokenSequence


class CachedReference:
    """The reference: log-probabilities cached by an earlier stage if they exist, else from a live forward pass."""

    def __init__(self, live: LanguageModel, cached: Mapping[str, float]) -> None:
        """`cached` maps `TokenSequence.digest()` to a summed log-probability."""
        self.live, self.cached = live, cached
        self.missed = 0
        self.token_logps, self.hidden = live.token_logps, live.hidden

    def logps(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return the summed log-probability of the target tokens, shape (sequences,), float32, nats."""
        if not self.cached:
            self._count(len(sequences))
            return self.live.logps(sequences)
        digests = [sequence.digest() for sequence in sequences]
        missing = [i for i, digest in enumerate(digests) if digest not in self.cached]
        self._count(len(missing))
        values = [self.cached.get(digest, 0.0) for digest in digests]
        if missing:
            for i, value in zip(missing, self.live.logps([sequences[i] for i in missing]).tolist(), strict=True):
                values[i] = value
        return torch.tensor(values, dtype=torch.float32, device=self.live.roles.device)

    def _count(self, missing: int) -> None:
        ranks = self.live.budget.ranks
        if ranks.apart or ranks.index == 0:  # outside of its part of a step, every rank asks for the same
            self.missed += missing

    def all_missed(self) -> int:
        """Return how many log-probabilities all ranks together had to compute."""
        return sum(self.live.budget.ranks.gather("missed", self.missed))
