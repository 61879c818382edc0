"""Attention over packed rows, registered with transformers under the name `alignment_packed`.

On a card, flash attention with variable lengths reads a complete row in one call. Anything that it does not support (a
CPU, float32, a window) is computed piece by piece. Whether an architecture accepts our positions and attention is
tested (`enable_packing`), not derived from its name. If it does not, it runs in padded batches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad, scaled_dot_product_attention
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignment_core.devices import for_card
from alignment_core.models.passes.batching import largest_setting
from alignment_core.models.passes.layout import Layout, Piece
from alignment_core.models.passes.packing import (
    REFUSALS,
    current_arrangement,
    outputs_agree,
    packed,
    padded,
    reraise_lack_of_memory,
)
from alignment_core.plugin_api import TokenSequence

IMPLEMENTATION = "alignment_packed"
ROUND = 32
"""bf16 attention on a CPU pads lengths to a multiple of this, because compiling a new shape is slower than a run."""
FLASH_TYPES = (torch.bfloat16, torch.float16)
FLASH_WIDTH, FLASH_UNIT = 256, 8
"""Widest head of flash attention, and the unit of which its width is a multiple."""
CAUSAL = (-1, 0)
"""No limit to the left and nothing to the right. Flash attention counts from the last query and the last key."""


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """An attention function for transformers: inputs (1, heads, tokens, width), output (1, tokens, heads, width)."""
    layout = _layout()
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    scale, window = options.get("scaling"), options.get("sliding_window")
    if (window is None or layout.longest <= window) and _runs_at_once(query, key, value):
        return _at_once(query, key, value, layout, scale), None
    return _in_pieces(query, key, value, layout, scale, window), None


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    return None if _layout() is not None else sdpa_mask(*arguments, **options)


def _layout() -> Layout | None:
    arrangement = current_arrangement()
    return None if arrangement is None else arrangement.layout


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)


# --- piece by piece -----------------------------------------------------------------------------------------------


def _in_pieces(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    # Split, not sliced: the gradient of a slice is a full row of zeros, one for each piece.
    lengths = [piece.length for piece in layout.pieces]
    queries, keys, values = (torch.split(whole, lengths, dim=2) for whole in (query, key, value))
    place = {(piece.start, piece.stop): i for i, piece in enumerate(layout.pieces)}
    parts = []
    for i, piece in enumerate(layout.pieces):
        own, seen = keys[i], values[i]
        if piece.prompt in place:
            shared = place[piece.prompt]
            own, seen = torch.cat([keys[shared], own], 2), torch.cat([values[shared], seen], 2)
        parts.append(_attend(queries[i], own, seen, layout, scale, window).transpose(1, 2))
    return torch.cat(parts, dim=1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None
) -> Tensor:
    """Return causal attention, where the queries belong to the last tokens of the keys."""
    length, before = query.shape[2], key.shape[2] - query.shape[2]
    if length % ROUND and not for_card(query) and query.dtype == torch.bfloat16:
        query, key, value = (pad(whole, (0, 0, 0, -length % ROUND)) for whole in (query, key, value))
        return _attend(query, key, value, layout, scale, window)[:, :, :length]
    mask = layout.mask(length, before, window, query)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale)


# --- in one call --------------------------------------------------------------------------------------------------


def _at_once(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None) -> Tensor:
    attend = _varlen()
    assert attend is not None
    segments = layout.segments(query.device)
    query, key, value = (whole.squeeze(0).transpose(0, 1) for whole in (query, key, value))
    if segments.index is not None:
        key, value = _gathered(key, segments.index), _gathered(value, segments.index)
    found: Tensor = attend(
        query,
        key,
        value,
        segments.query_ends,
        segments.key_ends,
        segments.longest_query,
        segments.longest_key,
        scale=scale,
        window_size=CAUSAL,
    )
    return found.unsqueeze(0)


def _gathered(whole: Tensor, index: Tensor) -> Tensor:
    """Return whole[index]. A card adds up the gradients of an embedding in a fixed order, and in float32."""
    return embedding(index, whole.flatten(1)).view(len(index), *whole.shape[1:])


@cache
def _varlen() -> Callable[..., Any] | None:
    """Return PyTorch's attention with variable lengths; None if this version has none that takes a scale."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    accepted = inspect.signature(varlen_attn).parameters
    if not {"scale", "window_size"} <= accepted.keys():
        return None
    # Newer versions want to be told about fewer heads of keys than of queries. Older ones accept them silently.
    return partial(varlen_attn, enable_gqa=True) if "enable_gqa" in accepted else varlen_attn


def _runs_at_once(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if not for_card(query) or not query.dtype == key.dtype == value.dtype:
        return False
    width = query.shape[-1]
    return width == key.shape[-1] == value.shape[-1] and flash_refusal(query.device, query.dtype, width) is None


def pieces_note(model: PreTrainedModel) -> str | None:
    """Return why attention of a model on a card runs piece by piece; None if it does not, or on a CPU."""
    if model.device.type != "cuda":
        return None
    config = model.config.get_text_config()
    heads = largest_setting(config, "num_attention_heads")
    width = largest_setting(config, "head_dim") or (config.hidden_size // heads if heads else None)
    return None if width is None else flash_refusal(model.device, model.dtype, width)


@cache
def flash_refusal(device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """Return why a card does not run flash attention with variable lengths; None if it does.

    A card that is present is tried. One that is only planned for is assumed to run it.
    """
    if dtype not in FLASH_TYPES:
        return f"it does not compute in {str(dtype).removeprefix('torch.')}"
    if width > FLASH_WIDTH or width % FLASH_UNIT:
        return f"it has no heads of width {width}"
    if _varlen() is None:
        return f"PyTorch {torch.__version__} does not have it"
    return _trial(device, dtype, width) if device.type == "cuda" and torch.cuda.is_available() else None


def _trial(device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """Return why one call does not give the results and gradients of the calls for each piece; None if it does."""
    layout = Layout((Piece(0, 5), Piece(5, 8, (0, 5)), Piece(8, 9, (0, 5)), Piece(9, 11)))
    # The dry run may ask in the middle of its fake tensors.
    with _disable_current_modes(), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        generator = torch.Generator().manual_seed(0)
        given = [torch.randn(1, heads, 11, width, generator=generator) for heads in (4, 2, 2)]
        query, key, value = leaves = [tensor.to(device, dtype).requires_grad_() for tensor in given]
        above = torch.randn(1, 11, 4, width, generator=generator).to(device, dtype)
        try:
            found = _at_once(query, key, value, layout, None)
            ours = [found, *torch.autograd.grad(found, leaves, above)]
        except REFUSALS as error:
            reraise_lack_of_memory(error)
            return str(error).strip().partition("\n")[0] or type(error).__name__
        expected = _in_pieces(query, key, value, layout, None, None)
        theirs = [expected, *torch.autograd.grad(expected, leaves, above)]
        pairs = [(one.detach().float(), other.detach().float()) for one, other in zip(ours, theirs, strict=True)]
    # bf16 rounds to 0.4%. A token too many or too few changes a result by its own magnitude.
    agree = all(float((one - other).norm()) <= 0.05 * float(other.norm()) for one, other in pairs)
    return None if agree else "its results in a trial are wrong"


# --- test of an architecture --------------------------------------------------------------------------------------


def enable_packing(model: PreTrainedModel, body: Callable[..., Any]) -> bool:
    """Install our attention. Return whether a packed row gives the same as its sequences otherwise; undone if not.

    They are compared in a padded batch and alone, and one of these is enough. In bf16, a padded batch may differ from
    both others by a rounding error as large as that of a wrong mask. In int8, what runs together is rounded together.
    """
    before = model.config._attn_implementation
    if before == IMPLEMENTATION and model.device.type == "meta":  # from the configuration of a model that packs
        return True
    if before != "sdpa":  # eager is chosen if sdpa lacks a feature: a soft cap, sinks, a bias
        return False
    if model.device.type == "meta":  # nothing to compare; the dry run gets the real model's result
        model.set_attn_implementation(IMPLEMENTATION)
        return True
    together = [TokenSequence((*range(1, 18), last), 17) for last in (18, 19)]
    sequences = [TokenSequence((3, 4, 5), 1), *together]
    try:
        model.set_attn_implementation(IMPLEMENTATION)
    except REFUSALS:
        fits = False
    else:
        row, batch, alone = packed(sequences), padded(sequences, 0), [padded([one], 0) for one in sequences]
        fits = any(outputs_agree(model, body, row, theirs) for theirs in ([batch], alone))
    if not fits:
        model.set_attn_implementation(before)
    return fits
