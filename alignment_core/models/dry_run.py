"""How much memory a model's forward and backward passes take, found by running them on tensors without content.

A fake tensor has shape, type and device but no storage; the passes run the model's own code on them, and every
allocation and release is counted. So the count knows what this architecture, precision and attention keep for
backward without a formula for each.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment_core.config import LoadIn, LoraConfig
from alignment_core.losses.likelihood import fused_token_logps
from alignment_core.models.load import base_dtype, head_shape
from alignment_core.models.logps import arrange
from alignment_core.models.roles import Roles
from alignment_core.plugin_api import TokenSequence

QUANTISED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
"""Bytes per weight with its scales; nf4: 8 bits for each block of 64, and 32 more for each 256 of these."""
SAMPLED_LAYERS = (3, 6)
"""Models with more layers are run with these numbers of layers, and the line through both is followed."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass with gradients.

    Attributes:
        role: the role that runs.
        tokens: tokens in it, padding included.
        width: its longest sequence.
        targets: positions whose log-probabilities are taken; 0 for a scalar head.
    """

    role: str
    tokens: int
    width: int
    targets: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """What decides the memory of a stage, as far as the model goes.

    Attributes:
        config: the model's configuration.
        load_in: precision of the frozen base.
        lora: shape of the adapters.
        adapters: roles that have an adapter.
        heads: roles that have a scalar head.
        trained: roles that learn.
        device: where it runs.
        packs: whether sequences are packed into one row (`packing.packs`).
    """

    config: PretrainedConfig
    load_in: LoadIn
    lora: LoraConfig
    adapters: tuple[str, ...]
    heads: tuple[str, ...]
    trained: tuple[str, ...]
    device: torch.device
    packs: bool = True


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that stay for the whole stage.

    Attributes:
        base: the frozen base.
        adapters: adapters and scalar heads.
        training: gradients and AdamW's two moments of the roles that learn.
        parameters: number of weights of the base.
        trainable: number of weights that learn.
        cache_per_token: keys and values of one token in all layers.
    """

    base: int
    adapters: int
    training: int
    parameters: int
    trainable: int
    cache_per_token: int


class DryRun:
    """One architecture, built of fake tensors; every answer is in bytes."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        config = architecture.config.get_text_config()
        self.layers: int = config.num_hidden_layers
        self.vocabulary: int = config.vocab_size
        self._dtype = base_dtype(architecture.load_in, architecture.device)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._sizes = [count for count in SAMPLED_LAYERS if count < self.layers] or [self.layers]
        self._models = {count: self._build(count) for count in self._sizes}

    def footprint(self) -> Footprint:
        """What stays, counted from the shapes of the weights."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.architecture.config, dtype=self._dtype)
        packed = QUANTISED_BYTES.get(self.architecture.load_in, self._dtype.itemsize)
        quantised = {id(layer.weight) for layer in _linear_layers(model)}
        base = sum(p.numel() * (packed if id(p) in quantised else p.element_size()) for p in model.parameters())
        trainable = round(self._over_layers(lambda roles: sum(p.numel() for p in roles.parameters().values())))
        adapters = self._over_layers(
            lambda roles: 4.0 * sum(p.numel() for p in _adapter_weights(roles, self.architecture.adapters))
        )
        config = self.architecture.config.get_text_config()
        width = config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or width
        element = self._dtype.itemsize
        return Footprint(
            base=round(base),
            adapters=round(adapters),
            training=3 * 4 * trainable,
            parameters=sum(p.numel() for p in model.parameters()),
            trainable=trainable,
            cache_per_token=2 * self.layers * heads * head_width * element,
        )

    def training(self, passes: Sequence[Pass], *, checkpointing: bool) -> int:
        """Peak of what the passes of one micro-batch and their backward take."""

        def peak(roles: Roles) -> float:
            roles.checkpoint_layers(checkpointing)
            with roles.training():
                return self._peak(roles, lambda: self._learn(roles, passes))

        return round(self._over_layers(peak))

    def reading(self, one: Pass) -> int:
        """Peak of one pass without gradients, whatever role it runs as."""
        role = self.architecture.adapters[0] if self.architecture.adapters else "base"
        scalar = one.targets == 0 and bool(self.architecture.heads)
        role = self.architecture.heads[0] if scalar else role
        read = Pass(role, one.tokens, one.width, one.targets if scalar else max(1, one.targets))

        def work(roles: Roles) -> None:
            with torch.no_grad():
                self._read(roles, read)

        # Nothing is kept from layer to layer, so that the smallest model tells.
        roles = self._models[self._sizes[0]]
        return self._peak(roles, lambda: work(roles))

    def _over_layers(self, measure: Callable[[Roles], float]) -> float:
        found = [measure(self._models[count]) for count in self._sizes]
        if len(found) == 1:
            return found[0]
        slope = (found[1] - found[0]) / (self._sizes[1] - self._sizes[0])
        return found[1] + slope * (self.layers - self._sizes[1])

    def _build(self, layers: int) -> Roles:
        spec = self.architecture
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(spec.config, dtype=self._dtype)
            model.requires_grad_(False).eval()
            _keep_layers(model, self.layers, layers)
            if spec.load_in in QUANTISED_BYTES:
                for module in _linear_layers(model):
                    module.forward = _Quantised(module).forward
            roles = Roles(model, spec.config.name_or_path)
            if roles.packs and not spec.packs:
                roles.packs = False
                model.set_attn_implementation("sdpa")
            roles.add_base("base")
            for role in spec.adapters:
                roles.add_new(role, spec.lora, 0)
            for role in spec.heads:
                roles.add_head(role)
            roles.train_only(spec.trained)
        self._make_fake(model)
        self._make_fake(roles.heads)
        roles.device = spec.device
        return roles

    def _make_fake(self, module: nn.Module) -> None:
        fake: dict[int, nn.Parameter] = {}  # tied weights stay one
        with self._mode:
            for part in module.modules():
                for name, weight in part._parameters.items():
                    if weight is not None:
                        if id(weight) not in fake:
                            fake[id(weight)] = nn.Parameter(self._empty(weight), requires_grad=weight.requires_grad)
                            if weight.requires_grad:
                                fake[id(weight)].grad = self._empty(weight)
                        part._parameters[name] = fake[id(weight)]
                for name, buffer in part._buffers.items():
                    if buffer is not None:
                        part._buffers[name] = self._empty(buffer)

    def _empty(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device=self.architecture.device)

    def _peak(self, roles: Roles, work: Callable[[], None]) -> int:
        with self._mode:
            own = [*roles.model.parameters(), *roles.model.buffers(), *roles.heads.parameters()]
            grads = [p.grad for p in own if p.grad is not None]
            with _Counted([*own, *grads]) as counted:
                work()
        peak: int = counted.peak
        return peak

    def _learn(self, roles: Roles, passes: Sequence[Pass]) -> None:
        total = torch.stack([self._read(roles, one) for one in passes]).sum()
        total.backward()  # type: ignore[no-untyped-call]

    def _read(self, roles: Roles, one: Pass) -> Tensor:
        """The sum of what a pass finds; its tokens as sequences of equal length."""
        count = max(1, round(one.tokens / one.width))
        sequence = TokenSequence((0,) * max(2, round(one.tokens / count)), 1)
        hidden = roles.hidden(one.role, arrange(roles, [sequence] * count, 0))
        if not one.targets:
            scores: Tensor = roles.head_of(one.role)(hidden[:count].float())
            return scores.sum()
        targets = torch.zeros(min(one.targets, len(hidden)), dtype=torch.long, device=hidden.device)
        logps, _ = fused_token_logps(
            hidden[targets],
            roles.head.weight,  # type: ignore[arg-type]
            targets,
            bias=getattr(roles.head, "bias", None),
            shape=head_shape(roles.model),
        )
        return logps.sum()


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that is made inside and still alive."""

    def __init__(self, present: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
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
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


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


def _linear_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that are quantised: every linear one but the head."""
    head = model.get_output_embeddings()
    return [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]


def _keep_layers(model: PreTrainedModel, present: int, kept: int) -> None:
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == present:
                setattr(module, name, child[:kept])


def _adapter_weights(roles: Roles, names: Sequence[str]) -> Iterator[nn.Parameter]:
    for _, parameter in roles._adapter_parameters(names):
        yield parameter
    yield from roles.heads.parameters()
