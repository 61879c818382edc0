"""Policy, reference, reward and value model as adapters and heads on one base."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from alignment_core.config import LoraConfig
from alignment_core.errors import ConfigError, ModelError
from alignment_core.models.batching import by_budget, call_cost
from alignment_core.models.load import head_of
from alignment_core.models.packing import (
    Arrangement,
    Layout,
    current_layout,
    layout_in_force,
    packed_by_budget,
    packs,
    run_body,
)
from alignment_core.plugin_api import TokenSequence

ADAPTER = "adapter_model.safetensors"
SCORE_KEY = "base_model.model.score.weight"
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
        self.body, self.head = head_of(model)
        self.device = model.device
        self.path, self.revision = path, revision
        self.packs = packs(model, self.body)
        self.call_cost = call_cost(model)
        self.heads = nn.ModuleDict()
        self.trained: tuple[str, ...] = ()
        self._adapters: dict[str, str | None] = {}
        self._peft: PeftModel | None = None
        self._layers: list[BaseTunerLayer] = []
        self._active: str | None = None
        self.checkpointing = False
        self._pin_recomputation()

    # --- making roles ---------------------------------------------------------------------------------------------

    def add_base(self, role: str) -> None:
        """A role that is the base without any adapter."""
        self._adapters[role] = None

    def add_new(self, role: str, lora: LoraConfig, seed: int) -> None:
        """A fresh adapter: B is zero, so the role starts equal to the base."""
        if lora.target_modules != "all-linear":
            self._check_targets(lora.target_modules)
        torch.manual_seed(seed)
        self._add(role, self._peft_config(lora))

    def add_saved(self, role: str, folder: Path) -> None:
        """An adapter from its folder, with its scalar head if it has one."""
        config = PeftLoraConfig.from_pretrained(str(folder))
        config.modules_to_save, config.inference_mode, config.task_type = None, False, "CAUSAL_LM"
        self._add(role, config)
        weights = load_file(folder / ADAPTER)
        score = weights.pop(SCORE_KEY, None)
        self._load(role, weights, str(folder))
        if score is not None:
            self.add_head(role, score)

    def add_copy(self, role: str, of: str) -> None:
        """A role that starts with the weights of another; a copy of a role without adapter needs `add_new`."""
        adapter = self._adapters[of]
        if adapter is None or self._peft is None:
            raise ValueError(f"role {of!r} has no adapter to copy")
        self._add(role, self._peft.peft_config[adapter])
        self._load(role, self._weights(adapter), f"role {of}")
        if of in self.heads:
            self.add_head(role, self.head_of(of).weight)

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
        return tuple(role for role, adapter in self._adapters.items() if adapter is not None)

    def has(self, role: str) -> bool:
        """Whether this role exists."""
        return role in self._adapters

    def head_of(self, role: str) -> nn.Linear:
        """The scalar head of a role."""
        head = self.heads[role]
        assert isinstance(head, nn.Linear)
        return head

    def _add(self, role: str, config: PeftLoraConfig) -> None:
        if self._peft is None:
            with warnings.catch_warnings():
                # peft asks transformers 5.2x for a property by a name that is on its way out.
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
                self._peft = get_peft_model(self.model, config, adapter_name=role)
        else:
            self._peft.add_adapter(role, config)
        self._layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        self._adapters[role] = role
        self._active = None
        # A fresh adapter comes in training mode, its dropout on, and with gradients.
        self.model.eval().requires_grad_(False)

    def _weights(self, adapter: str) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = get_peft_model_state_dict(
            self._peft, adapter_name=adapter, save_embedding_layers=False
        )
        return weights

    def _load(self, role: str, weights: dict[str, Tensor], origin: str) -> None:
        present = self._weights(role)
        differing = {name for name in present.keys() | weights.keys() if not _same_shape(name, present, weights)}
        if differing:
            raise ModelError(
                "the adapter does not fit the base model",
                where=origin,
                got=f"{len(differing)} weights that are missing, unknown or of another shape, such as {min(differing)}",
                do="Use it with the base model that it was trained on",
            )
        set_peft_model_state_dict(self._peft, weights, adapter_name=role)

    def _peft_config(self, lora: LoraConfig) -> PeftLoraConfig:
        return PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in self.model.modules()),  # GPT-2
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.path,
            revision=self.revision,
        )

    def _check_targets(self, targets: Sequence[str]) -> None:
        """peft ignores a name that it does not find beside one that it does; and the head is read without adapters."""
        linear = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear | Conv1D | BaseTunerLayer) and module is not self.head
        ]
        unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in linear)]
        if unknown:
            raise ConfigError(
                "no linear layer of the base model has this name",
                where="model.lora.target_modules",
                got=", ".join(unknown),
                expected="some of " + ", ".join(sorted({name.rpartition(".")[2] for name in linear})),
            )

    # --- training -------------------------------------------------------------------------------------------------

    def train_only(self, roles: Sequence[str], *, base: bool = False) -> None:
        """Fix which weights learn, once: these roles' adapters and heads (`base`: the whole model instead)."""
        self.trained = tuple(roles)
        self.model.requires_grad_(base)
        self.heads.requires_grad_(False)
        for name, parameter in self._adapter_parameters(roles):
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
        owners = {id(p): role for role in self.trained for _, p in self._adapter_parameters([role])}
        owners |= {id(p): role for role in self.trained if role in self.heads for p in self.heads[role].parameters()}
        for parameter in self.parameters().values():
            by_role[owners.get(id(parameter), self.trained[0])].append(parameter)
        return by_role

    def _adapter_parameters(self, roles: Sequence[str]) -> Iterator[tuple[str, nn.Parameter]]:
        wanted = {self._adapters[role] for role in roles} - {None}
        for layer in self._layers:
            for kind in layer.adapter_layer_names:
                for name, module in getattr(layer, kind).items():
                    if name in wanted:
                        found = [module] if isinstance(module, nn.Parameter) else module.parameters()
                        yield from ((f"{kind}.{name}", parameter) for parameter in found)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Adapter dropout and gradient checkpointing are on inside; the base's own dropout never is."""
        self._set_training(True)
        try:
            yield
        finally:
            self._set_training(False)

    def _set_training(self, on: bool) -> None:
        for layer in self._layers:
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
        recomputed = partial(self._as, self._active, current_layout(), forward)
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

    def _as(self, role: str, layout: Layout | None, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.use(role), layout_in_force(layout):
            return forward(*args, **kwargs)

    def _switch(self, role: str) -> None:
        if role == self._active:
            return
        adapter = self._adapters[role]
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]
        self._active = role

    def hidden(self, role: str, arrangement: Arrangement) -> Tensor:
        """Last hidden states, shape (rows · length of the arrangement, width)."""
        with self.use(role), layout_in_force(arrangement.layout), self.autocast():
            return run_body(self.body, arrangement, self.device)

    def groups(
        self, items: Sequence[T], budget: int, sequences_of: Callable[[T], Sequence[TokenSequence]]
    ) -> list[list[int]]:
        """Indices of the items that one forward pass may hold, by how this model lays them out."""
        return (packed_by_budget if self.packs else by_budget)(items, budget, sequences_of)

    def autocast(self) -> torch.autocast:
        """bf16 arithmetic where the base is bf16 (`load.base_dtype`), with the adapters' weights in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.model.dtype == torch.bfloat16)

    # --- saving ---------------------------------------------------------------------------------------------------

    def save(self, role: str, folder: Path) -> None:
        """A standard PEFT folder in safetensors; a role with a head becomes a one-label sequence classifier."""
        adapter = self._adapters[role]
        if adapter is None or self._peft is None:
            raise ValueError(f"role {role!r} has no adapter to save")
        weights = self._weights(adapter)
        config = PeftLoraConfig(**self._peft.peft_config[adapter].to_dict())
        config.inference_mode = True
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
        if role in self.heads:
            weights = weights | {SCORE_KEY: self.head_of(role).weight.detach()}
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: w.detach().cpu().contiguous() for name, w in weights.items()}, folder / ADAPTER)
        config.save_pretrained(str(folder))


def _same_shape(name: str, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return name in one and name in other and one[name].shape == other[name].shape
