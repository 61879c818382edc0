"""Read a model token by token in slots: rows of a fixed shape, each of which may start and end at any time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment_core.models.generation.graph import captured
from alignment_core.models.generation.kv_cache import SlotCache, SlotPlaces

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
        self._places = SlotPlaces(torch.arange(rows, device=device), self.positions, 0)
        self._cache = SlotCache(model, self._places, tokens)
        self._replay: Callable[[], Tensor] | None = None

    def put(self, slots: Sequence[int], prompts: Sequence[tuple[int, ...]]) -> None:
        """Read prompts into slots. Equal prompts are read once. The last token of each is read by the next step."""
        distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompt[:-1] for prompt in prompts))}
        width = max(map(len, distinct))
        places, device = torch.tensor(slots, device=self.positions.device), self.positions.device
        if width:
            filler = prompts[0][0]  # some models warn of padding tokens
            rows = [list(prompt) + [filler] * (width - len(prompt)) for prompt in distinct]
            taken = torch.tensor([distinct[prompt[:-1]] for prompt in prompts], device=device)
            self._places.prompts = places, taken if len(rows) < len(prompts) else None
            # Padded on the right, so that no token sees padding, and no mask is needed.
            positions = self.columns[:width].expand(len(rows), width)
            self._read(torch.tensor(rows, device=device), positions, None)
            self._places.prompts = None
        self.ids[places] = torch.tensor([prompt[-1:] for prompt in prompts], device=device)
        self.positions[places] = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        for slot, prompt in zip(slots, prompts, strict=True):
            self.lengths[slot] = len(prompt)

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
            self.lengths[slot] = 0

    def keep(self, slots: Sequence[int]) -> Tensor:
        """Keep only these slots. Returns their indices."""
        index = torch.tensor(slots, device=self.positions.device)
        self._replay = None  # a graph holds the memory of the cache
        self.ids, self.positions = self.ids[index], self.positions[index]
        self.lengths = [self.lengths[slot] for slot in slots]
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
