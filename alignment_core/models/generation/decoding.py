"""How a model is read token by token: in which batches, with which cache. Tried, not derived from its name."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from alignment_core.models.base.loading import rounding
from alignment_core.models.generation.distinct import distinct
from alignment_core.models.generation.kv_cache import cache_argument, cache_for
from alignment_core.models.generation.slots import Slots
from alignment_core.models.passes.limits import copy_with_limits, named_limits, small_limits
from alignment_core.models.passes.packing import REFUSALS, reraise_lack_of_memory
from alignment_core.models.passes.reach import Reach

STEPS = 5
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How rows are generated.

    Attributes:
        together: rows of unequal length share a batch, padded on the left.
        equal: rows of equal length share a batch. Equal prompts in it are read once.
        cached: what was read is kept in a cache. Otherwise the complete row is read again for every token.
        argument: name of the model's cache argument; None if it has none.
        slots: rows begin and end at different times (`Slots`). Otherwise they begin together.
    """

    together: bool = True
    equal: bool = True
    cached: bool = True
    argument: str | None = None
    slots: bool = False

    def alone(self) -> Decoding:
        """Return the way for a row that nothing else may change: no batch, and no cache."""
        return replace(self, together=False, equal=False, cached=False, slots=False)

    def arguments(self, cache: DynamicCache, mask: Tensor, positions: Tensor) -> dict[str, Any]:
        """Return the arguments of a call, next to its ids."""
        # Rows of equal length have no padding. Recurrent layers take a mask for one of their input: the last token.
        padding = {"attention_mask": mask} if self.together else {}
        places = {"position_ids": positions} if self.together or self.cached else {}  # a whole row has the model's own
        kept: dict[str, Any] = {} if self.argument is None else {"use_cache": False}
        if self.cached:
            kept = {str(self.argument): cache, "use_cache": True}
        return {**padding, **places, **kept}


WAYS = (
    Decoding(slots=True),
    Decoding(),
    Decoding(together=False),
    Decoding(together=False, equal=False),
    Decoding(cached=False),
)


def choose_decoding(model: PreTrainedModel, reach: Reach) -> Decoding:
    """Return the fastest way of generating that gives the logits of reading each row alone, without a cache."""
    trials = [(model, (7, 2))]
    small = small_limits(named_limits(model.config))
    # With all layers, because a cache has an entry for each layer that the configuration names.
    twin = _copy(model, small) if small else None
    if twin is not None:
        end = min((length for limit, length in small.items() if limit >= reach.batched), default=math.inf)
        rows = [row for length in small.values() for row in ((length - 2, 4), (2 * length + 1, 3))]
        trials += [(twin, row) for row in rows if row[0] + STEPS <= end]
    argument = cache_argument(model)
    ways = [replace(way, argument=argument) for way in WAYS if argument or not way.cached]
    found = next((way for way in ways if all(_agrees(*trial, way) for trial in trials)), ways[-1].alone())
    if argument and not (found.cached and found.equal):
        how = "one by one" if found.cached else "without its cache"
        logger.warning("responses of %s are slow: they are generated %s", type(model).__name__, how)
    return found


def _copy(model: PreTrainedModel, small: dict[int, int]) -> PreTrainedModel | None:
    """Return a copy with small limits; None if the model cannot be copied, and so reads longer rows alone (`Reach`)."""
    try:
        return copy_with_limits(model, small, whole=True)
    except REFUSALS as error:
        reraise_lack_of_memory(error)
        return None


def _agrees(model: PreTrainedModel, lengths: Sequence[int], way: Decoding) -> bool:
    pairs = [_pair(length) for length in lengths]
    rows = [row for pair in pairs for row in pair]
    try:
        expected = torch.stack([_read_at_once(model, row) for row in rows])
    except REFUSALS as error:
        reraise_lack_of_memory(error)
        return True  # beyond the last position: no way reads it
    try:
        batches = [rows] if way.together else pairs if way.equal else [[row] for row in rows]
        read = _read_in_slots if way.slots else _decoded
        found = torch.cat([read(model, batch, way) for batch in batches])
    except REFUSALS as error:
        reraise_lack_of_memory(error)
        return False
    return bool((found - expected).abs().max() <= rounding(model) * expected.abs().max())


def _pair(length: int) -> list[Tensor]:
    """Return two rows that continue the same prompt of this length."""
    prompt = [3 + (i * i + 5 * i + length) % 59 for i in range(length)]
    return [torch.tensor(prompt + [3 + (5 * i + other) % 59 for i in range(STEPS)]) for other in (length, length + 2)]


@torch.no_grad()
def _read_at_once(model: PreTrainedModel, row: Tensor) -> Tensor:
    """Return the logits that predict each of the last tokens, shape (STEPS, vocabulary)."""
    logits: Tensor = model(input_ids=row[None, :-1].to(model.device), use_cache=False).logits
    return logits[0, -STEPS:].float()


@torch.no_grad()
def _decoded(model: PreTrainedModel, rows: Sequence[Tensor], way: Decoding) -> Tensor:
    """Return the same logits, read as generation reads them, shape (rows, STEPS, vocabulary)."""
    width = max(len(row) for row in rows)
    device = model.device
    ids = torch.stack([torch.cat([row.new_zeros(width - len(row)), row]) for row in rows]).to(device)
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long().to(device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache, start = cache_for(model, width), 0

    def read(end: int, of: slice | list[int] = slice(None)) -> Tensor:
        given = way.arguments(cache, mask[of, :end], positions[of, start:end])
        logits: Tensor = model(input_ids=ids[of, start:end], **given).logits
        return logits[:, -1]

    first, taken = distinct([tuple(row[:-STEPS].tolist()) for row in rows])
    found = [read(width - STEPS, first)[taken]]
    cache.reorder_cache(torch.tensor(taken, device=device))
    for end in range(width - STEPS + 1, width):
        start = end - 1 if way.cached else 0
        found.append(read(end))
    return torch.stack(found, 1).float()


@torch.no_grad()
def _read_in_slots(model: PreTrainedModel, rows: Sequence[Tensor], way: Decoding) -> Tensor:
    """Return the same logits, read in slots, shape (rows, STEPS, vocabulary)."""
    slots = Slots(model, str(way.argument), len(rows), max(map(len, rows)), fixed=False)
    places, found = range(len(rows)), []
    slots.put(places, [tuple(row[: len(row) - STEPS].tolist()) for row in rows])
    running = torch.ones(len(rows), dtype=torch.long, device=model.device)
    for step in range(STEPS, 0, -1):
        found.append(slots.step())
        slots.add(torch.stack([row[len(row) - step] for row in rows]).to(model.device), running, places)
    return torch.stack(found, 1)
