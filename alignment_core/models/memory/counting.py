"""Count the bytes of live tensors, of weights, and of layers with quantized weights."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment_core.config import LoadIn, Moments
from alignment_core.models.base.layers import linear_layers
from alignment_core.models.memory.glibc_heap import Heap

QUANTISED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
"""Bytes per weight, including scales. nf4 adds 8 bits per block of 64 weights, and 32 bits per 256 of these blocks."""

LEAST_8BIT, BLOCK_8BIT = 4096, 256
"""bitsandbytes keeps the moments of tensors below LEAST_8BIT elements in 32 bits. Each block shares a float32 scale."""


YES_OR_NO = torch.ops.aten._local_scalar_dense.default


class AllocationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that is created inside the context and still alive.

    Attributes:
        now: bytes that are alive now.
        peak: most bytes alive at a time or, with a heap, the largest size of the heap.
    """

    def __init__(self, present: Sequence[Tensor], heap: Heap | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._heap = heap
        self._seen = {tensor.untyped_storage()._cdata for tensor in present}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is YES_OR_NO and isinstance(args[0], FakeTensor) and args[0].dtype == torch.bool:
            return False  # hybrids ask whether a mask has no padding; without content, assume that it has
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return output

    def _see(self, storage: Any) -> None:
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        size = storage.nbytes()
        self.now += size
        if self._heap is not None:
            self._heap.take(storage._cdata, size)
        self.peak = max(self.peak, self.now) if self._heap is None else self._heap.peak
        weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size
        if self._heap is not None:
            self._heap.give(address)


class _Quantised:
    """Emulates a 4- or 8-bit layer, whose full weight exists only during its matrix product."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def forward(self, states: Tensor) -> Tensor:
        weight: Any = self.layer.weight
        output: Tensor = _Dequantised.apply(states, weight, isinstance(self.layer, Conv1D))  # type: ignore[no-untyped-call]
        return output


class _Dequantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        ctx.weight, ctx.transposed = weight, transposed
        full = torch.empty_like(weight)
        return states @ (full if transposed else full.t())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        full = torch.empty_like(ctx.weight)
        return gradient @ (full.t() if ctx.transposed else full), None, None


def emulate_quantised(model: PreTrainedModel) -> None:
    """Make the linear layers of an unquantized model take memory like quantized ones."""
    for layer in linear_layers(model):
        layer.forward = _Quantised(layer).forward


def weight_bytes(model: PreTrainedModel, load_in: LoadIn) -> int:
    """Return the bytes of the weights when loaded in this precision. Tied weights count once."""
    quantised = {id(layer.weight) for layer in linear_layers(model)}
    size = 0.0
    for p in model.parameters():
        packed = QUANTISED_BYTES.get(load_in) if id(p) in quantised else None
        size += p.numel() * (p.element_size() if packed is None else packed)
    return round(size)


def mapped_weight_bytes(model: PreTrainedModel, load_in: LoadIn, stored: torch.dtype) -> tuple[int, int]:
    """Return the bytes of the weights in a process that maps their file, and the extra bytes while they are loaded.

    The file's pages are resident. A weight with the file's dtype is stored in these pages, and a single one keeps all
    pages, including those of quantized weights. If every weight is converted, the pages are released after the last.
    """
    kept = weight_bytes(model, load_in)
    file = sum(p.numel() for p in model.parameters()) * stored.itemsize
    if stored != model.dtype:
        return kept, file
    quantised = {id(layer.weight) for layer in linear_layers(model)} if load_in in QUANTISED_BYTES else set()
    return kept + sum(p.nbytes for p in model.parameters() if id(p) in quantised), 0


def training_bytes(parameters: Iterable[nn.Parameter], adamw: Moments) -> int:
    """Return the bytes of gradients and AdamW's two moments.

    8-bit moments have a scale per block. Those of small tensors stay in 32 bits.
    """
    size = 0
    for count in (parameter.numel() for parameter in parameters):
        small = adamw == "32bit" or count < LEAST_8BIT
        size += 4 * count + (8 * count if small else 2 * count + 8 * -(-count // BLOCK_8BIT))
    return size


def make_fake(module: nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    """Replace a meta module's weights, buffers and gradients with fake tensors on `device`."""

    def empty(like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device=device)

    fake: dict[int, nn.Parameter] = {}  # tied weights stay tied
    with mode:
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    if id(weight) not in fake:
                        fake[id(weight)] = nn.Parameter(empty(weight), requires_grad=weight.requires_grad)
                        if weight.requires_grad:
                            fake[id(weight)].grad = empty(weight)
                    part._parameters[name] = fake[id(weight)]
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = empty(buffer)
