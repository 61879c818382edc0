"""Check at plan time that the target modules of LoRA exist in the base model. Loads neither torch nor weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from alignment_core.errors import ConfigError
from alignment_core.models.base.identity import ModelIdentity, model_file, read_json
from alignment_core.models.base.tensor_file import tensor_shapes

WHERE = "model.lora.target_modules"

logger = logging.getLogger(__name__)


def check_target_names(model: ModelIdentity, targets: str | Sequence[str]) -> None:
    """Check that the last part of each target is the name of a matrix in the files of weights.

    Whether peft can adapt it shows only when the model is loaded. Nothing is checked where transformers changes the
    names of weights when it loads them, and where the Hub does not say which weights a model has.

    Args:
        model: the base model.
        targets: the names in the settings, or `all-linear`.

    Raises:
        ConfigError: a target names no matrix.
        ModelError: a file of weights in a folder is not complete.
    """
    if isinstance(targets, str) or f'"{read_json(model_file(model, "config.json")).get("model_type")}"' in _renamed():
        return
    names = [name for name, shape in _shapes(model).items() if len(shape) > 1]
    known = {part for name in names for part in name.split(".")[-2:]}  # a stacked matrix has no `.weight` at its end
    unknown = [target for target in targets if target.rpartition(".")[2] not in known]
    if not names or not unknown:
        return
    inside = {parts[-2] for parts in (name.split(".") for name in names) if any(map(str.isdigit, parts))}
    raise ConfigError(
        "a target module is not a linear layer of the base model",
        where=WHERE,
        got=", ".join(unknown),
        expected="names from " + ", ".join(sorted(name for name in inside if not name.isdigit())),
    )


def _shapes(model: ModelIdentity) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight by its name; none if the Hub cannot be asked."""
    if model.revision is None:
        files = sorted(Path(model.path).glob("*.safetensors"))
        return {name: shape for file in files for name, shape in tensor_shapes(file, "model.base").items()}
    from huggingface_hub import HfApi

    try:
        found = HfApi().get_safetensors_metadata(model.path, revision=model.revision)
    except Exception as error:  # no network, no such file; the type depends on the HTTP library of the Hub's client
        logger.warning("the names of the weights of %s cannot be read before the run: %s", model.path, error)
        return {}
    headers = found.files_metadata.values()
    return {name: tuple(tensor.shape) for header in headers for name, tensor in header.tensors.items()}


@cache
def _renamed() -> str:
    """Return the text of the module of transformers that names each type of model whose weights it renames."""
    package = find_spec("transformers")
    folders = package.submodule_search_locations if package is not None else None
    module = Path(folders[0]) / "conversion_mapping.py" if folders else None
    return module.read_text(encoding="utf-8") if module is not None and module.is_file() else ""
