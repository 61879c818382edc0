"""Load the tokenizer, and choose the padding and stop tokens that every stage must share."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from alignment_core.data.rendering.builtin_templates import check_template_size
from alignment_core.errors import AlignmentError, ModelError, loading_failure
from alignment_core.own_code import code_may_fail, may_run
from alignment_core.texts import damaged, read_json_of_model

MOST_GROWTH = 100
"""How many times as long the normalizer may make a text. Known tokenizers stay below 40."""
LONGEST_DECOMPOSITION = 18.0
"""Characters into which Unicode decomposes one, at most (U+FDFA)."""


def load_tokenizer(path: str, revision: str | None = None, own_code: str | None = None, *, group: str = "model") -> Any:
    """Return the model's fast tokenizer, with a padding token that never stops generation.

    A reward model reads its score at the last token that is not padding, so padding must never be an end token.

    Args:
        path: folder or Hub id of the model.
        revision: the Hub commit; None for a folder.
        own_code: digest of the model's own code that may run; None: none may.
        group: the group of settings that names the model, for messages.

    Raises:
        ModelError: there is no tokenizer at `path`, it is not a fast one, or none of its tokens can be used as padding.
    """
    from transformers import AutoTokenizer

    _check_template_files(path)
    try:
        with code_may_fail(path, own_code, "tokenizer of"):
            tokenizer = AutoTokenizer.from_pretrained(
                path, revision=revision, trust_remote_code=may_run(path, revision, own_code)
            )
    except AlignmentError:
        raise
    except Exception as error:  # transformers raises a dozen types here, each caused by the files at `path`
        raise ModelError(
            "the tokenizer cannot be loaded",
            where=path,
            got=loading_failure(error, group),
            expected="a folder or Hub id with tokenizer.json",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "the tokenizer has no fast version",
            where=path,
            got=type(tokenizer).__name__,
            expected="a tokenizer backed by tokenizer.json",
            do="Convert it with transformers' `convert_slow_tokenizer`",
        )
    _check_growth(tokenizer.backend_tokenizer.normalizer, path)
    stops = {*generation_stops(path, revision)}
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in stops:
        tokenizer.pad_token = _padding(tokenizer, stops, path)
    tokenizer.padding_side = "right"
    return tokenizer


def _check_template_files(path: str) -> None:
    """Check that the files of chat templates in a folder are not too large to be read."""
    folder = Path(path)
    for file in (*folder.glob("chat_template.*"), *folder.glob("additional_chat_templates/*")):
        if file.is_file():
            check_template_size(file.stat().st_size, str(file))


def import_tokenizers_only() -> None:
    """Import transformers as where torch is not installed: with tokenizers, without models.

    Choosing a tokenizer's class makes transformers import torch, which takes seconds. For the process of a command that
    loads no model. Does nothing in a process that has already imported one of the two.
    """
    if not {"torch", "transformers"}.isdisjoint(sys.modules):
        return
    sys.modules["torch"] = cast(ModuleType, None)  # how Python marks a module that cannot be imported
    quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"  # it would say that torch is missing
    before = os.environ.get(quiet)
    os.environ[quiet] = "1"
    try:
        from transformers import AutoTokenizer  # noqa: F401
    finally:
        del sys.modules["torch"]
        os.environ.pop(quiet)
        if before is not None:
            os.environ[quiet] = before


def generation_stops(path: str, revision: str | None = None) -> tuple[int, ...]:
    """Return the token ids that stop generation from the model's `generation_config.json`. Empty if none are set."""
    file = Path(path) / "generation_config.json"
    if not Path(path).exists():
        from transformers.utils import cached_file

        found = cached_file(
            path,
            "generation_config.json",
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if found is None:
            return ()
        file = Path(found)
    if not file.exists():
        return ()
    eos = read_json_of_model(file).get("eos_token_id")
    if eos is None:
        return ()
    stops = eos if isinstance(eos, list) else [eos]
    if not all(isinstance(stop, int) for stop in stops):
        raise damaged(file, f"eos_token_id {eos!r}")
    return tuple(stops)


def _check_growth(normalizer: Any, path: str) -> None:
    """Check that the tokenizer does not make a text so long that it fills the memory.

    Raises:
        ModelError: it may become `MOST_GROWTH` times as long.
    """
    growth = 1.0 if normalizer is None else growth_of(json.loads(normalizer.__getstate__()))
    if growth > MOST_GROWTH:
        raise ModelError(
            "the tokenizer may make a text too long before it splits it",
            where=f"{path}, tokenizer.json, normalizer",
            got=f"up to {growth:.3g} times as long",
            expected=f"at most {MOST_GROWTH} times",
            do="Use another base model",
        )


def growth_of(normalizer: Mapping[str, Any]) -> float:
    """Return how many times as long a normalizer may make a text."""
    match normalizer["type"]:
        case "Sequence":
            return math.prod(growth_of(inner) for inner in normalizer["normalizers"])
        case "Replace":  # a regular expression may match single characters, and also between them
            old, new = normalizer["pattern"], len(normalizer["content"])
            return max(1.0, new / max(1, len(old["String"]))) if "String" in old else 1.0 + new
        case "Prepend":
            return 1.0 + len(normalizer["prepend"])  # of a text of one character
        case "NFKC" | "NFKD" | "Precompiled":
            return LONGEST_DECOMPOSITION
    return 1.0


def _padding(tokenizer: Any, stops: set[int], path: str) -> str:
    for token in _candidates(tokenizer):
        index = tokenizer.convert_tokens_to_ids(token)
        if index is not None and index not in stops and index != tokenizer.bos_token_id:
            return token
    raise ModelError(
        "no token can be used as padding",
        where=path,
        expected="a token that never occurs in text and is not an end token",
        do="Give the tokenizer a `pad_token` that differs from its `eos_token`",
    )


def _candidates(tokenizer: Any) -> Iterator[str]:
    """Yield tokens that never occur in text: named padding, reserved ones, `unk`, and the byte 0xFF (not in UTF-8)."""
    added = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    yield from (token for token in added if "pad" in token.lower())
    yield from (token for token in added if any(word in token.lower() for word in ("reserved", "unused", "extra")))
    if tokenizer.unk_token is not None:
        yield tokenizer.unk_token
    vocabulary = tokenizer.get_vocab()
    yield from (token for token in ("<0xFF>", "ÿ") if token in vocabulary)
