"""Pack sequences of any length into one row without padding, and compute a shared prompt only once.

The linear layers see one long row of real tokens. Attention (`packed_attention`) splits the row again: each piece
attends to itself and, if it continues a shared prompt, to that prompt. Positions restart with every sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment_core.errors import ran_out_of_memory
from alignment_core.models.passes.layout import Layout, Piece
from alignment_core.plugin_api import TokenSequence

LEAST_SHARED = 16
"""Length in tokens from which a prompt is shared. Below, one more attention call costs as much as sharing saves."""
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError)
"""Errors that an architecture may raise if it does not accept our inputs."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Sequences laid out for one forward pass.

    Attributes:
        ids: token ids, shape (rows, length).
        places: for each sequence, the indices of its tokens in the flattened (rows · length) row.
        attention_mask: 1 at real tokens, same shape; None if there is no padding.
        positions: position ids, same shape; None if the model computes them itself.
        layout: how attention splits the row; None in a padded batch.
        read: the flattened indices whose last hidden states are read, ascending; None for all.
    """

    ids: Tensor
    places: list[Tensor]
    attention_mask: Tensor | None = None
    positions: Tensor | None = None
    layout: Layout | None = None
    read: Tensor | None = None

    def read_at(self, places: Tensor) -> Arrangement:
        """Return a copy of which only these last hidden states are read. `places` may contain duplicates."""
        return replace(self, read=torch.unique(places))


_arrangement: ContextVar[Arrangement | None] = ContextVar("arrangement", default=None)


@contextmanager
def use_arrangement(arrangement: Arrangement | None) -> Iterator[None]:
    """Make the model's layers follow this arrangement inside the context. None leaves them to transformers."""
    token = _arrangement.set(arrangement)
    try:
        yield
    finally:
        _arrangement.reset(token)


def current_arrangement() -> Arrangement | None:
    """Return the active arrangement, which a layer that is recomputed in backward must see again."""
    return _arrangement.get()


def padded(sequences: Sequence[TokenSequence], pad_id: int) -> Arrangement:
    """Return a right-padded batch with one sequence per row."""
    width = max(len(s.ids) for s in sequences)
    ids = torch.full((len(sequences), width), pad_id)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[i, : len(sequence.ids)] = 1
    places = [torch.arange(len(s.ids)) + i * width for i, s in enumerate(sequences)]
    return Arrangement(ids, places, mask)


def packed(sequences: Sequence[TokenSequence]) -> Arrangement:
    """Return one row of all sequences, with each shared prompt once."""
    ids: list[int] = []
    positions: list[Tensor] = []
    pieces: list[Piece] = []
    places: list[Tensor] = [torch.empty(0)] * len(sequences)

    def add(tokens: Sequence[int], position: int, prompt: tuple[int, int] = (0, 0)) -> Tensor:
        start = len(ids)
        ids.extend(tokens)
        positions.append(torch.arange(position, position + len(tokens)))
        if tokens:
            pieces.append(Piece(start, len(ids), prompt))
        return torch.arange(start, len(ids))

    for family in shared_prompt_groups(sequences):
        if len(family) == 1:
            places[family[0]] = add(sequences[family[0]].ids, 0)
            continue
        prompt = sequences[family[0]].prompt
        shared = add(prompt, 0)
        at = (len(ids) - len(prompt), len(ids))
        for i in family:
            places[i] = torch.cat([shared, add(sequences[i].completion, len(prompt), at)])
    return Arrangement(
        torch.tensor([ids]), places, positions=torch.cat(positions).unsqueeze(0), layout=Layout(tuple(pieces))
    )


def shared_prompt_groups(sequences: Sequence[TokenSequence]) -> list[list[int]]:
    """Return groups of indices. Sequences share a group if they have the same prompt and sharing it pays off."""
    found: dict[object, list[int]] = {}
    for i, sequence in enumerate(sequences):
        found.setdefault(sequence.prompt if sequence.start >= LEAST_SHARED else i, []).append(i)
    return list(found.values())


def pack_by_budget(
    items: Sequence[T], budget: int, sequences_of: Callable[[T], Sequence[TokenSequence]]
) -> list[list[int]]:
    """Split items into rows of at most `budget` tokens, with items that share a prompt next to each other.

    Args:
        items: any objects that consist of token sequences; an item is never split.
        budget: tokens in one forward pass; an item that alone exceeds it forms its own group.
        sequences_of: the sequences of one item, at least one.

    Returns:
        Groups of indices into `items`; each index appears once.
    """
    groups: list[list[int]] = []
    prompts: set[tuple[int, ...]] = set()
    room = 0
    for family in shared_prompt_groups([sequences_of(item)[0] for item in items]):
        for i in family:
            sequences = sequences_of(items[i])
            size = _added(sequences, prompts)
            if not groups or size > room:
                groups.append([])
                prompts, room = set(), budget
                size = _added(sequences, prompts)
            groups[-1].append(i)
            prompts.update(sequence.prompt for sequence in sequences)
            room -= size
    return groups


def _added(sequences: Sequence[TokenSequence], prompts: set[tuple[int, ...]]) -> int:
    """Return the number of tokens that the sequences add to a row that holds these prompts."""
    size, seen = 0, set(prompts)
    for sequence in sequences:
        shared = sequence.start >= LEAST_SHARED and sequence.prompt in seen
        size += len(sequence.ids) - (sequence.start if shared else 0)
        seen.add(sequence.prompt)
    return size


# --- running a model ------------------------------------------------------------------------------------------------


def reraise_lack_of_memory(error: Exception) -> None:
    """Raise an error of a trial again if memory ran out, which says nothing about the architecture."""
    if ran_out_of_memory(error):
        raise error


def outputs_agree(
    model: PreTrainedModel, body: Callable[..., Any], ours: Arrangement, theirs: Sequence[Arrangement]
) -> bool:
    """Return whether the model runs all and gives the sequences' tokens the same last hidden states.

    Args:
        model: the model.
        body: the part of it that returns the states.
        ours: one arrangement of all sequences.
        theirs: one of all sequences, or one of each.
    """
    try:
        with torch.no_grad():
            found = _states(model, body, ours)
            expected = torch.cat([_states(model, body, arrangement) for arrangement in theirs])
    except REFUSALS as error:
        reraise_lack_of_memory(error)
        return False
    # bf16 rounds to 0.4%. A neighboring sequence or a wrong position changes a state by its own magnitude.
    tolerance = (1e-3 if model.dtype == torch.float32 else 0.05) * float(expected.abs().max())
    return bool((found - expected).abs().max() <= tolerance)


def _states(model: PreTrainedModel, body: Callable[..., Any], arrangement: Arrangement) -> Tensor:
    with use_arrangement(arrangement):
        states = run_body(body, arrangement, model.device)
    return torch.cat([states[place.to(states.device)] for place in arrangement.places]).float()


def run_body(body: Callable[..., Any], arrangement: Arrangement, device: torch.device) -> Tensor:
    """Return the last hidden states, shape (rows · length, width), under the active layout."""
    return run_model(body, arrangement, device).last_hidden_state.flatten(0, 1)  # type: ignore[no-any-return]


def run_model(model: Callable[..., Any], arrangement: Arrangement, device: torch.device) -> Any:
    """Return the output of a body or a complete model, under the active layout."""
    arguments = {"attention_mask": arrangement.attention_mask, "position_ids": arrangement.positions}
    given = {name: tensor.to(device, non_blocking=True) for name, tensor in arguments.items() if tensor is not None}
    return model(input_ids=arrangement.ids.to(device, non_blocking=True), use_cache=False, **given)
