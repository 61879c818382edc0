"""Decide which weights of a base model get an adapter, as far as peft can adapt them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from types import FunctionType

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.lora.model import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment_core.errors import ConfigError
from alignment_core.models.base.layers import inner_matrices, short_names
from alignment_core.texts import percent

WHERE = "model.lora.target_modules"
ALL_LINEAR = "all-linear"
ABOUT = "dtype|device|shape|size|dim|ndim|numel|element_size|is_|requires_grad|data_ptr|stride"
"""Attributes of a weight that say something about it and are no part of a computation."""
PLAIN_FORWARDS = {kind.forward for kind in (nn.Linear, Conv1D, Linear4bit, Linear8bitLt)}


def fit_targets(model: PreTrainedModel, config: PeftLoraConfig) -> None:
    """Narrow the targets of `config` to what peft can adapt in this model. `all-linear` includes stacked experts.

    peft reads the old names of experts as the stacked parameters that they are now. It does so here and whenever the
    adapter is loaded, so only the targets that remain after its own conversion are kept in a file.

    Raises:
        ConfigError: a target that the user named cannot be adapted.
    """
    everything = config.target_modules == ALL_LINEAR
    linear = _linear_by_name(model)
    if not everything:
        _check_names(model, config.target_modules, linear)
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError as error:
        raise refused_by_peft(error) from error
    names = linear if config.target_modules == ALL_LINEAR else _ending(linear, config.target_modules)
    kept = _keep_their_names(model, config, names)
    fitting = {name for name in kept if _adaptable(model, config, name, linear[name])}
    if len(fitting) < len(names):
        if not everything:
            raise refused_by_peft(min(set(names) - fitting))
        config.target_modules = fitting
    if everything and not config.target_parameters:
        config.target_parameters = _experts(model) or None
    if config.target_parameters and (config.lora_dropout or config.use_dora):
        if not everything:
            raise refused_by_peft(f"{', '.join(sorted(config.target_parameters))} with dropout or DoRA")
        config.target_parameters, config.rank_pattern, config.alpha_pattern = None, {}, {}


def refused_by_peft(reason: object) -> ConfigError:
    """Return the error for targets that peft refuses."""
    return ConfigError(
        "peft cannot adapt a target module",
        where=WHERE,
        got=str(reason).strip().partition("\n")[0],
        do="Remove it, or choose `all-linear`, which leaves out what cannot be adapted",
    )


def without_adapter(model: PreTrainedModel) -> str | None:
    """Return a sentence about the matrices inside the layers that have no adapter; None if all have one."""
    adapted = {id(_adapted(layer)) for layer in model.modules() if isinstance(layer, BaseTunerLayer)}
    matrices = list(inner_matrices(model))
    left = [matrix for matrix in matrices if id(matrix.parameter) not in adapted]
    if not left:
        return None
    share = sum(matrix.elements for matrix in left) / sum(matrix.elements for matrix in matrices)
    names = short_names(m.name for m in left)
    return f"no adapter on {names}: {percent(share, 1)} of the weights inside the layers stay fixed"


def _adapted(layer: BaseTunerLayer) -> Tensor | None:
    return layer.get_param() if isinstance(layer, ParamWrapper) else getattr(layer.get_base_layer(), "weight", None)


def _linear_by_name(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear layers other than the head, by their names in the model without adapters."""
    head, found = model.get_output_embeddings(), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".lora_" not in name:
            found[name.replace(".base_layer", "")] = module
    return found


def _ending(names: Iterable[str], targets: Iterable[str]) -> list[str]:
    endings = tuple(f".{target}" for target in targets)
    return [name for name in names if f".{name}".endswith(endings)]


def _check_names(model: PreTrainedModel, targets: Iterable[str], linear: dict[str, nn.Module]) -> None:
    """Check that each target is a linear layer other than the head, or the old name of an expert.

    peft itself ignores an unknown name if another one matches.

    Raises:
        ConfigError: a target names no such layer.
    """
    unknown = [target for target in targets if not _ending(linear, [target])]
    if unknown and not _old_names(model, unknown):
        raise ConfigError(
            "a target module is not a linear layer of the base model",
            where=WHERE,
            got=", ".join(unknown),
            expected="names from " + ", ".join(sorted({name.rpartition(".")[2] for name in linear})),
        )


def _old_names(model: PreTrainedModel, names: list[str]) -> bool:
    """Return whether peft knows all these names as old names of experts."""
    trial = PeftLoraConfig(target_modules=names)
    try:
        convert_peft_config_for_transformers(trial, model, None)
    except ValueError:  # one of two that are one parameter now; the conversion of the complete list decides
        return True
    return not trial.target_modules


def _keep_their_names(model: PreTrainedModel, config: PeftLoraConfig, names: Iterable[str]) -> set[str]:
    """Return the names that peft does not take for those of an older version when it loads the adapter.

    It would rename their weights, not find the layer, and go on without them.
    """
    keys = {f"base_model.model.{name}.lora_A.weight": name for name in names}
    saved = {key: torch.zeros(2, 2) for key in keys}
    found = convert_peft_adapter_state_dict_for_transformers(model, config, saved)
    return {name for key, name in keys.items() if key in found}


def _adaptable(model: PreTrainedModel, config: PeftLoraConfig, name: str, layer: nn.Module) -> bool:
    """Return whether peft accepts the layer, and adding to its output makes sense."""
    try:
        LoraModel._check_target_module_compatiblity(None, config, model, name.rpartition(".")[2])
    except ValueError:  # an architecture whose kernels read the weight past the layer
        return False
    if _is_read_past(model, name):
        return False
    if type(layer).forward in PLAIN_FORWARDS or not isinstance(layer, nn.Linear):
        return True
    x = torch.zeros(1, 2, layer.in_features, device=layer.weight.device, dtype=layer.weight.dtype)
    try:
        with torch.no_grad():
            output = layer(x)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return isinstance(output, Tensor) and output.shape == (1, 2, layer.out_features)  # a router returns a tuple


def _is_read_past(model: PreTrainedModel, name: str) -> bool:
    """Return whether a method computes with the weight of a layer instead of calling it: an adapter has no part there.

    Mamba's `dt_proj` is called only if it is quantized. Elsewhere a method that does both calls the layer as a rule.
    """
    owner, _, child = name.rpartition(".")
    weight = re.compile(rf"\bself\.{child}\.weight\b(?!\.({ABOUT}))")
    methods = [part for part in vars(type(model.get_submodule(owner))).values() if inspect.isfunction(part)]
    sources = [source for source in map(_source, methods) if weight.search(source)]
    return any(child == "dt_proj" or f"self.{child}(" not in source for source in sources)


@cache
def _source(method: FunctionType) -> str:
    """Return the source of a method. Empty if it is not there, or if the method only initializes weights."""
    with suppress(OSError):
        return "" if "init" in method.__name__ else inspect.getsource(method)
    return ""


def _experts(model: PreTrainedModel) -> list[str]:
    """Return the parameters that stack the matrices of experts, by the ends of their names."""
    stacked = [m.name for m in inner_matrices(model) if m.parameter.dim() == 3 and _of_experts(model, m.name)]
    ends = sorted({".".join(name.split(".")[-2:]) for name in stacked})
    every = [name.replace(".base_layer", "") for name, _ in model.named_parameters()]
    return ends if len(_ending(every, ends)) == len(stacked) else sorted(stacked)


def _of_experts(model: PreTrainedModel, name: str) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    owner = owner.get_base_layer() if isinstance(owner, BaseTunerLayer) else owner
    return "expert" in type(owner).__name__.lower() and not isinstance(owner, nn.modules.conv._ConvNd)
