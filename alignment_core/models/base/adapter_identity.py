"""A LoRA adapter that training goes on from, identified by its content. Loads neither torch nor weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignment_core.artifacts.digest import tree_digest
from alignment_core.config import LoraConfig
from alignment_core.config.places import expanded
from alignment_core.errors import ModelError
from alignment_core.models.base.identity import (
    HUB_ID,
    ModelIdentity,
    files_may_be_closed,
    model_file,
    of_hub,
    read_json,
)
from alignment_core.models.base.tensor_file import tensor_shapes
from alignment_core.models.base.unusable import ADAPTER_CONFIG
from alignment_core.texts import read_text_of_model

WHERE = "model.adapter"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
SHOWN = 200
"""Number of characters of a reason that are shown."""
UNDERSTOOD = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version",
    "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "target_parameters",
    "fan_in_fan_out", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform",
    "layers_pattern", "init_lora_weights", "eva_config", "megatron_core", "qalora_group_size", "runtime_config",
}  # fmt: skip
"""Fields of `adapter_config.json` that stay the same when training goes on, or that only say how it began."""
WITHOUT_EFFECT: tuple[Any, ...] = (None, False, "none", {}, [], "")
FRESH: tuple[Any, ...] = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base model's weights unchanged."""
PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")
"""The parts of an adapter in linear layers."""


@dataclass(frozen=True)
class AdapterIdentity:
    """An adapter that is the starting point of a run.

    Attributes:
        path: absolute folder or Hub id to load it from.
        revision: commit on the Hub; None for a folder.
        content: digest of its configuration and weights, or `owner/name@commit`.
        named_base: the base model that its configuration names, or None.
        chat_template: text of the chat template in its folder, or None.
        lora: its shape. A pattern of layers or ranks is described by the largest that it can mean.
    """

    path: str
    revision: str | None
    content: str
    named_base: str | None
    chat_template: str | None
    lora: LoraConfig


def adapter_identity(path: str, revision: str | None) -> AdapterIdentity:
    """Find an adapter and return its identity.

    Raises:
        ModelError: there is none, it may not be read, or it holds more than LoRA weights of linear layers.
    """
    with files_may_be_closed(path, WHERE):
        place = _place(path, revision)
        config = read_json(model_file(place, ADAPTER_CONFIG))
        _check_config(config, place.path)
        weights = model_file(place, WEIGHTS)
        if weights is None:
            raise _no_weights(place)
        _check_weights(weights, place.path)
        folder = Path(place.path)
        return AdapterIdentity(
            path=place.path,
            revision=place.revision,
            content=place.weights or tree_digest(folder, [folder / ADAPTER_CONFIG, folder / WEIGHTS]),
            named_base=named if (named := config.get("base_model_name_or_path")) and isinstance(named, str) else None,
            chat_template=_chat_template(place),
            lora=_shape(config, place.path),
        )


def _place(path: str, revision: str | None) -> ModelIdentity:
    """Return the adapter as a model whose files can be read. Its `weights` are empty for a folder."""
    folder = expanded(path)
    if folder.is_dir():
        if revision is not None:
            raise ModelError(
                "a folder has no revisions",
                where="model.adapter_revision",
                got=revision,
                do="Remove `adapter_revision`",
            )
        if not (folder / ADAPTER_CONFIG).is_file():
            raise ModelError(
                f"the folder contains no adapter: {ADAPTER_CONFIG} is missing",
                where=WHERE,
                got=folder,
                do="Choose the folder of a LoRA adapter that peft's `save_pretrained` wrote",
            )
        return ModelIdentity(folder.name, str(folder.resolve()), None, weights="", tokenizer="")
    if folder.exists() or not HUB_ID.fullmatch(path):
        raise ModelError(
            "there is no such folder", where=WHERE, got=path, expected="the folder of a LoRA adapter, or a Hub id"
        )
    return of_hub(path, revision, WHERE, ADAPTER_CONFIG)


def _check_config(config: Mapping[str, Any], path: str) -> None:
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind != "LORA" or task not in (None, "CAUSAL_LM"):
        raise ModelError(
            "training cannot go on from this kind of adapter",
            where=WHERE,
            got=f"{kind or 'no peft_type'}{f' for {task}' if task else ''} in {path}",
            expected="a LoRA adapter of a language model (peft_type LORA, task_type CAUSAL_LM)",
        )
    unusual = [name for name, value in config.items() if name not in UNDERSTOOD and value not in WITHOUT_EFFECT]
    if (start := config.get("init_lora_weights", True)) not in FRESH:
        unusual.append(f"init_lora_weights: {start}")
    if unusual:
        raise ModelError(
            "the adapter holds or changes more than LoRA weights, so that training cannot go on from it",
            where=WHERE,
            got=f"{', '.join(unusual)} in {path}/{ADAPTER_CONFIG}",
            do="Merge it into its base model with peft's `merge_and_unload`, and set `model.base` to the result",
        )


def _no_weights(place: ModelIdentity) -> ModelError:
    if model_file(place, PICKLED) is None:
        return ModelError("the adapter has no weights", where=WHERE, got=place.path, expected=WEIGHTS)
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"save_file(torch.load({f'{place.path}/{PICKLED}'!r}, weights_only=True, map_location='cpu'), "
        f"{f'{place.path}/{WEIGHTS}'!r})"
    )
    return ModelError(
        "the adapter's weights are pickled, and loading a pickle can run code",
        where=WHERE,
        got=f"{place.path}/{PICKLED}",
        expected=WEIGHTS,
        do="Convert them once with this command, which reads the pickle without running code: "
        f"python -c {json.dumps(code)}",
    )


def _check_weights(file: Path, path: str) -> None:
    shapes = tensor_shapes(file, WHERE)
    other = [name for name in shapes if not any(f".{part}" in name for part in PARTS)]
    if other or not shapes:
        raise ModelError(
            "the adapter holds weights that are not LoRA weights of linear layers" if other else "the adapter is empty",
            where=WHERE,
            got=f"{len(other)} such weights in {path}, such as {other[0]}" if other else path,
            do="Merge it into its base model with peft's `merge_and_unload`, and set `model.base` to the result"
            if other
            else None,
        )


def _chat_template(place: ModelIdentity) -> str | None:
    """Return the chat template beside the adapter, which it was trained with."""
    if (file := model_file(place, "chat_template.jinja")) is not None:
        return read_text_of_model(file)
    found = read_json(model_file(place, "tokenizer_config.json")).get("chat_template")
    if isinstance(found, list):  # several, each with a name
        named = (item for item in found if isinstance(item, dict) and item.get("name") == "default")
        found = next(named, {}).get("template")
    return found if isinstance(found, str) else None


def _shape(config: Mapping[str, Any], path: str) -> LoraConfig:
    targets = config.get("target_modules")
    modules: Literal["all-linear"] | list[str] = (
        sorted(targets) if isinstance(targets, list) and targets else "all-linear"
    )
    try:
        return LoraConfig(
            rank=max(config["r"], *(config.get("rank_pattern") or {}).values(), 1),
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            target_modules=modules,
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).partition("For further")[0].split())
        raise ModelError(f"{ADAPTER_CONFIG} cannot be read", where=WHERE, got=f"{path}: {reason[:SHOWN]}") from error
