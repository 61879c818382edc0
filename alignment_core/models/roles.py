"""Policy, reference, reward and value model as adapters and heads on one base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from alignment_core.config import LoraConfig
from alignment_core.models.adapters import Adapters
from alignment_core.models.batching import by_budget, cached_for_learned, call_cost, linear_features
from alignment_core.models.fused import fuse
from alignment_core.models.last_layer import finish_only_what_is_read
from alignment_core.models.load import body_of, separable, takes_left_padding
from alignment_core.models.packing import (
    Arrangement,
    arranged,
    arrangement_in_force,
    packed_by_budget,
    packs,
    run_body,
    run_model,
)
from alignment_core.plugin_api import TokenSequence

T = TypeVar("T")


class Roles:
    """Every role is an adapter (or none) and perhaps a scalar head; a forward pins the role it runs as.

    `requires_grad` is decided once, by `train_only`; switching roles never touches it (peft's own `set_adapter` does).
    """

    def __init__(self, model: PreTrainedModel, path: str, revision: str | None = None) -> None:
        """
        Args:
            model: the loaded base.
            path: folder or hub id it came from, written into every saved adapter.
            revision: the hub commit, ditto.
        """
        self.model = model
        self.body, self.head = body_of(model), model.get_output_embeddings()
        fuse(model)
        self.separable = separable(model)
        self.takes_left_padding = takes_left_padding(model)
        self.device = model.device
        self.packs = packs(model, self.body)
        finish_only_what_is_read(model, self.body)
        if self.head is not None:
            self.head.register_forward_pre_hook(_in_one_block)
        self.call_cost = call_cost(model)
        self.features = linear_features(model)
        self.heads = nn.ModuleDict()
        self.trained: tuple[str, ...] = ()
        self._adapters = Adapters(model, path, revision)
        self._with_adapter: dict[str, bool] = {}
        self._active: str | None = None
        self.checkpointing = False
        self._pin_recomputation()

    # --- making roles ---------------------------------------------------------------------------------------------

    def add_base(self, role: str) -> None:
        """A role that is the base without any adapter."""
        self._with_adapter[role] = False

    def add_new(self, role: str, lora: LoraConfig, seed: int) -> None:
        """A fresh adapter: B is zero, so the role starts equal to the base."""
        self._adapters.add_new(role, lora, seed)
        self._added(role)

    def add_saved(self, role: str, folder: Path) -> None:
        """An adapter from its folder, with its scalar head if it has one."""
        score = self._adapters.add_saved(role, folder)
        self._added(role)
        if score is not None:
            self.add_head(role, score)

    def add_copy(self, role: str, of: str) -> None:
        """A role that starts with the weights of another; a copy of a role without adapter needs `add_new`."""
        if not self._with_adapter[of]:
            raise ValueError(f"role {of!r} has no adapter to copy")
        self._adapters.add_copy(role, of)
        self._added(role)
        if of in self.heads:
            self.add_head(role, self.head_of(of).weight)

    def _added(self, role: str) -> None:
        self._with_adapter[role] = True
        self._active = None

    def add_head(self, role: str, weight: Tensor | None = None) -> None:
        """A scalar head (hidden → 1, no bias) in float32; zero unless given."""
        width = self.model.config.get_text_config().hidden_size
        head = nn.Linear(width, 1, bias=False, device=self.device, dtype=torch.float32)
        with torch.no_grad():
            head.weight.zero_() if weight is None else head.weight.copy_(weight)
        self.heads[role] = head

    @property
    def adapters(self) -> tuple[str, ...]:
        """Roles that have an adapter."""
        return tuple(role for role, present in self._with_adapter.items() if present)

    def has(self, role: str) -> bool:
        """Whether this role exists."""
        return role in self._with_adapter

    def head_of(self, role: str) -> nn.Linear:
        """The scalar head of a role."""
        head = self.heads[role]
        assert isinstance(head, nn.Linear)
        return head

    # --- training -------------------------------------------------------------------------------------------------

    def train_only(self, roles: Sequence[str], *, base: bool = False) -> None:
        """Fix which weights learn, once: these roles' adapters and heads (`base`: the whole model instead)."""
        self.trained = tuple(roles)
        self.model.requires_grad_(base)
        self.heads.requires_grad_(False)
        for name, parameter in self.adapter_parameters(roles):
            parameter.requires_grad_(True)
            if parameter.dtype != torch.float32:
                raise ValueError(f"adapter weight {name} is {parameter.dtype}, expected float32")
        for role in roles:
            if role in self.heads:
                self.heads[role].requires_grad_(True)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights that learn, by a name that is stable over restarts."""
        named = {f"model.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}
        return named | {f"heads.{name}": p for name, p in self.heads.named_parameters() if p.requires_grad}

    def parameters_by_role(self) -> dict[str, list[nn.Parameter]]:
        """The weights that learn, by role; whatever is neither adapter nor head is the first role's."""
        by_role: dict[str, list[nn.Parameter]] = {role: [] for role in self.trained}
        owners = {id(p): role for role in self.trained for _, p in self.adapter_parameters([role])}
        owners |= {id(p): role for role in self.trained if role in self.heads for p in self.heads[role].parameters()}
        for parameter in self.parameters().values():
            by_role[owners.get(id(parameter), self.trained[0])].append(parameter)
        return by_role

    def adapter_parameters(self, roles: Sequence[str]) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapter weights of these roles, by kind and role."""
        return self._adapters.parameters(roles)

    def adapter_weights(self, role: str) -> dict[str, Tensor]:
        """The adapter weights of a role by their names in a PEFT file."""
        return self._adapters.weights(role)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Adapter dropout and gradient checkpointing are on inside; the base's own dropout never is."""
        self._set_training(True)
        try:
            yield
        finally:
            self._set_training(False)

    def _set_training(self, on: bool) -> None:
        for layer in self._adapters.layers:
            layer.training = on  # DoRA asks the layer itself; its base stays in eval mode
            for role in self.trained:
                if role in layer.lora_dropout:
                    layer.lora_dropout[role].train(on)

    def checkpoint_layers(self, on: bool) -> None:
        """Recompute each layer in backward instead of keeping its activations."""
        self.checkpointing = on

    def _pin_recomputation(self) -> None:
        """A recomputed layer runs as the role and with the layout of its forward, whatever is in force in backward.

        transformers' own switch needs the layer in training mode, which turns on the base's dropout in some of them.
        """
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.forward = partial(self._layer, module.forward)

    def _layer(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.checkpointing or self._active is None:
            return forward(*args, **kwargs)
        recomputed = partial(self._as, self._active, arrangement_in_force(), forward)
        return checkpoint(recomputed, *args, use_reentrant=False, **kwargs)

    # --- running as a role ----------------------------------------------------------------------------------------

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Run the body as this role; the only place where adapters are switched."""
        before, wanted = self._active, role
        self._switch(wanted)
        try:
            yield
        finally:
            if before is not None:
                self._switch(before)

    def _as(
        self, role: str, arrangement: Arrangement | None, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        with self.use(role), arranged(arrangement):
            return forward(*args, **kwargs)

    def _switch(self, role: str) -> None:
        if role == self._active:
            return
        present = self._with_adapter[role]
        for layer in self._adapters.layers:
            layer._disable_adapters = not present
            if present:
                layer._active_adapter = [role]
        self._active = role

    def hidden(self, role: str, arrangement: Arrangement) -> Tensor:
        """Last hidden states, shape (rows · length of the arrangement, width); right only where they are to be read."""
        with self.use(role), arranged(arrangement), self.autocast():
            return run_body(self.body, arrangement, self.device)

    def logits(self, role: str, arrangement: Arrangement) -> Tensor:
        """The model's own logits, shape (rows · length of the arrangement, vocabulary): for what is not `separable`."""
        with self.use(role), arranged(replace(arrangement, read=None)), self.autocast():
            return run_model(self.model, arrangement, self.device).logits.flatten(0, 1)  # type: ignore[no-any-return]

    def groups(
        self, items: Sequence[T], budget: int, sequences_of: Callable[[T], Sequence[TokenSequence]]
    ) -> list[list[int]]:
        """Indices of the items that one forward pass may hold, by how this model lays them out."""
        return (packed_by_budget if self.packs else by_budget)(items, budget, sequences_of)

    def cached_for_learned(self) -> int:
        """Tokens that a generated batch may hold for each of a micro-batch."""
        layers = self.model.config.get_text_config().num_hidden_layers
        return cached_for_learned(
            self.model,
            layers=layers,
            features=self.features / layers,
            trained=len(self.trained),
            checkpointing=self.checkpointing,
        )

    def autocast(self) -> torch.autocast:
        """bf16 arithmetic where the base is bf16 (`load.base_dtype`), with the adapters' weights in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.model.dtype == torch.bfloat16)

    def save(self, role: str, folder: Path) -> None:
        """A standard PEFT folder in safetensors; a role with a head becomes a one-label sequence classifier."""
        if not self._with_adapter[role]:
            raise ValueError(f"role {role!r} has no adapter to save")
        self._adapters.save(role, folder, self.head_of(role).weight if role in self.heads else None)


def _in_one_block(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Each row's last state is a slice with gaps, for which a CPU copies a bf16 head once per row."""
    return tuple(state.contiguous() for state in states)
