"""Bytes of tensors that are alive, of weights, and of layers whose weights are quantised."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment_core.config import LoadIn, Moments
from alignment_core.models.heap import Heap

QUANTISED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
"""Bytes per weight with its scales; nf4: 8 bits for each block of 64, and 32 more for each 256 of these."""

LEAST_8BIT, BLOCK_8BIT = 4096, 256
"""bitsandbytes keeps the moments of smaller tensors in 32 bits; a block of this many shares one float32 scale."""


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that is made inside and still alive.

    Attributes:
        now: bytes that are alive.
        peak: most that were at a time, or most that the heap took which holds them.
    """

    def __init__(self, present: Sequence[Tensor], heap: Heap | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._heap = heap
        self._known = {tensor.untyped_storage()._cdata for tensor in present}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return output

    def _see(self, storage: Any) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        size = storage.nbytes()
        self.now += size
        if self._heap is not None:
            self._heap.take(storage._cdata, size)
        self.peak = max(self.peak, self.now) if self._heap is None else self._heap.peak
        weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size
        if self._heap is not None:
            self._heap.give(address)


class _Quantised:
    """Stands for a 4- or 8-bit layer: its weight exists in full only while it is multiplied by."""

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


def linear_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that are quantised: every linear one but the head, be it a vocabulary or a classifier's score."""
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    return [m for m in linear if m is not head and m is not getattr(model, "score", None)]


def stand_for_quantised(model: PreTrainedModel) -> None:
    """Let the linear layers of an unquantised model take memory as quantised ones do."""
    for layer in linear_layers(model):
        layer.forward = _Quantised(layer).forward


def bytes_of_weights(model: PreTrainedModel, load_in: LoadIn) -> int:
    """What the weights take when they are loaded so; tied ones count once."""
    quantised = {id(layer.weight) for layer in linear_layers(model)}
    size = 0.0
    for p in model.parameters():
        packed = QUANTISED_BYTES.get(load_in) if id(p) in quantised else None
        size += p.numel() * (p.element_size() if packed is None else packed)
    return round(size)


def bytes_beside_file(model: PreTrainedModel, load_in: LoadIn, stored: torch.dtype) -> tuple[int, int]:
    """The weights in the memory of a process that maps their file, and what loading holds beside them.

    The file's pages are resident: weights of the file's own type are these pages, and one keeps all of them, those of
    quantised weights too; where every weight is converted, the pages go when the last one is.
    """
    kept = bytes_of_weights(model, load_in)
    file = sum(p.numel() for p in model.parameters()) * stored.itemsize
    if stored != model.dtype:
        return kept, file
    quantised = {id(layer.weight) for layer in linear_layers(model)} if load_in in QUANTISED_BYTES else set()
    return kept + sum(p.nbytes for p in model.parameters() if id(p) in quantised), 0


def bytes_of_training(parameters: Iterable[nn.Parameter], adamw: Moments) -> int:
    """Gradients and AdamW's two moments; of 8 bits with a scale for each block, but for small tensors."""
    size = 0
    for count in (parameter.numel() for parameter in parameters):
        small = adamw == "32bit" or count < LEAST_8BIT
        size += 4 * count + (8 * count if small else 2 * count + 8 * -(-count // BLOCK_8BIT))
    return size


def keep_layers(model: PreTrainedModel, present: int, kept: int) -> None:
    """Leave only the first of a model's layers."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == present:
                setattr(module, name, child[:kept])


def make_fake(module: nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    """Give a module that was built on the meta device weights, buffers and gradients without content on a device."""

    def empty(like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device=device)

    fake: dict[int, nn.Parameter] = {}  # tied weights stay one
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
