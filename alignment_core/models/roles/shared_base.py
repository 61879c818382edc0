"""Policy, reference, reward model and value model as adapters and heads on one base model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from alignment_core.models.base.parts import separable, transformer_body
from alignment_core.models.passes.batching import call_cost, generation_cache_factor, group_by_budget, linear_features
from alignment_core.models.passes.gated_products import keep_products, recompute_products
from alignment_core.models.passes.last_layer import skip_unread_tokens
from alignment_core.models.passes.norms_and_rope import fuse_norms_and_rope
from alignment_core.models.passes.packed_attention import enable_packing
from alignment_core.models.passes.packing import (
    Arrangement,
    current_arrangement,
    pack_by_budget,
    run_body,
    run_model,
    use_arrangement,
)
from alignment_core.models.passes.reach import find_reach
from alignment_core.models.roles.adapters import Adapters
from alignment_core.plugin_api import TokenSequence

T = TypeVar("T")


class Roles:
    """The roles on one base model. Each has at most one adapter and one scalar head; a forward pass pins its role.

    `requires_grad` is set once, by `train_only`. Switching roles never changes it, unlike peft's `set_adapter`.
    """

    def __init__(self, model: PreTrainedModel, path: str, revision: str | None = None) -> None:
        """
        Args:
            model: the loaded base model.
            path: its folder or hub id, written into every saved adapter.
            revision: its hub commit, also written into every saved adapter.
        """
        self.model = model
        self.body, self.head = transformer_body(model), model.get_output_embeddings()
        fuse_norms_and_rope(model)
        spared = recompute_products(model)
        self.separable = separable(model)
        self.device = model.device
        self.packs = enable_packing(model, self.body)
        undo = skip_unread_tokens(model, self.body)
        self.reach = find_reach(model, self.packs)
        self.packs = self.packs and self.reach.packed > 0
        if not self.reach.skips:
            undo()
        if self.head is not None:
            self.head.register_forward_pre_hook(_in_one_block)
        self.call_cost = call_cost(model)
        self.features = linear_features(model)
        self.kept = 2 * self.features - spared
        self.heads = nn.ModuleDict()
        self.extra = nn.ParameterDict()
        self.trained: tuple[str, ...] = ()
        self._adapters = Adapters(model, path, revision)
        self._with_adapter: dict[str, bool] = {}
        self._active: str | None = None
        self.checkpointing: int = False
        self._pin_recomputation()

    # --- adding roles ---------------------------------------------------------------------------------------------

    def add_base(self, role: str) -> None:
        """Add a role that is the base model without an adapter."""
        self._with_adapter[role] = False

    def add_new(self, role: str, lora: LoraConfig, seed: int) -> None:
        """Add a role with a new adapter. B is zero, so the role starts equal to the base model."""
        self._adapters.add_new(role, lora, seed)
        self._added(role)

    def add_saved(self, role: str, folder: Path) -> None:
        """Add a role from the folder of its adapter, with its scalar head if it has one."""
        score = self._adapters.add_saved(role, folder)
        self._added(role)
        if score is not None:
            self.add_head(role, score)

    def add_copy(self, role: str, of: str) -> None:
        """Add a role that starts with the weights of another. If that has no adapter, use `add_new` instead."""
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
        """Add a scalar head (hidden → 1, no bias) in float32. It is zero unless `weight` is given."""
        head = nn.Linear(self.width, 1, bias=False, device=self.device, dtype=torch.float32)
        with torch.no_grad():
            head.weight.zero_() if weight is None else head.weight.copy_(weight)
        self.heads[role] = head

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        width: int = self.model.config.get_text_config().hidden_size
        return width

    def add_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Add trained weights that belong to no role, with these initial values, in float32."""
        self.extra.update({name: nn.Parameter(value.to(self.device, torch.float32)) for name, value in values.items()})

    @property
    def adapters(self) -> tuple[str, ...]:
        """Roles that have an adapter."""
        return tuple(role for role, present in self._with_adapter.items() if present)

    def has(self, role: str) -> bool:
        """Return whether this role exists."""
        return role in self._with_adapter

    def head_of(self, role: str) -> nn.Linear:
        """Return the scalar head of a role."""
        head = self.heads[role]
        assert isinstance(head, nn.Linear)
        return head

    # --- training -------------------------------------------------------------------------------------------------

    def train_only(self, roles: Sequence[str], *, base: bool = False) -> None:
        """Set, once, which weights are trained: adapters and heads of these roles; with `base`, the complete model."""
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
        """Return the trained weights by a name that is stable across restarts."""
        named = {f"model.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}
        named |= {f"heads.{name}": p for name, p in self.heads.named_parameters() if p.requires_grad}
        return named | {f"extra.{name}": p for name, p in self.extra.items()}

    def parameters_by_role(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained weights by role, those of no role as `parameters`. The base belongs to the first role."""
        by_role: dict[str, list[nn.Parameter]] = {role: [] for role in self.trained}
        by_role |= {"parameters": list(self.extra.values())} if self.extra else {}
        owners = {id(p): role for role in self.trained for _, p in self.adapter_parameters([role])}
        owners |= {id(p): "parameters" for p in self.extra.values()}
        owners |= {id(p): role for role in self.trained if role in self.heads for p in self.heads[role].parameters()}
        for parameter in self.parameters().values():
            by_role[owners.get(id(parameter), self.trained[0])].append(parameter)
        return by_role

    def adapter_parameters(self, roles: Sequence[str]) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the adapter weights of these roles, named by kind and role."""
        return self._adapters.parameters(roles)

    def left_out(self) -> str | None:
        """Return a sentence about the weights inside the layers that no adapter trains; None if there are none."""
        return self._adapters.left_out()

    def adapter_weights(self, role: str) -> dict[str, Tensor]:
        """Return the adapter weights of a role by their names in a PEFT file."""
        return self._adapters.weights(role)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Enable adapter dropout inside the context. The base model's own dropout always stays off."""
        self._set_training(True)
        try:
            yield
        finally:
            self._set_training(False)

    def _set_training(self, on: bool) -> None:
        for layer in self._adapters.layers:
            layer.training = on  # DoRA reads this flag of the layer; the base layer stays in eval mode
            for role in self.trained:
                if role in layer.lora_dropout:
                    layer.lora_dropout[role].train(on)

    def checkpoint_layers(self, every: int) -> None:
        """Set which layers backward recomputes instead of keeping their activations.

        Args:
            every: the first of so many layers; True (1) for every layer, False (0) for none.
        """
        self.checkpointing = every

    def _pin_recomputation(self) -> None:
        """Make a recomputed layer use the role and layout of its forward pass, whatever is active in backward.

        The switch in transformers needs the layer in training mode, which in some architectures enables the base
        model's dropout.
        """
        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for number, module in enumerate(layers):
            module.forward = partial(self._layer, number, module.forward)

    def _layer(self, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.checkpointing or number % self.checkpointing or self._active is None:
            return forward(*args, **kwargs)
        recomputed = partial(self._run_as, self._active, current_arrangement(), forward)
        return checkpoint(recomputed, *args, use_reentrant=False, **kwargs)

    # --- running as a role ----------------------------------------------------------------------------------------

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Run the body as this role inside the context. Adapters are switched only here."""
        before, wanted = self._active, role
        self._switch(wanted)
        try:
            yield
        finally:
            if before is not None:
                self._switch(before)

    def _run_as(
        self, role: str, arrangement: Arrangement | None, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        with self.use(role), use_arrangement(arrangement), keep_products():
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
        """Return the last hidden states, shape (rows · length of the arrangement, width).

        Only those that the arrangement reads are valid.
        """
        with self.use(role), use_arrangement(arrangement), self.autocast():
            return run_body(self.body, arrangement, self.device)

    def logits(self, role: str, arrangement: Arrangement) -> Tensor:
        """Return the model's logits, shape (rows · length of the arrangement, vocabulary), if it is not `separable`."""
        with self.use(role), use_arrangement(replace(arrangement, read=None)), self.autocast():
            return run_model(self.model, arrangement, self.device).logits.flatten(0, 1)  # type: ignore[no-any-return]

    def groups(
        self, items: Sequence[T], budget: int, sequences_of: Callable[[T], Sequence[TokenSequence]]
    ) -> list[list[int]]:
        """Group the items into forward passes as this model lays them out. Returns groups of their indices."""
        return (pack_by_budget if self.packs else group_by_budget)(items, budget, sequences_of)

    def generation_cache_factor(self) -> int:
        """Return how many tokens a generated batch may hold per token of a micro-batch."""
        layers = self.model.config.get_text_config().num_hidden_layers
        return generation_cache_factor(
            self.model,
            layers=layers,
            features=self.features / layers,
            kept=self.kept / layers,
            trained=len(self.trained),
            checkpointing=self.checkpointing,
        )

    def autocast(self) -> torch.autocast:
        """Compute in the base model's 16-bit type if it has one (`loading.base_dtype`). Adapter weights are float32."""
        dtype = self.model.dtype
        enabled = dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, dtype if enabled else torch.bfloat16, enabled=enabled)

    def save(self, role: str, folder: Path) -> None:
        """Write a standard PEFT folder in safetensors. A role with a head becomes a one-label sequence classifier."""
        if not self._with_adapter[role]:
            raise ValueError(f"role {role!r} has no adapter to save")
        self._adapters.save(role, folder, self.head_of(role).weight if role in self.heads else None)


def _in_one_block(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Make the head's input contiguous.

    The last states of the rows are a strided slice, for which a CPU copies a bf16 head once per row.
    """
    return tuple(state.contiguous() for state in states)
