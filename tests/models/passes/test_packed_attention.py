"""Attention of a packed row in one call, as on a card, compared with the calls for each piece. No card is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from architectures import save_model
from engine import LORA, disturb, language, open_roles
from every_architecture import save_small
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from alignment_core.models.passes import layout as layouts
from alignment_core.models.passes import packed_attention
from alignment_core.models.passes.layout import Layout, Piece
from alignment_core.models.passes.packed_attention import (
    _at_once,
    _attention,
    _in_pieces,
    _runs_at_once,
    _trial,
    enable_packing,
    flash_refusal,
)
from alignment_core.models.passes.packing import Arrangement, use_arrangement
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence

CPU = torch.device("cpu")
APART = Layout((Piece(0, 5), Piece(5, 6), Piece(6, 13)))
SHARED = Layout((Piece(0, 5), Piece(5, 8, (0, 5)), Piece(8, 9, (0, 5)), Piece(9, 12), Piece(12, 14, (9, 12))))


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    corner: str = "lower right",
) -> Tensor:
    """What flash attention with variable lengths computes, by its documentation: each segment for itself.

    The causal mask is aligned to the lower right corner of (queries, keys). (tokens, heads, width) each.
    """
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert window_size == (-1, 0)
    lengths, seen = query_ends.diff().tolist(), key_ends.diff().tolist()
    assert (longest_query, longest_key) == (max(lengths), max(seen))
    groups = query.shape[1] // key.shape[1]
    found = []
    for q, k, v in zip(query.split(lengths), key.split(seen), value.split(seen), strict=True):
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = torch.einsum("ihd,jhd->hij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        first = len(k) - len(q) if corner == "lower right" else 0
        hidden = torch.arange(len(k)) > torch.arange(len(q)).unsqueeze(1) + first
        found.append(torch.einsum("hij,jhd->ihd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v))
    return torch.cat(found)


@pytest.fixture
def _one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "_varlen", lambda: varlen_attn)
    monkeypatch.setattr(packed_attention, "_runs_at_once", lambda *_: True)


@pytest.mark.usefixtures("_one_call")
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("layout", [APART, SHARED], ids=["apart", "shared prompts"])
def test_one_call_gives_the_results_and_gradients_of_the_pieces(
    layout: Layout, heads: tuple[int, int], scale: float | None
) -> None:
    generator, tokens = torch.Generator().manual_seed(0), layout.pieces[-1].stop
    counts = (heads[0], heads[1], heads[1])
    leaves = [torch.randn(1, n, tokens, 8, generator=generator, requires_grad=True) for n in counts]
    above = torch.randn(1, tokens, heads[0], 8, generator=generator)
    once, pieces = _at_once(*leaves, layout, scale), _in_pieces(*leaves, layout, scale, None)
    ours, theirs = (torch.autograd.grad(found, leaves, above) for found in (once, pieces))
    for one, other in zip((once, *ours), (pieces, *theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_keys_of_a_piece_are_its_prompt_and_its_own() -> None:
    found = SHARED.segments(CPU)
    assert found.index is not None
    assert found.index.tolist() == [*range(5), *range(5), 5, 6, 7, *range(5), 8, 9, 10, 11, 9, 10, 11, 12, 13]
    assert found.query_ends.tolist() == [0, 5, 8, 9, 12, 14]
    assert found.key_ends.tolist() == [0, 5, 13, 19, 22, 27]
    assert (found.longest_query, found.longest_key) == (5, 8)
    assert APART.segments(CPU).index is None


def learned(path: Path, checkpointing: bool) -> list[Tensor]:
    roles = opened(path)
    roles.checkpoint_layers(checkpointing)
    logps = language(roles, "policy").token_logps(PAIRS).logps
    logps.sum().backward()
    return [logps.detach(), *(p.grad for p in roles.parameters().values() if p.grad is not None)]


PAIRS = [TokenSequence((*range(3, 23), *end), 20) for end in ((7, 8, 9), (5,), ())] + [TokenSequence((4, 5, 6), 1)]


def opened(path: Path) -> Roles:
    roles = open_roles(path)
    roles.add_new("policy", LORA, 0)
    disturb(roles, "policy", 1)
    roles.train_only(["policy"])
    return roles


@pytest.fixture
def made_by_layouts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record each time that a layout makes something."""
    made: list[str] = []

    def counting(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (made.append(name), make(*arguments))[1]

    monkeypatch.setattr(Layout, "_segments", counting("segments", Layout._segments))
    monkeypatch.setattr(layouts, "_mask", counting("mask", layouts._mask))
    return made


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_models_learn_the_same_in_one_call(
    name: str, checkpointing: bool, tmp_path: Path, made_by_layouts: list[str], request: pytest.FixtureRequest
) -> None:
    path = save_model(name, tmp_path)
    pieces = learned(path, checkpointing)
    made_by_layouts.clear()
    request.getfixturevalue("_one_call")
    once = learned(path, checkpointing)
    # One for the trial while the model is loaded, and one for the pass with all its layers and its backward.
    assert made_by_layouts == ["segments", "segments"]
    for one, other in zip(once, pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_masks_are_made_once_for_all_layers(tmp_path: Path, made_by_layouts: list[str]) -> None:
    roles = opened(save_model("llama", tmp_path, num_hidden_layers=3))
    roles.checkpoint_layers(True)
    made_by_layouts.clear()
    language(roles, "policy").token_logps(PAIRS).logps.sum().backward()
    # Completions of 3 and 1 tokens behind a prompt need one each. The prompt and the last sequence are plainly causal.
    assert made_by_layouts == ["mask", "mask"]


@pytest.mark.usefixtures("_one_call")
@pytest.mark.parametrize(("window", "expected"), [(None, 1), (8, 1), (7, 0)])
def test_a_window_that_hides_something_is_computed_in_pieces(
    window: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(packed_attention, "_varlen", lambda: lambda *a, **b: (calls.append(1), varlen_attn(*a, **b))[1])
    given = [torch.randn(1, 2, 14, 8) for _ in range(3)]
    with use_arrangement(Arrangement(torch.empty(0), [], layout=SHARED)):
        found, _ = _attention(torch.nn.Module(), *given, None, sliding_window=window)
    assert len(calls) == expected
    torch.testing.assert_close(found, _in_pieces(*given, SHARED, None, window))


@pytest.mark.parametrize(
    ("attend", "expected"),
    [
        (varlen_attn, None),
        (lambda *a, **b: varlen_attn(*a, corner="upper left", **b), "its results in a trial are wrong"),
        (Mock(side_effect=RuntimeError("no flash attention\nAnd more")), "no flash attention"),
    ],
)
def test_a_trial_finds_what_a_card_cannot_do(
    attend: Callable[..., Tensor], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "_varlen", lambda: attend)
    assert _trial(CPU, torch.float32, 8) == expected


@pytest.mark.parametrize(
    ("dtype", "width", "expected"),
    [
        (torch.bfloat16, 128, None),
        (torch.float32, 128, "float32"),
        (torch.bfloat16, 20, "width 20"),
        (torch.bfloat16, 512, "width 512"),
    ],
)
def test_what_flash_attention_runs(dtype: torch.dtype, width: int, expected: str | None) -> None:
    """A card that is not there is assumed to run it, so that a dry run for it counts one call."""
    found = flash_refusal(torch.device("cuda"), dtype, width)
    assert found is None if expected is None else found is not None and expected in found


class Operations(TorchDispatchMode):
    """Records the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_card_gets_one_call_unless_flash_attention_cannot() -> None:
    """Run on tensors without content that claim to be on a card."""
    with FakeTensorMode(), use_arrangement(Arrangement(torch.empty(0), [], layout=Layout(SHARED.pieces))):
        given = [torch.empty(1, heads, 14, 64, dtype=torch.bfloat16, device="cuda") for heads in (4, 2, 2)]
        with Operations() as seen:
            found, _ = _attention(torch.nn.Module(), *given, None)
        assert not _runs_at_once(*(whole.float() for whole in given))
        assert not _runs_at_once(*given[:2], torch.empty(1, 2, 14, 32, dtype=torch.bfloat16, device="cuda"))
        assert not _runs_at_once(*(whole.cpu() for whole in given))
    assert found.shape == (1, 14, 4, 64)
    assert sum("varlen" in name for name in seen.names) == 1
    assert not any("repeat" in name or "expand" in name for name in seen.names)


@pytest.mark.parametrize(
    ("wrong", "packs"),
    [((), True), (("batch",), True), (("alone",), True), (("row",), False), (("batch", "alone"), False)],
)
def test_packed_rows_are_right_if_one_other_way_gives_the_same(
    tmp_path: Path, wrong: tuple[str, ...], packs: bool
) -> None:
    """In bf16 a batch may be rounded as far as a neighbor would change it, and int8 rounds what runs together."""
    model = AutoModelForCausalLM.from_pretrained(save_small("llama", tmp_path)).eval()

    def body(input_ids: torch.Tensor, **arguments: Any) -> Any:
        found = model.model(input_ids=input_ids, **arguments)
        way = "batch" if len(input_ids) > 1 else "alone" if input_ids.shape[1] <= 18 else "row"
        if way in wrong:
            found.last_hidden_state = found.last_hidden_state * 1.2
        return found

    before = model.config._attn_implementation
    assert enable_packing(model, body) is packs
    assert (model.config._attn_implementation == before) is not packs
