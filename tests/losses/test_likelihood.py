"""`fused_token_logps` compared with log_softmax over full logits in float64: values, gradients and memory."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from alignment_core.losses import likelihood
from alignment_core.losses.likelihood import HeadShape, fused_token_logps
from alignment_core.models.memory.counting import AllocationCounter

TOKENS, WIDTH, VOCABULARY = 37, 8, 50


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use chunks of 10 tokens, so that 37 tokens end in a partial chunk."""
    monkeypatch.setattr(likelihood, "CHUNK_ELEMENTS", 10 * VOCABULARY + 7)


def tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype)
    bias = torch.randn(VOCABULARY, generator=generator).to(dtype)
    return hidden, weight, torch.randint(VOCABULARY, (TOKENS,), generator=generator), bias


def naive(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, shape: HeadShape
) -> tuple[Tensor, Tensor]:
    """Compute the same from full logits in float64, following the architectures' definitions."""
    logits = hidden.double() @ weight.double().t()
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * shape.scale
    if shape.softcap is not None:
        logits = torch.tanh(logits / shape.softcap) * shape.softcap
    distribution = torch.distributions.Categorical(logits=logits / shape.temperature)
    return distribution.log_prob(targets), distribution.entropy()


SHAPES = [
    HeadShape(),
    HeadShape(temperature=0.7),
    HeadShape(temperature=2.5),
    HeadShape(softcap=3.0),
    HeadShape(scale=0.25),
    HeadShape(scale=4.0, softcap=5.0, temperature=0.6),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trainable head"])
def test_values_and_gradients_match_the_naive_ones(shape: HeadShape, biased: bool, trainable: bool) -> None:
    hidden, weight, targets, full_bias = tensors()
    bias = full_bias if biased else None
    upstream = torch.linspace(-1, 2, TOKENS)
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trainable)]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trainable)]
    our_bias, their_bias = (None, None) if bias is None else (bias.clone(), bias.clone())
    if trainable and our_bias is not None and their_bias is not None:
        ours.append(our_bias.requires_grad_())
        theirs.append(their_bias.requires_grad_())

    logps, entropy = fused_token_logps(ours[0], ours[1], targets, bias=our_bias, shape=shape)
    expected, expected_entropy = naive(theirs[0], theirs[1], targets, their_bias, shape)
    assert logps.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-5, atol=2e-5)

    (logps * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainable", [False, True])
def test_entropy_carries_no_gradient(trainable: bool) -> None:
    hidden, weight, targets, _ = tensors()
    _, entropy = fused_token_logps(hidden.requires_grad_(), weight.requires_grad_(trainable), targets)
    assert not entropy.requires_grad


def test_bf16_is_accumulated_in_float32() -> None:
    """The values equal those computed exactly from bf16 weights. A bf16 product would be off by about 1e-2."""
    hidden, weight, targets, bias = tensors(dtype=torch.bfloat16)
    logps, _ = fused_token_logps(hidden.requires_grad_(), weight, targets, bias=bias)
    reference = hidden.detach().clone().requires_grad_()
    expected, _ = naive(reference, weight, targets, bias, HeadShape())
    torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=2e-5)
    logps.sum().backward()
    expected.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(hidden.grad, reference.grad, rtol=2e-2, atol=4e-2)


@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
def test_float32_is_not_rounded_after_a_bf16_call(states: torch.dtype) -> None:
    """The CPU setting that multiplies float32 as bf16 is used only where that is exact, and is reset afterwards."""
    hidden, weight, targets, _ = tensors(dtype=torch.bfloat16)
    fused_token_logps(hidden, weight, targets)
    left, right = torch.randn(128, 128), torch.randn(128, 128)
    assert float((left @ right - left.double() @ right.double()).abs().max()) < 1e-4
    hidden, weight, targets, _ = tensors()
    hidden = hidden.to(states)
    logps, _ = fused_token_logps(hidden, weight, targets)
    torch.testing.assert_close(
        logps.double(), naive(hidden, weight, targets, None, HeadShape())[0], rtol=1e-5, atol=2e-5
    )


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, TOKENS), chunk=st.integers(1, TOKENS + 3), seed=st.integers(0, 5), trainable=st.booleans())
def test_chunk_boundaries_change_nothing(size: int, chunk: int, seed: int, trainable: bool) -> None:
    hidden, weight, targets, _ = tensors(seed)
    results = []
    for elements in (chunk * VOCABULARY, 2**20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(likelihood, "CHUNK_ELEMENTS", elements)
            states = hidden[:size].clone().requires_grad_()
            head = weight.clone().requires_grad_(trainable)
            logps, entropy = fused_token_logps(states, head, targets[:size])
            logps.sum().backward()
            results.append((logps, entropy, states.grad, head.grad if trainable else torch.zeros(())))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_no_tokens_give_empty_results() -> None:
    hidden, weight, targets, _ = tensors()
    for trainable in (False, True):
        head = weight.clone().requires_grad_(trainable)
        logps, entropy = fused_token_logps(hidden[:0], head, targets[:0])
        assert logps.shape == entropy.shape == (0,)


class LargestResult(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self.elements = max(self.elements, tensor.numel())
        return result


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for item in result:
            yield from _tensors(item)


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trainable head"])
def test_full_logits_are_never_materialized(trainable: bool) -> None:
    hidden, weight, targets, _ = tensors()
    states, head = hidden.requires_grad_(), weight.requires_grad_(trainable)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with LargestResult() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logps, _ = fused_token_logps(states, head, targets)
        logps.sum().backward()
    assert largest.elements <= max(likelihood.CHUNK_ELEMENTS, weight.numel(), hidden.numel()) < TOKENS * VOCABULARY
    # Only the states or their gradient, and indices, are saved between forward and backward.
    assert sum(kept) < TOKENS * VOCABULARY / 2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trainable head"])
def test_gradients_match_finite_differences(shape: HeadShape, trainable: bool) -> None:
    """Run torch's gradcheck with wide steps, because the logits are float32."""
    hidden, weight, targets, bias = (tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors())
    states, head = hidden[:3].requires_grad_(), weight.requires_grad_(trainable)

    def logps(states: Tensor, head: Tensor) -> Tensor:
        return fused_token_logps(states, head, targets[:3], bias=bias, shape=shape)[0].double()

    assert torch.autograd.gradcheck(logps, (states, head), eps=3e-3, atol=3e-3, rtol=3e-3)


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trainable head"])
def test_peak_memory_does_not_grow_with_vocabulary_times_length(
    trainable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count live bytes over forward and backward: 8 times the tokens add less than one chunk."""
    vocabulary, chunk = 2000, 20_000
    monkeypatch.setattr(likelihood, "CHUNK_ELEMENTS", chunk)

    def peak(tokens: int) -> int:
        hidden = torch.randn(tokens, WIDTH).requires_grad_()
        weight = torch.randn(vocabulary, WIDTH).requires_grad_(trainable)
        targets = torch.randint(vocabulary, (tokens,))
        with AllocationCounter([hidden, weight, targets]) as counted:
            logps, _ = fused_token_logps(hidden, weight, targets)
            logps.sum().backward()
        found: int = counted.peak
        return found

    few, many = peak(100), peak(800)
    logits = 700 * vocabulary * 4
    assert many - few < min(4 * chunk, 0.1 * logits)
    assert few > 4 * chunk / 2


@pytest.mark.parametrize(
    ("states", "head", "enabled", "expected"),
    [(False, False, True, True), (True, True, False, True), (True, False, True, False), (False, True, True, False)],
)
def test_a_card_writes_float32_only_where_nothing_learns(
    states: bool, head: bool, enabled: bool, expected: bool
) -> None:
    """The bf16 product with float32 output has no derivative. The tensors have no content and claim to be on a card."""
    with FakeTensorMode(), torch.set_grad_enabled(enabled):
        left = torch.empty(5, WIDTH, dtype=torch.bfloat16, device="cuda", requires_grad=states)
        right = torch.empty(WIDTH, VOCABULARY, dtype=torch.bfloat16, device="cuda", requires_grad=head)
        assert likelihood._writes_float32(left, right) is expected
        assert not likelihood._writes_float32(left, torch.empty(WIDTH, VOCABULARY, device="cuda"))
    assert not likelihood._writes_float32(torch.empty(5, 2).bfloat16(), torch.empty(2, 3).bfloat16())


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trainable head"])
def test_a_trainable_bf16_head_learns_where_the_product_has_no_derivative(
    trainable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand in for a card: the product with float32 output computes the same and stops gradients."""

    def product(left: Tensor, right: Tensor, out_dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
        if out_dtype is None:
            return torch.matmul(left, right, out=out)
        return torch.matmul(left.detach().to(out_dtype), right.detach().to(out_dtype))

    def writes(left: Tensor, right: Tensor) -> bool:
        card = [Mock(is_cuda=True, dtype=one.dtype, requires_grad=one.requires_grad) for one in (left, right)]
        return bool(whether_on_a_card(*card))

    whether_on_a_card: Any = likelihood._writes_float32
    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(likelihood, "_writes_float32", writes)
    hidden, weight, targets, _ = tensors(dtype=torch.bfloat16)
    states, head = hidden.requires_grad_(), weight.requires_grad_(trainable)
    logps, _ = fused_token_logps(states, head, targets)
    logps.sum().backward()
    reference, other = hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_(trainable)
    naive(reference, other, targets, None, HeadShape())[0].sum().backward()
    for mine, theirs in ((states, reference), (head, other)):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-2, atol=4e-2)


@pytest.mark.parametrize(("device", "expected"), [("cpu", 110), ("cuda", 220)])
def test_a_card_reads_the_head_less_often(device: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2²⁴ logits of 151,936 words are 110 tokens, and 2²⁵ are 220."""
    monkeypatch.setattr(likelihood, "CHUNK_ELEMENTS", 2**24)
    with FakeTensorMode():
        parts = likelihood._chunks(torch.empty(1000, 8, device=device), 151_936)
    assert [part.stop - part.start for part in parts[:2]] == [expected, expected]
    assert parts[-1].stop == 1000
