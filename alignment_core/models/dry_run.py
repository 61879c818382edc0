"""How much memory a model's forward and backward passes take, found by running them on tensors without content.

A fake tensor has shape, type and device but no storage; the passes run the model's own code on them, and every
allocation and release is counted. So the count knows what this architecture, precision and attention keep for
backward without a formula for each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from alignment_core.config import LoadIn, LoraConfig, Moments
from alignment_core.models.batching import cache_width, cached_for_learned
from alignment_core.models.classifier import ClassifierSize
from alignment_core.models.counting import (
    QUANTISED_BYTES,
    Counted,
    bytes_beside_file,
    bytes_of_training,
    bytes_of_weights,
    keep_layers,
    make_fake,
    stand_for_quantised,
)
from alignment_core.models.heap import heap_of
from alignment_core.models.load import base_dtype
from alignment_core.models.logps import (
    arrange,
    before,
    completion_mask,
    flat_targets,
    read_scalars,
    read_targets,
    target_mask,
)
from alignment_core.models.packing import padded
from alignment_core.models.roles import Roles
from alignment_core.plugin_api import TokenSequence

SAMPLED_LAYERS = (4, 8)
"""Models with more layers are run with these numbers of layers, and the line through both is followed. In a hybrid of
two kinds of layers, one of them is usually every second or fourth."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass.

    Attributes:
        role: the role that runs.
        sequences: what it reads.
        tokens: tokens in it, padding included; a prompt that is shared counts once.
        head: whether a scalar head reads its states, instead of the head over the vocabulary.
    """

    role: str
    sequences: tuple[TokenSequence, ...]
    tokens: int
    head: bool = False


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
        adamw: bits of AdamW's moments.
        external_reward: configuration of a reward model that is a model of its own; None without.
    """

    config: PretrainedConfig
    load_in: LoadIn
    lora: LoraConfig
    adapters: tuple[str, ...]
    heads: tuple[str, ...]
    trained: tuple[str, ...]
    device: torch.device
    packs: bool = True
    external_reward: PretrainedConfig | None = None
    adamw: Moments = "32bit"


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that stay for the whole stage.

    Attributes:
        base: the frozen base.
        loading: what is held beside the base while it is loaded.
        adapters: adapters and scalar heads.
        training: gradients and AdamW's two moments of the roles that learn.
        parameters: number of weights of the base.
        trainable: number of weights that learn.
        cache_per_token: keys and values of one token in all layers.
        external_reward: a reward model that is a model of its own.
    """

    base: int
    loading: int
    adapters: int
    training: int
    parameters: int
    trainable: int
    cache_per_token: int
    external_reward: int = 0


class DryRun:
    """One architecture, built of fake tensors; every answer is in bytes."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        config = architecture.config.get_text_config()
        self.layers: int = config.num_hidden_layers
        self.vocabulary: int = config.vocab_size
        self._dtype = base_dtype(architecture.load_in, architecture.device)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._sizes = list(SAMPLED_LAYERS) if self.layers > max(SAMPLED_LAYERS) else [self.layers]
        self._models = {count: self._build(count) for count in self._sizes}
        external, load_in, device = architecture.external_reward, architecture.load_in, architecture.device
        self._external = None if external is None else ClassifierSize(external, load_in, device)

    def footprint(self) -> Footprint:
        """What stays, counted from the shapes of the weights."""
        with torch.device("meta"):
            model = self._bare()
        trainable = round(self._over_layers(lambda roles: sum(p.numel() for p in roles.parameters().values())))
        moments = self.architecture.adamw
        training = self._over_layers(lambda roles: bytes_of_training(roles.parameters().values(), moments))
        adapters = self._over_layers(
            lambda roles: 4.0 * sum(p.numel() for p in _adapter_weights(roles, self.architecture.adapters))
        )
        config = self.architecture.config.get_text_config()
        element = self._dtype.itemsize
        base, loading = bytes_of_weights(model, self.architecture.load_in), 0
        if self.architecture.device.type == "cpu":
            stored = getattr(self.architecture.config, "dtype", None) or torch.float32
            base, loading = bytes_beside_file(model, self.architecture.load_in, stored)
        return Footprint(
            base=base,
            loading=loading,
            adapters=round(adapters),
            training=round(training),
            parameters=sum(p.numel() for p in model.parameters()),
            trainable=trainable,
            cache_per_token=self.layers * cache_width(config) * element,
            external_reward=0 if self._external is None else self._external.weights,
        )

    def training(self, passes: Sequence[Pass], *, checkpointing: bool) -> int:
        """Peak of what the passes of one micro-batch and their backward take."""

        def peak(roles: Roles) -> float:
            roles.checkpoint_layers(checkpointing)
            with roles.training():
                return self._peak(roles, _learning(roles, passes))

        return round(self._over_layers(peak))

    def reading(self, one: Pass) -> int:
        """Peak of one pass without gradients."""
        if one.head and self._external is not None:
            return self._external.reading(one.tokens, max(len(sequence.ids) for sequence in one.sequences))
        known = replace(one, role=self._present(one.role))
        # Nothing is kept from layer to layer, so that the smallest model tells.
        roles = self._models[self._sizes[0]]
        with torch.no_grad():
            return self._peak(roles, _reading(roles, known))

    def prompting(self, rows: int, prompt: int) -> int:
        """Peak of the pass that reads the prompts of a batch that is generated together."""
        arrangement, role = padded([TokenSequence((0,) * prompt, 1)] * rows, 0), self._present("policy")
        roles = self._models[self._sizes[0]]
        with torch.no_grad():
            return self._peak(roles, lambda: roles.hidden(role, arrangement))

    def _present(self, role: str) -> str:
        """A role without an adapter is the base."""
        return role if role in self.architecture.adapters else "base"

    def _over_layers(self, measure: Callable[[Roles], float]) -> float:
        found = [measure(self._models[count]) for count in self._sizes]
        if len(found) == 1:
            return found[0]
        slope = (found[1] - found[0]) / (self._sizes[1] - self._sizes[0])
        return found[1] + slope * (self.layers - self._sizes[1])

    def _build(self, layers: int) -> Roles:
        spec = self.architecture
        with torch.device("meta"):
            model = self._bare()
            model.requires_grad_(False).eval()
            keep_layers(model, self.layers, layers)
            if spec.load_in in QUANTISED_BYTES:
                stand_for_quantised(model)
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
        for module in (model, roles.heads):
            make_fake(module, self._mode, spec.device)
        roles.device = spec.device
        return roles

    def _bare(self) -> PreTrainedModel:
        """The model as its configuration makes it; transformers writes into that one."""
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(self.architecture.config), dtype=self._dtype
        )
        # Else transformers looks for padding among ids that have no content.
        model.config.pad_token_id = None
        return model

    def _peak(self, roles: Roles, work: Callable[[], object]) -> int:
        with self._mode:
            own = [*roles.model.parameters(), *roles.model.buffers(), *roles.heads.parameters()]
            grads = [p.grad for p in own if p.grad is not None]
            with Counted([*own, *grads], heap_of(self.architecture.device.type)) as counted:
                work()
        peak: int = counted.peak
        return peak

    def generating(self, rows: int, tokens: int, cache_per_token: int) -> int:
        """Peak of the keys and values of `rows` responses with their prompts; one layer's twice while rows leave."""
        return round(cache_per_token * rows * tokens * (1 + 1 / (2 * self.layers)))

    def cached_for_learned(self, *, checkpointing: bool) -> int:
        """`Roles.cached_for_learned` of the whole model."""
        model, shown = self._models[self._sizes[0]], self._sizes[0]
        return cached_for_learned(
            model.model,
            layers=self.layers,
            features=model.features / shown,
            trained=len(self.architecture.trained),
            checkpointing=checkpointing,
        )


def _learning(roles: Roles, passes: Sequence[Pass]) -> Callable[[], None]:
    """Forward and backward of one micro-batch."""
    readings = [_reading(roles, one) for one in passes]

    def learn() -> None:
        torch.stack([read() for read in readings]).sum().backward()  # type: ignore[no-untyped-call]

    return learn


def _reading(roles: Roles, one: Pass) -> Callable[[], Tensor]:
    """The sum of what a pass finds; where it looks is worked out at once, with the sequences' content."""
    arrangement = arrange(roles, one.sequences, 0)
    mask = (completion_mask if one.head else target_mask)(one.sequences)
    places, targets = before(one.sequences, arrangement, mask), flat_targets(one.sequences)
    arrangement = arrangement.read_at(places)

    def read() -> Tensor:
        device = roles.device
        if one.head:
            return read_scalars(roles, one.role, arrangement, places.to(device)).sum()
        return read_targets(roles, one.role, arrangement, places.to(device), targets.to(device), 1.0)[0].sum()

    return read


def _adapter_weights(roles: Roles, names: Sequence[str]) -> Iterator[nn.Parameter]:
    for _, parameter in roles.adapter_parameters(names):
        yield parameter
    yield from roles.heads.parameters()
