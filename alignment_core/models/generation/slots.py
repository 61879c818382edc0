"""Read a model token by token in slots: rows of a fixed shape, each of which may start and end at any time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment_core.models.generation.distinct import distinct
from alignment_core.models.generation.graph import captured
from alignment_core.models.generation.kv_cache import SlotCache, SlotPlaces
from alignment_core.models.passes.batching import call_cost, least_padding

COLUMNS = 128
"""Multiple to which the columns that a captured step sees are rounded up. Each of them is a graph of its own."""


class Slots:
    """The tokens and the cache of responses that are generated together.

    A step has the same operations on tensors of the same shape and place, whatever the slots hold, until a slot grows
    over a multiple of `COLUMNS` or `keep` is called. So a GPU can repeat it as a graph.
    """

    def __init__(self, model: PreTrainedModel, argument: str, rows: int, tokens: int, *, fixed: bool) -> None:
        """
        Args:
            argument: name of the model's cache argument.
            rows: number of slots.
            tokens: longest prompt with its response.
            fixed: keep the shape of the step and repeat it as a graph, if the model allows. Otherwise a step sees just
                the columns in use.

        Raises:
            ValueError: the model keeps more than keys and values.
        """
        self.model, self.argument, self.tokens, self.fixed = model, argument, tokens, fixed
        device = model.device
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.columns = torch.arange(tokens, device=device)
        self.lengths = [0] * rows
        self._prompts: list[tuple[int, ...] | None] = [None] * rows
        self._call_cost = call_cost(model)
        self._places = SlotPlaces(torch.arange(rows, device=device), self.positions, 0)
        self._cache = SlotCache(model, self._places, tokens)
        self._replay: Callable[[], Tensor] | None = None

    def put(self, slots: Sequence[int], prompts: Sequence[tuple[int, ...]]) -> None:
        """Read prompts into slots. The last token of each is read by the next step.

        Equal prompts are read once, and one that another slot still holds is copied from there.
        """
        device = self.positions.device
        first, taken = distinct([prompt[:-1] for prompt in prompts])
        held = {prompt: slot for slot, prompt in enumerate(self._prompts) if prompt is not None}
        source = [held.get(prompts[i][:-1]) for i in first]
        copied = [(place, from_slot) for place, kind in enumerate(taken) if (from_slot := source[kind]) is not None]
        if copied:
            width = max(len(prompts[place]) for place, _ in copied) - 1
            self._cache.copy([slot for _, slot in copied], [slots[place] for place, _ in copied], width)
        self._read_prompts([i for i, slot in zip(first, source, strict=True) if slot is None], slots, prompts)
        places = torch.tensor(slots, device=device)
        self.ids[places] = torch.tensor([prompt[-1:] for prompt in prompts], device=device)
        self.positions[places] = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        for slot, prompt in zip(slots, prompts, strict=True):
            self.lengths[slot], self._prompts[slot] = len(prompt), prompt[:-1]

    def _read_prompts(self, new: Sequence[int], slots: Sequence[int], prompts: Sequence[tuple[int, ...]]) -> None:
        """Read the prompts at these indices into all slots that get an equal one, in passes with little padding."""
        device = self.positions.device
        lengths = [len(prompts[i]) - 1 for i in new]
        everything = max(lengths, default=0) * len(lengths)
        for part in least_padding(lengths, everything, self._call_cost):
            rows = {prompts[new[k]][:-1]: row for row, k in enumerate(part)}
            width = lengths[part[0]]
            if not width:  # a prompt of one token
                continue
            filler = prompts[0][0]  # some models warn of padding tokens
            ids = [[*prompt, *[filler] * (width - len(prompt))] for prompt in rows]
            into = [
                (slot, rows[prompt[:-1]]) for slot, prompt in zip(slots, prompts, strict=True) if prompt[:-1] in rows
            ]
            taken = torch.tensor([row for _, row in into], device=device) if len(rows) < len(into) else None
            self._places.prompts = torch.tensor([slot for slot, _ in into], device=device), taken
            # Padded on the right, so that no token sees padding, and no mask is needed.
            self._read(torch.tensor(ids, device=device), self.columns[:width].expand(len(rows), width), None)
            self._places.prompts = None

    def step(self) -> Tensor:
        """Read the last token of every slot and return the logits of the next one, shape (slots, vocabulary).

        They are valid until the next step.
        """
        seen = max(self.lengths)
        if self.fixed:
            seen = min(self.tokens, -(-seen // COLUMNS) * COLUMNS)
        if seen != self._places.seen:
            self._places.seen, self._replay = seen, None
        if self.fixed and self._replay is None:
            self._replay = captured(self._next, self.positions.device)
            self.fixed = self._replay is not None
        return self._next() if self._replay is None else self._replay()

    def add(self, tokens: Tensor, running: Tensor, slots: Sequence[int]) -> None:
        """Add the next token of the slots that are running.

        Args:
            tokens: a token for every slot.
            running: 1 for every slot that is running, 0 for others.
            slots: the same slots.
        """
        self.ids.copy_(tokens.clamp_min(0).unsqueeze(1))
        self.positions += running
        for slot in slots:
            self.lengths[slot] += 1

    def clear(self, slots: Sequence[int]) -> None:
        """Forget what these slots hold. They read their first column until a prompt is put into them.

        Further columns may be behind all that a step sees: with a window, nothing would be left to attend to, and the
        NaN that results would stay in the cache.
        """
        self.positions[torch.tensor(slots, device=self.positions.device)] = 0
        for slot in slots:
            self.lengths[slot], self._prompts[slot] = 0, None

    def keep(self, slots: Sequence[int]) -> Tensor:
        """Keep only these slots. Returns their indices."""
        index = torch.tensor(slots, device=self.positions.device)
        self._replay = None  # a graph holds the memory of the cache
        self.ids, self.positions = self.ids[index], self.positions[index]
        self.lengths = [self.lengths[slot] for slot in slots]
        self._prompts = [self._prompts[slot] for slot in slots]
        self._places.rows, self._places.positions = torch.arange(len(slots), device=index.device), self.positions
        self._cache.keep(index)
        return index

    def _next(self) -> Tensor:
        seen = self._places.seen
        everything = set(self.lengths) <= {0, seen} and self._cache.windows == {None}
        if everything and not self.fixed:  # attention is faster without a mask
            return self._read(self.ids, self.positions.unsqueeze(1), None)
        masks = {window: self._mask(seen, window) for window in self._cache.windows}
        if len(masks) == 1:
            return self._read(self.ids, self.positions.unsqueeze(1), *masks.values())
        full, windowed = masks.pop(None), masks.popitem()[1]
        named = {"full_attention": full, "sliding_attention": windowed}
        return self._read(self.ids, self.positions.unsqueeze(1), named)

    def _mask(self, seen: int, window: int | None) -> Tensor:
        """Return which columns each slot's last token sees, shape (slots, 1, 1, columns), as attention takes it."""
        columns, positions = self.columns[:seen], self.positions.unsqueeze(1)
        mask = columns <= positions
        if window is not None:
            mask = mask & (columns > positions - window)
        if self.model.config._attn_implementation == "eager":  # adds it to the scores
            mask = torch.zeros_like(mask, dtype=self.model.dtype).masked_fill(~mask, torch.finfo(self.model.dtype).min)
        return mask[:, None, None]

    def _read(self, ids: Tensor, positions: Tensor, mask: Tensor | dict[str, Tensor] | None) -> Tensor:
        cache = {self.argument: self._cache, "use_cache": True}
        output = self.model(input_ids=ids, position_ids=positions, attention_mask=mask, logits_to_keep=1, **cache)
        return output.logits[:, -1].float()  # type: ignore[no-any-return]
