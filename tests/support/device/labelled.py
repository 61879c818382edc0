"""Real CPU tensors that carry the label `cuda:0`: the use of a card, seen on a machine that has none.

A labelled tensor says that it is on the card, and its results are labelled, too. The arithmetic is the CPU's, so a run
ends as it does on the CPU. `on_a_card` books what a card would refuse or wait for: operations on tensors of both
devices, results that the host reads, and copies to the card. A label belongs to a storage, so views share it.

Not seen: the kernels, autocast (which takes the place of the CPU's), and memory.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignment_core.models.base.loading import load_base
from alignment_core.stages.shared import context

CARD, CPU = torch.device("cuda:0"), torch.device("cpu")
OURS = ("/alignment_core/", "/alignment_plugins/", "/examples/")
PLENTY = 2**40
Model = TypeVar("Model", bound=nn.Module)

WAITS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"),
    *("equal", "is_nonzero"),
}
"""Operations whose result, or its size, the host must know before it goes on."""
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operations that copy an index to the card, where it is a mistake that costs only time."""
COPIES = {"copy_", "_to_copy"}
LITERALS = {"tensor", "as_tensor", "new_tensor"}
READS = {"tolist", "numpy", "__array__"}
"""Methods that read a tensor without an operation that a mode sees."""


@dataclass
class Ledger:
    """What a run did with the card, by the line that did it.

    Attributes:
        mixed: operations on tensors of both devices, which a card refuses. Numbers on the CPU are allowed.
        reads: times the host waited for the card.
        uploads: copies to the card that the host waited for. It does not with `non_blocking`.
        passes: forward passes, counted by their embedding.
    """

    mixed: Counter[str] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    passes: int = 0
    _labelled: set[int] = field(default_factory=set)

    def waits(self, place: str = "") -> int:
        """Return how often the host waited for the lines of files that start with `place`."""
        found = self.reads + self.uploads
        return sum(count for line, count in found.items() if line.startswith(place))

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._labelled

    def label(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._labelled:
            self._labelled.add(storage._cdata)
            weakref.finalize(storage, self._labelled.discard, storage._cdata)

    def unlabel(self, tensor: Tensor) -> None:
        self._labelled.discard(tensor.untyped_storage()._cdata)

    def move(self, module: Model) -> Model:
        """Label the weights and buffers of a module, and what bitsandbytes keeps beside them."""
        for weight in (*module.parameters(), *module.buffers()):
            self.label(weight)
            state = getattr(weight, "quant_state", None)
            for part in () if state is None else (state, state.state2):
                for tensor in vars(part).values():
                    if isinstance(tensor, Tensor):
                        self.label(tensor)
        return module

    def moved(self, source: Tensor, copy: Tensor, to_card: bool, without_waiting: bool) -> Tensor:
        """Return the copy of a tensor on the other device, and book it."""
        if copy.untyped_storage()._cdata == source.untyped_storage()._cdata:
            copy = copy.clone()
        if to_card:
            self.label(copy)
            if not without_waiting:
                self.uploads[_line()] += 1
        else:
            self.unlabel(copy)
            self.reads[_line()] += 1
        return copy


@contextmanager
def on_a_card() -> Iterator[Ledger]:
    """Make `cuda` a device inside the context: base models are loaded on it."""
    ledger = Ledger()

    def load(path: str, **options: Any) -> Any:
        return ledger.move(load_base(path, **options | {"device": CPU}))

    def grouped(tensors: Any) -> Any:
        groups = _group_tensors_by_device_and_dtype(tensors)
        return {
            (CARD if ledger.has(part[0][0][0]) else device, dtype): part for (device, dtype), part in groups.items()
        }

    with (
        # A layer is recomputed outside the modes' sight, so its tensors are not compared by their device.
        patch.dict(checkpoint._allowed_determinism_checks_to_fns, {"default": lambda tensor: tensor.shape}),
        patch.object(clip_grad, "_group_tensors_by_device_and_dtype", grouped),
        patch.object(context, "load_base", load),
        patch.object(context, "choose_device", lambda _: CARD),
        patch.object(context, "use_card"),
        patch("alignment_core.stages.shared.memory_fit.available_memory", lambda *_: PLENTY),
        _Operations(ledger),
        _Functions(ledger),
    ):
        yield ledger


class _Functions(TorchFunctionMode):
    """Answers which device a tensor is on, and makes tensors on the card and copies to it and from it."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ledger, options = self.ledger, dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if function == Tensor.device.__get__:  # type: ignore[attr-defined]
            return CARD if ledger.has(args[0]) else function(*args)
        if function == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return ledger.has(args[0])
        if function is Tensor.backward:  # a mode is off inside a function, but backward recomputes layers
            with self:
                start = torch.ones_like(args[0])
                return _engine_run_backward(
                    args, (start,), False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        if name in READS and ledger.has(args[0]):
            ledger.reads[_line()] += 1
        if name in ("to", "cpu", "cuda") and args and isinstance(args[0], Tensor):
            return self._moved(function, name, list(args), options)
        device = options.get("device")
        if device is None:
            device = CARD if name == "new_tensor" and ledger.has(args[0]) else None
        if device is None:
            return function(*args, **options)
        made = function(*args, **options | ({"device": CPU} if _is_card(device) else {}))
        if isinstance(made, Tensor) and not made.is_meta:
            (ledger.label if _is_card(device) else ledger.unlabel)(made)
            if _is_card(device) and name in LITERALS:
                ledger.uploads[_line()] += 1
        return made

    def _moved(self, function: Callable[..., Any], name: str, args: list[Any], options: dict[str, Any]) -> Any:
        source, target = args[0], {"cpu": CPU, "cuda": CARD}.get(name)
        for place, value in enumerate(args[1:], 1):
            if isinstance(value, str | torch.device):
                target = torch.device(value)
                args[place] = CPU if _is_card(target) else target
            elif isinstance(value, Tensor):
                target = CARD if self.ledger.has(value) else CPU
        if options.get("device") is not None:
            target = torch.device(options["device"])
            options["device"] = CPU if _is_card(target) else target
        copy = source if name == "cuda" else function(*args, **options)
        if target is None or _is_card(target) == self.ledger.has(source):
            return copy
        return self.ledger.moved(source, copy, _is_card(target), options.get("non_blocking", False))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Labels the results of labelled tensors, and books what it sees."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ledger, name = self.ledger, function._schema.name.removeprefix("aten::")
        given = [tensor for tensor in tree_leaves((args, kwargs or {})) if isinstance(tensor, Tensor)]
        on_card = [ledger.has(tensor) for tensor in given]
        output = function(*args, **(kwargs or {}))
        if not any(on_card):
            if not given and torch._C._current_autograd_node() is not None:
                self._label(output)  # the zeros of a gradient that is missing
            return output
        ledger.passes += name == "embedding"
        if name in WAITS:
            ledger.reads[_line()] += 1
        elif name in COPIES:
            if len(set(on_card)) == 2:
                (ledger.uploads if on_card[0] else ledger.reads)[_line()] += 1
            if not on_card[0]:
                return output
        else:
            self._check(name, given, on_card)
        self._label(output)
        return output

    def _label(self, output: Any) -> None:
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self.ledger.label(tensor)

    def _check(self, name: str, given: list[Tensor], on_card: list[bool]) -> None:
        for tensor, its_on_card in zip(given, on_card, strict=True):
            if its_on_card:
                if name in INDEXES and tensor is not given[0] and tensor.dtype in (torch.bool, torch.uint8):
                    self.ledger.reads[_line()] += 1
            elif name in INDEXES and on_card[0]:
                self.ledger.uploads[_line()] += 1
            elif tensor.dim() > 0:
                self.ledger.mixed[f"{name} in {_line()}"] += 1


def _is_card(device: object) -> bool:
    return device is not None and torch.device(device).type == "cuda"  # type: ignore[arg-type]


def _line() -> str:
    """Return the innermost line of ours that is running, with what it called beyond PyTorch."""
    frame: FrameType | None = sys._getframe(1)
    called = ""
    while frame is not None:
        file = frame.f_code.co_filename
        for place in OURS:
            if place in file and "/site-packages/" not in file:
                return f"{file[file.rindex(place) + 1 :]}:{frame.f_lineno}{called}"
        if not called and "/site-packages/" in file and "/torch/" not in file:
            called = f" > {file.split('/site-packages/')[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return called or "?"
