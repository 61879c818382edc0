"""Tokenizer, chat template and stop tokens of an exported model, checked to give the same token ids as in training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from alignment_core.data.rendering.engine.program import DATE_STRING
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.errors import ModelError
from alignment_core.inference.trained_model import TrainedModel
from alignment_core.own_code import code_digest, may_run
from alignment_core.records import Conversation

WITHOUT_BOS = "{%- set bos_token = '' -%}\n"
"""Template prefix that suppresses BOS.

Our built-in templates write no BOS for a tokenizer that adds none, but transformers passes the tokenizer's BOS token to
every template.
"""

UNCUT = 2**20
"""Maximum length in tokens. An exported model may use its full context, not only the training length."""

PROMPTS: tuple[Conversation, ...] = (
    ({"role": "user", "content": "Tell me a short story about a dog and a red ball."},),
    ({"role": "user", "content": "What is two plus three? Explain in one sentence.\n\nThen stop."},),
    (
        {"role": "user", "content": "Hello, who are you?"},
        {"role": "assistant", "content": "I am here to help."},
        {"role": "user", "content": "Wie geht es dir — heute, Günther? 你好 👋"},
    ),
)


def open_renderer(origin: TrainedModel) -> Renderer:
    """Return a renderer with the tokenizer and template of the training."""
    return Renderer.of_model(
        origin.base,
        origin.revision,
        chat_template=origin.template,
        max_length=UNCUT,
        own_code=origin.own_code,
    )


def write_tokenizer_files(origin: TrainedModel, renderer: Renderer, folder: Path) -> None:
    """Write the base model's tokenizer files, the chat template of the training, and all stop tokens.

    Raises:
        ModelError: the written tokenizer does not give the same ids as in training.
    """
    base, revision = origin.base, origin.revision
    tokenizer = AutoTokenizer.from_pretrained(
        base, revision=revision, trust_remote_code=may_run(base, revision, origin.own_code)
    )
    for template in (renderer.template, WITHOUT_BOS + renderer.template):
        tokenizer.chat_template = template
        if not _differing(tokenizer, renderer):
            break
    tokenizer.save_pretrained(folder)
    try:
        generation = GenerationConfig.from_pretrained(origin.base, revision=origin.revision)
    except OSError:
        generation = GenerationConfig()
    generation.eos_token_id = list(renderer.stop_ids)
    if generation.pad_token_id is None or generation.pad_token_id in renderer.stop_ids:
        generation.pad_token_id = renderer.pad_id
    generation.to_json_file(folder / "generation_config.json", use_diff=True)
    check_tokenizer_files(folder, renderer, written_code(origin, folder))


def written_code(origin: TrainedModel, folder: Path) -> str | None:
    """Return the digest of the model's own code in an exported folder, where transformers has copied it, or None."""
    return None if origin.own_code is None else code_digest(str(folder), None)


def check_tokenizer_files(folder: Path, renderer: Renderer, own_code: str | None = None) -> None:
    """Read the folder back and check that token ids and stop tokens are those of the training.

    Args:
        folder: the folder.
        renderer: the renderer of the training.
        own_code: digest of the model's own code in the folder, if it may run.

    Raises:
        ModelError: they differ.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=may_run(str(folder), None, own_code))
    if differing := _differing(tokenizer, renderer):
        raise ModelError(
            "the exported chat template does not render a conversation as in training",
            where=str(folder),
            got=differing[1],
            expected=differing[0],
        )
    stops = GenerationConfig.from_pretrained(folder).eos_token_id
    if set(stops if isinstance(stops, list) else [stops]) != set(renderer.stop_ids):
        raise ModelError(
            "the exported model does not have the stop tokens of the training",
            where=f"{folder}/generation_config.json",
            got=f"eos_token_id {stops}",
            expected=list(renderer.stop_ids),
        )


def _differing(tokenizer: Any, renderer: Renderer) -> tuple[str, str] | None:
    """Return the first prompt that the two render differently, as the texts of the renderer and of the tokenizer."""
    for messages in PROMPTS:
        ours = list(renderer.prompt(messages).ids)
        theirs = _ids(tokenizer, messages)
        if ours != theirs:
            return repr(tokenizer.decode(ours)), repr(tokenizer.decode(theirs))
    return None


def _ids(tokenizer: Any, messages: Conversation) -> list[int]:
    found = tokenizer.apply_chat_template(
        [dict(message) for message in messages], add_generation_prompt=True, tokenize=True, date_string=DATE_STRING
    )
    return list(found["input_ids"] if isinstance(found, Mapping) else found)
