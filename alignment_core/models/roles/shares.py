"""The part of some work that one rank of a stage does, and the whole result from all parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignment_core.models.passes.packing import shared_prompt_groups
from alignment_core.plugin_api import TokenSequence
from alignment_core.ranks import Ranks


def share_of(ranks: Ranks, tokens: Sequence[int], prompts: Sequence[TokenSequence] | None = None) -> list[int]:
    """Return the indices of the items that are this rank's part (`shares_of`).

    In a rank's own part of shared work, and without other ranks, all items are its part.
    """
    if ranks.size == 1 or ranks.apart:
        return list(range(len(tokens)))
    return shares_of(ranks.size, tokens, prompts)[ranks.index]


def shares_of(size: int, tokens: Sequence[int], prompts: Sequence[TokenSequence] | None = None) -> list[list[int]]:
    """Cut items into one part per rank, each with about the same number of tokens. Returns their indices, ascending.

    Args:
        size: number of ranks.
        tokens: tokens of each item, at least one.
        prompts: a sequence of each item. Items with the same prompt stay together, so that fewer ranks read it.
    """
    families = [[i] for i in range(len(tokens))] if prompts is None else shared_prompt_groups(prompts)
    shares: list[list[int]] = [[] for _ in range(size)]
    total, before = sum(tokens), 0
    for i in (i for family in families for i in family):
        # An item belongs to the part that holds its middle.
        shares[size * (2 * before + tokens[i]) // (2 * total)].append(i)
        before += tokens[i]
    return [sorted(share) for share in shares]


def from_shares(
    ranks: Ranks, share: Sequence[int], count: int, found: tuple[Tensor, ...] | None, device: torch.device
) -> tuple[Tensor, ...]:
    """Return the results for all items from those of each rank's part. They are float32, and zero-padded in width.

    Args:
        ranks: the ranks.
        share: the indices of this rank's part.
        count: number of all items.
        found: tensors whose first dimension is that of the part; None if it is empty.
        device: device of the results.
    """
    if ranks.size == 1 or ranks.apart:
        assert found is not None
        return found
    shapes = ranks.gather("shapes", None if found is None else [tuple(part.shape[1:]) for part in found])
    known = [shape for shape in shapes if shape is not None]
    widest = [tuple(map(max, zip(*same, strict=True))) if same[0] else () for same in zip(*known, strict=True)]
    # The others have zeros there, so the sum is each value itself.
    whole = tuple(torch.zeros(count, *shape, device=device) for shape in widest)
    if found is not None:
        rows = torch.tensor(share, device=device)
        for target, part in zip(whole, found, strict=True):
            within = target[tuple(slice(size) for size in (None, *part.shape[1:]))]
            within[rows] = part.float()
    ranks.add_up(whole)
    return whole
