"""Turn a GGUF file into a model folder in Hugging Face format, with transformers' own reading of the file."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from alignment_core.errors import ArtifactError, ModelError, loading_failure
from alignment_core.models.base.gguf_counts import check_counts
from alignment_core.models.base.gguf_file import ADVICE
from alignment_core.models.base.saving import system_errors
from alignment_core.progress import Progress

DTYPE = torch.bfloat16
"""Type of the weights in the folder: that of most models on the Hub, with a rounding error far below that of the blocks
of a quantized file."""
TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors of a GGUF file that scale rotary positions. In a model folder the configuration does that."""
STEPS = 3


def describe(path: Path, where: str) -> dict[str, Any]:
    """Return what a GGUF file says about itself: architecture, quantization, name, license, number of parameters.

    Raises:
        ModelError: it cannot be read, is one part of several, or holds something else than a model.
    """
    import gguf

    try:
        check_counts(path)
        reader = gguf.GGUFReader(path)
        said = {name: field for name, field in reader.fields.items() if name.startswith(("general.", "split."))}
        facts = {name: field.contents() for name, field in said.items()}
        sizes = Counter({tensor.name: int(tensor.n_elements) for tensor in reader.tensors})
        words = reader.fields.get("tokenizer.ggml.tokens")
        tokens = 0 if words is None else len(words.data)
        kinds = Counter[str]()
        for tensor in reader.tensors:
            kinds[tensor.tensor_type.name] += int(tensor.n_elements)
        parts = int(facts.get("split.count", 1))
    except Exception as error:  # gguf raises whatever its parsing runs into
        raise ModelError(
            "the GGUF file cannot be read",
            where=where,
            got=loading_failure(error),
            do="Download it again, or install a newer `gguf`",
        ) from error
    if parts > 1:
        raise ModelError(
            f"the model is split into {parts} GGUF files, and transformers reads single files",
            where=where,
            do="Merge them once with llama.cpp's `llama-gguf-split --merge FIRST-PART MERGED`, and name the result",
        )
    kind = facts.get("general.type", "model")
    if kind != "model" or not sizes:
        problem = "the GGUF file holds no language model" if sizes else "the GGUF file holds no weights"
        raise ModelError(problem, where=where, got=kind, expected="model", do=ADVICE)
    return {
        "architecture": str(facts.get("general.architecture")),
        "quantization": _quantization(facts.get("general.file_type"), kinds),
        "tensor_types": dict(kinds.most_common()),
        "parameters": sizes.total(),
        "tokens": tokens,
        "name": facts.get("general.name"),
        "license": facts.get("general.license"),
        "scaled_positions": any(name in sizes for name in TABLES),
    }


def _quantization(file_type: int | None, kinds: Counter[str]) -> str:
    """Return llama.cpp's name of the type of a file, such as Q4_K_M."""
    from gguf import LlamaFileType

    try:
        name: str = LlamaFileType(file_type).name
    except ValueError:
        return kinds.most_common(1)[0][0]
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def write_folder(path: Path, facts: Mapping[str, Any], folder: Path, where: str, progress: Progress) -> None:
    """Dequantize a GGUF file into bfloat16, and write model, configuration and tokenizer into `folder`.

    Args:
        path: the file.
        facts: what `describe` returned for it.
        folder: a new folder in Hugging Face format.
        where: the setting that names the file.
        progress: receives the steps.

    Raises:
        ModelError: transformers cannot read this architecture from GGUF, or a weight is missing.
        ArtifactError: the disk does not have the space for it.
        OSError: a system error while writing.
    """
    _check_space(folder.parent, facts["parameters"] * DTYPE.itemsize)
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        progress.step(1, STEPS)
        model, found = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=DTYPE,
            output_loading_info=True,
            trust_remote_code=False,
            **_unpacked(),
        )
    except Exception as error:  # transformers raises a dozen types here, each caused by the file
        raise ModelError(
            "transformers cannot read this model from GGUF",
            where=where,
            got=f"architecture {facts['architecture']}, {facts['quantization']}: {loading_failure(error)}",
            do=ADVICE,
        ) from error
    progress.step(2, STEPS)
    progress.log(f"writing {facts['parameters'] * DTYPE.itemsize / 2**30:.2f} GiB")
    if missing := sorted(set(found["missing_keys"]) - set(getattr(model, "_tied_weights_keys", None) or ())):
        raise ModelError(
            "the GGUF file lacks weights of the model, or transformers does not find them in it",
            where=where,
            got=f"no {missing[0]} ({len(missing)} missing), architecture {facts['architecture']}",
            do=ADVICE,
        )
    if facts["scaled_positions"]:
        progress.warn(
            "the file scales rotary positions with a table, which transformers does not read from GGUF: the model is "
            "exact only up to the length that it was first trained with. For longer texts, name the original model"
        )
    plain = _plain(model)
    with system_errors(folder):
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _drop_tokens_from(folder / "tokenizer.json", facts["tokens"])
    progress.step(STEPS, STEPS)


def _unpacked() -> dict[str, Any]:
    """Return the option that unpacks the weights in versions of transformers that can compute with them packed."""
    import transformers

    packs = getattr(transformers, "GgufConfig", None)
    return {} if packs is None else {"quantization_config": packs(dequantize=True)}


def _plain(loaded: PreTrainedModel) -> PreTrainedModel:
    """Return the same model without its origin: transformers refuses to save one that came from a GGUF file."""
    kept = {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
    config = type(loaded.config)(**kept)
    with torch.device("meta"):
        plain: PreTrainedModel = type(loaded)(config)
    plain.to(DTYPE)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    return plain


def _drop_tokens_from(file: Path, count: int) -> None:
    """Remove the added tokens behind the first `count`, which are all that the GGUF file has.

    transformers builds a byte-level tokenizer with GPT-2's `<|endoftext|>`, for which other models have no embedding.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    found["added_tokens"] = [token for token in found["added_tokens"] if token["id"] < count]
    file.write_text(json.dumps(found, ensure_ascii=False, indent=2), encoding="utf-8")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ArtifactError(
            "the disk has no space for the unpacked model",
            where=str(folder),
            got=f"{free / 2**30:.1f} GiB free",
            expected=f"{needed / 2**30:.1f} GiB: 2 bytes for each of its weights",
            do="Free some disk space, or set `store` to a folder on another disk",
        )
