"""Check at plan time that a base model can be trained as the settings ask. Loads neither torch nor weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment_core.errors import ModelError
from alignment_core.models.base.config_sizes import check_against_weights, check_sizes
from alignment_core.models.base.identity import ModelIdentity, model_file, read_json
from alignment_core.models.base.tensor_file import tensor_shapes
from alignment_core.models.base.unusable import ADAPTER_CONFIG
from alignment_core.own_code import refuse_kernels
from alignment_core.texts import damaged, read_text_of_model

POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")
"""Names under which configurations hold the number of positions."""
KINDS = {"model_type": str, "quantization_config": dict, "rope_parameters": dict, "rope_scaling": dict}
"""The kind of each field of a configuration that is read as more than a number."""
SHOWN = 80
"""Number of characters of a wrong value that are shown."""
TABLES = {
    "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot", "blenderbot-small",
    "camembert", "codegen", "ctrl", "data2vec-text", "electra", "ernie", "git", "gpt2", "gpt_bigcode", "gpt_neo",
    "gptj", "marian", "mbart", "megatron-bert", "mvp", "openai-gpt", "opt", "pegasus", "plbart", "prophetnet",
    "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "trocr", "whisper", "xlm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Model types that look positions up in a table, which ends. The others compute them."""
RESPONSE_SHARE = 4
"""A prompt for generation leaves at least 1/4 of the maximum length for the response."""
MEDIA = re.compile(r"image|audio|video|vision|media|soft_token", re.IGNORECASE)
"""Special tokens for other inputs than text. No text becomes one of them."""


def check_files(model: ModelIdentity, where: str) -> None:
    """Check that the files of weights in a folder are complete, and that config.json names possible sizes and no code.

    Raises:
        ModelError: a file is missing, is not complete or was not downloaded, a size is none or contradicts the weights,
            or the configuration names code in another repository.
    """
    config, place = _config(model), f"{model.path}/config.json"
    refuse_kernels(config, model.path, where)
    check_sizes(config, place)
    if model.revision is not None:
        return
    folder = Path(model.path)
    for index in folder.glob("*.safetensors.index.json"):
        weights = read_json(index).get("weight_map", {})
        names = list(weights.values()) if isinstance(weights, dict) else [weights]
        if odd := [name for name in names if not isinstance(name, str) or name != Path(name).name]:
            raise damaged(index, f"weights in {odd[0]!r}, which is no file beside it")
        shards = sorted(set(names))
        if missing := [name for name in shards if not _is_file(folder / name)]:
            raise ModelError(
                "a file of weights is missing",
                where=where,
                got=f"no {missing[0][:SHOWN]} in {folder} ({len(missing)} of {len(shards)} are missing)",
                do="Download the model again",
            )
    shapes = [shape for file in sorted(folder.glob("*.safetensors")) for shape in tensor_shapes(file, where).values()]
    check_against_weights(_text_config(config), shapes, place)


def check_no_adapter(model: ModelIdentity, where: str, adapter: str | None = None) -> None:
    """Check that the folder of a model has no adapter of its own, unless the settings name an adapter.

    transformers would load both as one model.

    Raises:
        ModelError: it has one.
    """
    if adapter is not None or model_file(model, ADAPTER_CONFIG) is None:
        return
    place = "the folder" if model.revision is None else "a downloaded copy"
    away = f"move {ADAPTER_CONFIG} and the adapter's weights out of {place} to use the model alone"
    raise ModelError(
        "the folder has an adapter of its own beside the model, and it is not clear whether it is meant",
        where=where,
        got=f"{model.path}/{ADAPTER_CONFIG}",
        do=f"Set `model.adapter: {model.path}` to go on from the adapter, or {away}"
        if where == "model.base"
        else f"Merge it into the model with peft's `merge_and_unload`, or {away}",
    )


def check_precision(model: ModelIdentity, load_in: str, where: str) -> None:
    """Check that a model that is quantized already is so as `model.load_in` says.

    Raises:
        ModelError: it is quantized in another way, in which transformers would load it whatever `load_in` is.
    """
    config = _config(model)
    found = config.get("quantization_config") or _text_config(config).get("quantization_config")
    if not found:
        return
    method = str(found.get("quant_method") or "bitsandbytes")
    kind, same = method, None
    if method == "bitsandbytes":
        kind = f"bitsandbytes {found.get('bnb_4bit_quant_type', 'fp4')}" if found.get("load_in_4bit") else "int8"
        same = {"bitsandbytes nf4": "nf4", "int8": "int8"}.get(kind)
    if same == load_in:
        return
    setting = f"`load_in: {load_in}` would have no effect"
    original = "name the model in 16 bits that it was made from"
    raise ModelError(
        "the model is quantized already",
        where=where,
        got=f"{kind} in {model.path}, so that {setting}",
        do=f"Set `model.load_in: {same}`, or {original}" if same else original.capitalize(),
    )


def table_of_positions(model: ModelIdentity) -> int | None:
    """Return how many positions a model has, if it looks them up in a table. None: it computes them."""
    config = _config(model)
    text = _text_config(config)
    if not {config.get("model_type"), text.get("model_type")} & TABLES:
        return None
    return min((text[name] for name in POSITIONS if isinstance(text.get(name), int)), default=None)


def positions_made_for(model: ModelIdentity) -> int | None:
    """Return the number of positions that a model was made for, its extension of rotary positions included, or None."""
    text = _text_config(_config(model))
    positions = text.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
    factor = scaling.get("factor")
    return math.ceil(positions * factor) if isinstance(factor, int | float) and factor > 1 else positions


def check_positions(model: ModelIdentity, max_length: int, responses: Mapping[str, int], where: str) -> None:
    """Check that a model has as many positions as the longest row, if it looks them up in a table.

    Args:
        model: the model.
        max_length: maximum length of a row in tokens.
        responses: maximum length of a sampled response, by the setting that names it.
        where: the setting that names the model.

    Raises:
        ModelError: it has fewer.
    """
    positions = table_of_positions(model)
    if positions is None:
        return
    if positions < max_length:
        raise ModelError(
            f"the model has {positions} positions, and `model.max_length` allows rows of {max_length} tokens",
            where=f"{where} {model.path}",
            do=f"Set `model.max_length` to {positions} or less",
        )
    prompt = max_length - max_length // RESPONSE_SHARE
    for setting, response in responses.items():
        if prompt + response > positions:
            raise ModelError(
                f"the model has {positions} positions, and a prompt of up to {prompt} tokens (3/4 of "
                f"`model.max_length`) with a response of up to {response} needs {prompt + response}",
                where=f"{where} {model.path}",
                do=f"Set `{setting}` to {positions - prompt} or less, or lower `model.max_length`",
            )


def rows_to_add(model: ModelIdentity, chat_template: str | None, where: str, *, resize: bool) -> int | None:
    """Return how many rows the embedding needs for all tokens of the tokenizer. None: it has enough.

    Args:
        model: the model.
        chat_template: text of the chat template in the settings.
        where: the setting that names the model.
        resize: whether the settings ask for rows for tokens that have none.

    Raises:
        ModelError: a token without a row can occur, and `resize` is false.
    """
    rows = _text_config(_config(model)).get("vocab_size")
    if not isinstance(rows, int):
        return None
    try:
        tokens = {token: number for token, number in _added_tokens(model).items() if number >= rows}
        last = max([*tokens.values(), _last_word(model)], default=-1)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        files = "tokenizer.json, tokenizer_config.json or added_tokens.json"
        raise damaged(f"{where} {model.path}: {files}", f"{type(error).__name__}: {error}") from error
    if last < rows or (tokens and last <= max(tokens.values()) and _never_occur(model, tokens, chat_template)):
        return None
    if resize:
        return last + 1
    some = ", ".join(sorted(tokens, key=lambda token: tokens[token])[:3])
    raise ModelError(
        f"the tokenizer has {last + 1} tokens, and the model's embedding has {rows} rows",
        where=f"{where} {model.path}",
        got=f"no row for {some}" if some else None,
        do=("Set `model.resize_embeddings: true` to add rows, or use" if where == "model.base" else "Use")
        + " the tokenizer that the model was trained with",
    )


def _never_occur(model: ModelIdentity, tokens: Mapping[str, int], chat_template: str | None) -> bool:
    """Return whether these tokens stand for other inputs than text, and no chat template writes them."""
    config = read_json(model_file(model, "tokenizer_config.json"))
    own = model_file(model, "chat_template.jinja")
    templates = [chat_template or "", json.dumps(config.get("chat_template")) if chat_template is None else ""]
    if chat_template is None and own is not None:
        templates.append(read_text_of_model(own))
    return all(
        # A token with "pad" in its name may be chosen as padding.
        MEDIA.search(token) and "pad" not in token.lower() and not any(token in text for text in templates)
        for token in tokens
    )


def _added_tokens(model: ModelIdentity) -> dict[str, int]:
    """Return the tokens that were added to the vocabulary, from every file that may name them."""
    found: dict[str, int] = {}
    for item in read_json(model_file(model, "tokenizer.json")).get("added_tokens") or ():
        found[item["content"]] = int(item["id"])
    decoder = read_json(model_file(model, "tokenizer_config.json")).get("added_tokens_decoder") or {}
    found |= {item["content"]: int(number) for number, item in decoder.items()}
    return found | {token: int(number) for token, number in read_json(model_file(model, "added_tokens.json")).items()}


def _last_word(model: ModelIdentity) -> int:
    """Return the highest id of the vocabulary in tokenizer.json, or -1."""
    words = read_json(model_file(model, "tokenizer.json")).get("model", {}).get("vocab") or ()
    return int(max(words.values())) if isinstance(words, dict) else len(words) - 1


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is longer than that of any file
        return False


def _config(model: ModelIdentity) -> dict[str, Any]:
    """Return the content of config.json. The groups and names that are read here are of the right kind.

    Raises:
        ModelError: they are not, or the file cannot be read.
    """
    config = read_json(model_file(model, "config.json"))
    for part in (config, _text_config(config)):
        for name, kind in KINDS.items():
            if (value := part.get(name)) is not None and not isinstance(value, kind):
                raise damaged(f"{model.path}/config.json", f"{name} {str(value)[:SHOWN]}")
    return config


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that describes the language model."""
    found = next((config[name] for name in ("text_config", "llm_config") if isinstance(config.get(name), dict)), None)
    return {**config, **found} if found else config
