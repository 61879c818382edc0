"""How much memory a model's forward and backward passes take, measured by running them on fake tensors.

A fake tensor has a shape, dtype and device but no storage. The passes run the model's own code on fake tensors, and
every allocation and release is counted. The count therefore includes what this architecture, precision and attention
keep for backward, without a formula for each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignment_core.devices import planned_for_card
from alignment_core.errors import ModelError
from alignment_core.models.base.layers import keep_layers, unquantised
from alignment_core.models.base.loading import bare_model, base_dtype
from alignment_core.models.memory.architecture import Architecture, Footprint, Pass, fake_device
from alignment_core.models.memory.classifier_size import ClassifierSize
from alignment_core.models.memory.counting import (
    QUANTISED_BYTES,
    AllocationCounter,
    emulate_quantised,
    make_fake,
    mapped_weight_bytes,
    training_bytes,
    weight_bytes,
)
from alignment_core.models.memory.experts import measure_experts
from alignment_core.models.memory.glibc_heap import heap_for
from alignment_core.models.passes.batching import cache_width, generation_cache_factor
from alignment_core.models.passes.packing import REFUSALS, packed, padded
from alignment_core.models.roles.logps import (
    arrange,
    completion_mask,
    flat_targets,
    predicting_positions,
    read_scalars,
    read_states,
    read_targets,
    target_mask,
)
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence

UNKNOWN_SHAPES = (DataDependentOutputException, DynamicOutputShapeException)
SAMPLED_LAYERS = (4, 8)
"""Models with more layers are run with each of these numbers of layers, and the results are extrapolated linearly. In a
hybrid of two types of layers, one of them is usually every second or fourth layer."""
FLOAT16 = "this GPU has no bf16: stages compute in float16, with a scaled loss"


class DryRun:
    """One architecture, built from fake tensors. Sizes are in bytes."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        config = architecture.config.get_text_config()
        self.layers: int = config.num_hidden_layers
        self.vocabulary: int = config.vocab_size
        self._dtype = base_dtype(architecture.load_in, architecture.device)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._sizes = list(SAMPLED_LAYERS) if self.layers > max(SAMPLED_LAYERS) else [self.layers]
        self._models = {count: self._build(count) for count in self._sizes}
        if not self._runs():  # without weights, it was assumed that the model packs
            self.architecture = replace(architecture, packs=False)
            self._models = {count: self._build(count) for count in self._sizes}
        external, load_in, device = architecture.external_reward, architecture.load_in, architecture.device
        code = architecture.external_code
        self._external = None if external is None else ClassifierSize(external, code, load_in, device)

    def _runs(self) -> bool:
        """Return whether a small packed pass runs at all, or nothing is packed."""
        roles, sequences = self._models[self._sizes[0]], (TokenSequence((0,) * 4, 2),) * 2
        if not roles.packs:
            return True
        try:
            with torch.no_grad():
                self._counted(roles, lambda: roles.hidden("base", packed(sequences)))
        except UNKNOWN_SHAPES:
            return True  # padded rows would not run either
        except REFUSALS:
            return False
        return True

    def footprint(self) -> Footprint:
        """Return what a stage holds throughout, computed from the shapes of the weights."""
        with torch.device("meta"):
            model = self._bare()
        trainable = round(self._over_layers(lambda roles: sum(p.numel() for p in roles.parameters().values())))
        moments = self.architecture.adamw
        training = self._over_layers(lambda roles: training_bytes(roles.parameters().values(), moments))
        adapters = self._over_layers(
            lambda roles: 4.0 * sum(p.numel() for p in _adapter_weights(roles, self.architecture.adapters))
        )
        snapshots = self._over_layers(
            lambda roles: 4.0 * sum(p.numel() for _, p in roles.adapter_parameters(self.architecture.snapshots))
        )
        # The other trained weights are few. Their moments are counted as if they were in 32 bits.
        own = self.architecture.parameters
        trainable, adapters, training = trainable + own, adapters + 4 * own, training + 12 * own
        config = self.architecture.config.get_text_config()
        element = self._dtype.itemsize
        base, loading = weight_bytes(model, self.architecture.load_in), 0
        if self.architecture.device.type == "cpu":
            stored = getattr(self.architecture.config, "dtype", None) or torch.float32
            base, loading = mapped_weight_bytes(model, self.architecture.load_in, stored)
        return Footprint(
            base=base,
            loading=loading,
            adapters=round(adapters),
            training=round(training),
            parameters=sum(p.numel() for p in model.parameters()),
            trainable=trainable,
            cache_per_token=self.layers * cache_width(config) * element,
            external_reward=0 if self._external is None else self._external.weights,
            snapshots=round(snapshots),
        )

    def notes(self) -> list[str]:
        """Return sentences about the type of the arithmetic, and weights that are not quantized or not trained."""
        with torch.device("meta"):
            whole = unquantised(self._bare()) if self.architecture.load_in in QUANTISED_BYTES else None
        half = (
            "this GPU has no bf16: stages compute in float16, with a scaled loss"
            if self._dtype == torch.float16
            else None
        )
        return [note for note in (half, whole, self._models[self._sizes[-1]].left_out()) if note]

    def training(self, passes: Sequence[Pass], *, checkpointing: int) -> int:
        """Return the peak of the forward passes of one micro-batch and their backward.

        Args:
            checkpointing: as in `Roles.checkpoint_layers`. Exact for the divisors of the sampled numbers of layers.
        """

        def peak(roles: Roles) -> float:
            roles.checkpoint_layers(checkpointing)
            with roles.training():
                return self._peak(roles, _learning(roles, passes))

        return round(self._over_layers(peak))

    def reading(self, one: Pass) -> int:
        """Return the peak of one pass without gradients."""
        if one.head and self._external is not None:
            return self._external.reading(one.tokens, max(len(sequence.ids) for sequence in one.sequences))
        resolved = replace(one, role=self._present(one.role))
        # Nothing is kept from layer to layer, so the smallest model is enough.
        roles = self._models[self._sizes[0]]
        with torch.no_grad():
            return self._peak(roles, _reading(roles, resolved))

    def prompting(self, rows: int, prompt: int) -> int:
        """Return the peak of the pass that reads the prompts of one generated batch."""
        arrangement, role = padded([TokenSequence((0,) * prompt, 1)] * rows, 0), self._present("policy")
        roles = self._models[self._sizes[0]]
        with torch.no_grad():
            return self._peak(roles, lambda: roles.hidden(role, arrangement))

    def _present(self, role: str) -> str:
        """Return the role, or `base` if it has no adapter."""
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
                emulate_quantised(model)
            measure_experts(model)
            roles = Roles(model, spec.config.name_or_path)
            if roles.packs and not spec.packs:
                roles.packs = False
                model.set_attn_implementation("sdpa")
            roles.reach = spec.reach
            roles.add_base("base")
            for role in spec.adapters:
                roles.add_new(role, spec.lora, 0)
            for role in spec.heads:
                roles.add_head(role)
            roles.train_only(spec.trained)
        for module in (model, roles.heads):
            make_fake(module, self._mode, fake_device(spec.device))
        roles.device = fake_device(spec.device)
        return roles

    def _bare(self) -> PreTrainedModel:
        """Build the model from a copy of its configuration, because transformers writes into it."""
        config, own_code = copy.deepcopy(self.architecture.config), self.architecture.own_code
        model = bare_model(AutoModelForCausalLM, config, own_code, dtype=self._dtype)
        # Otherwise transformers looks for padding among ids that have no content.
        vars(model.config)["pad_token_id"] = None  # past the checks of the configuration
        return model

    def _peak(self, roles: Roles, work: Callable[[], object]) -> int:
        try:
            return self._counted(roles, work)
        except UNKNOWN_SHAPES as error:
            raise ModelError(
                "the memory of this architecture cannot be predicted, because its shapes depend on the data",
                where=f"model.base {self.architecture.config.name_or_path}",
                got=self.architecture.config.model_type,
                do="Choose a base model of another architecture",
            ) from error

    def _counted(self, roles: Roles, work: Callable[[], object]) -> int:
        with self._mode:
            own = [*roles.model.parameters(), *roles.model.buffers(), *roles.heads.parameters()]
            grads = [p.grad for p in own if p.grad is not None]
            planned = planned_for_card(self.architecture.device.type == "cuda")
            with planned, AllocationCounter([*own, *grads], heap_for(self.architecture.device.type)) as counted:
                work()
        peak: int = counted.peak
        return peak

    def generating(self, rows: int, tokens: int, cache_per_token: int) -> int:
        """Return the peak of the KV cache of `rows` responses with their prompts.

        While finished rows are removed, the keys or the values of one layer exist twice.
        """
        return round(cache_per_token * rows * tokens * (1 + 1 / (2 * self.layers)))

    def generation_cache_factor(self, *, checkpointing: int) -> int:
        """Return `Roles.generation_cache_factor` of the complete model."""
        model, shown = self._models[self._sizes[0]], self._sizes[0]
        return generation_cache_factor(
            model.model,
            layers=self.layers,
            features=model.features / shown,
            kept=model.kept / shown,
            trained=len(self.architecture.trained),
            checkpointing=checkpointing,
        )


def _learning(roles: Roles, passes: Sequence[Pass]) -> Callable[[], None]:
    """Return a function that runs forward and backward of one micro-batch."""
    readings = [_reading(roles, one) for one in passes]

    def learn() -> None:
        torch.stack([read() for read in readings]).sum().backward()  # type: ignore[no-untyped-call]

    return learn


def _reading(roles: Roles, one: Pass) -> Callable[[], Tensor]:
    """Return a function that sums the outputs of a pass.

    The indices to read are computed here and not in that function, because they need the content of the sequences.
    """
    arrangement = arrange(roles, one.sequences, 0)
    mask = (completion_mask if one.head or one.hidden else target_mask)(one.sequences)
    places, targets = predicting_positions(one.sequences, arrangement, mask), flat_targets(one.sequences)
    arrangement = arrangement.read_at(places)

    def read() -> Tensor:
        device = roles.device
        if one.hidden:
            return read_states(roles, one.role, arrangement, places.to(device)).sum()
        if one.head:
            return read_scalars(roles, one.role, arrangement, places.to(device)).sum()
        return read_targets(roles, one.role, arrangement, places.to(device), targets.to(device), 1.0)[0].sum()

    return read


def _adapter_weights(roles: Roles, names: Sequence[str]) -> Iterator[nn.Parameter]:
    for _, parameter in roles.adapter_parameters(names):
        yield parameter
    yield from roles.heads.parameters()
