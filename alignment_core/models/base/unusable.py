"""Say why a path or a folder that a setting names is no model that can be trained, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from alignment_core.errors import ModelError
from alignment_core.texts import read_json_of_model

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
GGUF = ".gguf"
ADAPTER_CONFIG = "adapter_config.json"
CLASSES = {"reward.model": "AutoModelForSequenceClassification"}
"""The class of transformers that loads the model of a setting. The others are causal language models."""
CAUSAL = "AutoModelForCausalLM"


def path(place: Path, where: str) -> ModelError:
    """Return the error for a path that is not a folder."""
    if place.suffix == GGUF:
        return _gguf(place.parent, place.name, where)
    if place.is_file():
        return ModelError(
            "this is a file, but a model is a folder",
            where=where,
            got=place,
            expected="a model folder in Hugging Face format",
            do=f"Name the folder that holds its config.json, such as {place.parent}",
        )
    return ModelError(
        "there is no such folder",
        where=where,
        got=place,
        expected="a model folder in Hugging Face format, or a Hub id such as Qwen/Qwen2.5-0.5B-Instruct",
    )


def folder(place: Path, where: str) -> ModelError:
    """Return the error for a folder without config.json or without weights in safetensors."""
    names = [file.name for file in sorted(place.iterdir()) if file.is_file()]
    if found := _other_kind(str(place), names, where):
        return found
    if "config.json" in names:
        return ModelError("the model has no weights", where=where, got=place, expected="*.safetensors")
    inside = sorted(file.parent.name for name in ("config.json", ADAPTER_CONFIG) for file in place.glob(f"*/{name}"))
    return ModelError(
        "the folder contains no model: config.json is missing",
        where=where,
        got=place,
        do=f"Choose the folder that `save_pretrained` wrote{f', such as {place / inside[-1]}' if inside else ''}",
    )


def repository(repo: str, names: Iterable[str], where: str) -> ModelError:
    """Return the error for a repository on the Hub without config.json or without weights in safetensors."""
    found = _other_kind(repo, list(names), where)
    return found or ModelError("the model has no weights", where=where, got=repo, expected="*.safetensors")


def _other_kind(place: str, names: list[str], where: str) -> ModelError | None:
    """Return the error for files that are an adapter, a GGUF file or pickled weights."""
    if ADAPTER_CONFIG in names:
        return _only_adapter(place, where)
    if pickled := [name for name in names if name.endswith(PICKLED) and name != "training_args.bin"]:
        return _pickled(place, where) if "config.json" in names else _unnamed(place, pickled[0], where)
    found = next((name for name in names if name.endswith(GGUF)), None)
    return None if found is None else _gguf(place, found, where)


def _only_adapter(place: str, where: str) -> ModelError:
    base = base_of_adapter(Path(place) / ADAPTER_CONFIG)
    if where == "model.base":
        do = (
            f"To go on from it, set `model.base: {base or 'the model that it was trained on'}` and "
            f"`model.adapter: {place}`"
        )
    else:
        do = "Merge it into its base model with peft's `merge_and_unload`, and name the folder of the result"
    return ModelError(
        "this is only an adapter, without the model that it was trained on",
        where=where,
        got=place,
        expected="a folder with config.json and the model's own weights",
        do=do,
    )


def base_of_adapter(file: Path) -> str | None:
    """Return the base model that an `adapter_config.json` names, or None."""
    try:
        found = read_json_of_model(file).get("base_model_name_or_path")
    except ModelError:
        return None
    return found if found and isinstance(found, str) else None


def _pickled(place: str, where: str) -> ModelError:
    return ModelError(
        "the weights are pickled, and loading a pickle can run code",
        where=where,
        got=place,
        expected="*.safetensors",
        do="Convert them once with this command, which reads the pickle without running code, and name the new folder: "
        + _convert_command(place, where),
    )


def _unnamed(place: str, name: str, where: str) -> ModelError:
    return ModelError(
        "the folder holds weights, but config.json, which says what they are, is missing",
        where=where,
        got=f"{place}/{name}",
        do="Choose the folder that `save_pretrained` wrote",
    )


def _gguf(place: Path | str, name: str, where: str) -> ModelError:
    if where == "model.base":
        exact = "If you have the model that the file was made from, name that: it is more exact"
        local = f"Set `model.base: gguf:{place}/{name}`, which unpacks the file once. {exact}"
        remote = f"Name the model that the file was made from, or download the file and set `model.base: gguf:{name}`"
        return ModelError(
            "a GGUF file is named with `gguf:` in front",
            where=where,
            got=f"{place}/{name}",
            do=local if Path(place).is_dir() else remote,
        )
    return ModelError(
        "a GGUF file can be a base model, but not this",
        where=where,
        got=f"{place}/{name}",
        expected="a model folder in Hugging Face format",
        do="Name the model that the file was made from",
    )


def _convert_command(place: str, where: str) -> str:
    """Return the shell command that writes a model with pickled weights again as safetensors."""
    kind, out = CLASSES.get(where, CAUSAL), repr(f"{Path(place).name}-safetensors")
    model = f"M.from_pretrained({place!r}, dtype='auto', weights_only=True)"
    code = f"from transformers import {kind} as M, AutoTokenizer as T; {model}.save_pretrained({out}); "
    return f"python -c {json.dumps(f'{code}T.from_pretrained({place!r}).save_pretrained({out})')}"
