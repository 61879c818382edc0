"""Up to which length sequences may share a forward pass, found by trial at every limit that the configuration names.

Positions may depend on the longest sequence of a row (longrope, dynamic scaling), and a window may be known only to a
mask that packed attention does not use. Such a model packs, and reads batches, only as far as they change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment_core.errors import ModelError
from alignment_core.models.base.parts import rounding, transformer_body
from alignment_core.models.passes.limits import NEAR, copy_with_limits, named_limits, small_limits
from alignment_core.models.passes.packing import (
    LEAST_SHARED,
    REFUSALS,
    Arrangement,
    packed,
    padded,
    reraise_lack_of_memory,
    run_body,
    use_arrangement,
)
from alignment_core.plugin_api import TokenSequence

Body = Callable[..., Any]
READ = 3
"""Last tokens of each sequence whose states are read in a trial."""
REAL = 1024
"""Largest limit that is tried as it is if a copy with small limits does not run."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Longest sequences, in tokens, that a layout does not change.

    Attributes:
        packed: longer ones are not packed into a row with others.
        batched: longer ones are read alone, because their neighbors in a padded batch would change them.
        readable: longer ones are refused, because even rows that were read before would change them.
        skips: whether the last layer may skip tokens that nothing reads.
    """

    packed: float = math.inf
    batched: float = math.inf
    readable: float = math.inf
    skips: bool = True

    def check(self, longest: int) -> None:
        """Check that a sequence of this length can be read.

        Raises:
            ModelError: its states would depend on the rows that were read before.
        """
        if longest > self.readable:
            raise ModelError(
                "the positions of this model depend on the rows that it read before, if they are this long",
                where="model.base",
                got=f"{longest} tokens",
                expected=f"at most {self.readable}",
                do="Lower `model.max_length` and `max_new_tokens`",
            )

    def describe(self) -> str | None:
        """Return a sentence about what is not packed and why; None if nothing is restricted."""
        if self.packed == self.batched == self.readable == math.inf:
            return None
        parts = []
        if self.packed < self.batched:
            parts.append(f"longer than {self.packed} tokens run in padded batches, because packing would change them")
        if self.batched < self.readable:
            parts.append(
                f"longer than {self.batched} tokens run alone, because others in a batch would change them, and "
                "responses that may become so long are read anew for every token"
            )
        if self.readable < math.inf:
            parts.append(f"longer than {self.readable} tokens are refused: the rows read before would change them")
        return "sequences " + ", and ".join(parts)


EVERY_LENGTH = Reach()
_found: dict[tuple[str, str, float, bool], Reach] = {}


def find_reach(model: PreTrainedModel, packs: bool) -> Reach:
    """Return how far sequences may share a pass. Tried once per architecture and process.

    Args:
        packs: whether the model packs short sequences (`enable_packing`).
    """
    if model.device.type == "meta" or not (limits := named_limits(model.config)):
        return Reach()  # the dry run gets the real model's result
    key = (type(model).__name__, model.config.to_json_string(use_diff=False), rounding(model), packs)
    if key not in _found:
        _found[key] = _search(model, limits, packs)
    return _found[key]


def _search(model: PreTrainedModel, limits: Sequence[int], packs: bool) -> Reach:
    near = {limit: limit for limit in limits if limit <= REAL}
    attempts = [(small_limits(limits), False), (small_limits(limits), True), *([(near, True)] if near else [])]
    for small, whole in attempts:
        try:
            twin = copy_with_limits(model, small, whole=whole)
            _Trial(twin, packs).alone([_sequence(NEAR // 4, 1)])
        except REFUSALS as error:
            reraise_lack_of_memory(error)
            continue
        return _over_limits(_Trial(twin, packs), small)
    return Reach(limits[0], limits[0])


def _over_limits(trial: _Trial, small: dict[int, int]) -> Reach:
    reach, tried = Reach(), 0
    lengths_of_next = [*list(small.values())[1:], math.inf]
    for (limit, length), following in zip(small.items(), lengths_of_next, strict=True):
        far = int(min(4 * length, following))
        beyond = (5, length + 1, (length + far) // 2, far)
        for lengths, bound in (((5, length - 1, length), tried), (beyond, limit)):
            if reach.readable < math.inf:
                return reach
            try:
                reach = trial.narrowed(reach, _family(lengths), bound)
            except REFUSALS as error:  # past the last position
                reraise_lack_of_memory(error)
                return replace(reach, packed=min(reach.packed, bound), batched=min(reach.batched, bound))
        tried = limit
    return reach


class _Trial:
    def __init__(self, twin: PreTrainedModel, packs: bool) -> None:
        self.twin, self.body, self.packs = twin, transformer_body(twin), packs
        self.tolerance = rounding(twin)

    def narrowed(self, reach: Reach, sequences: list[TokenSequence], bound: int) -> Reach:
        """Return `reach`, with `bound` in place of what these sequences show to be wrong."""
        alone = self.alone(sequences)
        if not self._same(self.alone(sequences), alone):
            return replace(reach, packed=min(bound, reach.packed), batched=min(bound, reach.batched), readable=bound)
        if reach.skips and not self._same(self.alone(sequences, read=True), alone):
            reach = replace(reach, skips=False)
        if reach.batched == math.inf and not self._same(self._states(padded(sequences, 0)), alone):
            reach = replace(reach, batched=bound)
        if self.packs and reach.packed == math.inf and not self._same(self._states(packed(sequences)), alone):
            reach = replace(reach, packed=bound)
        return reach

    def alone(self, sequences: list[TokenSequence], *, read: bool = False) -> list[Tensor]:
        return [states for one in sequences for states in self._states(padded([one], 0), read=read)]

    @torch.no_grad()
    def _states(self, arrangement: Arrangement, *, read: bool = False) -> list[Tensor]:
        """Return the last hidden states of the last tokens of each sequence."""
        last = [place[-READ:] for place in arrangement.places]
        seen = arrangement.read_at(torch.cat(last)) if read else arrangement
        with use_arrangement(seen):
            states = run_body(self.body, seen, self.twin.device)
        return [states[place.to(states.device)].float() for place in last]

    def _same(self, found: list[Tensor], expected: list[Tensor]) -> bool:
        pairs = zip(found, expected, strict=True)
        return all(float((one - other).norm()) <= self.tolerance * float(other.norm()) for one, other in pairs)


def _family(lengths: tuple[int, ...]) -> list[TokenSequence]:
    """Return sequences of about these lengths. All but the first share their prompt and surround it."""
    short, *others = lengths
    first, *rest = (_sequence(max(length, LEAST_SHARED + 2), LEAST_SHARED) for length in others)
    return [first, _sequence(short, 1), *rest]


def _sequence(length: int, start: int) -> TokenSequence:
    """Return a sequence of varied small token ids; equal lengths at the start give equal prompts."""
    return TokenSequence(tuple(3 + (i * i + 3 * i + (i >= LEAST_SHARED) * length) % 59 for i in range(length)), start)
