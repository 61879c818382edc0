"""Tokenizer, chat template and stop tokens of an exported model: text becomes the ids that the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from alignment_core.data.chat import FIXED_DATE
from alignment_core.data.rendering import Renderer, generation_stops, load_tokenizer
from alignment_core.errors import ModelError
from alignment_core.export.origin import Origin
from alignment_core.records import Conversation

WITHOUT_BOS = "{%- set bos_token = '' -%}\n"
"""A built-in template writes no BOS for a tokenizer that adds none; elsewhere a template is handed the tokenizer's."""

UNCUT = 2**20
"""Whoever uses the model has its whole context, not only the length that it was trained on."""

PROMPTS: tuple[Conversation, ...] = (
    ({"role": "user", "content": "Tell me a short story about a dog and a red ball."},),
    ({"role": "user", "content": "What is two plus three? Explain in one sentence.\n\nThen stop."},),
    (
        {"role": "user", "content": "Hello, who are you?"},
        {"role": "assistant", "content": "I am here to help."},
        {"role": "user", "content": "Wie geht es dir — heute, Günther? 你好 👋"},
    ),
)


def open_renderer(origin: Origin) -> Renderer:
    """Tokenizer and template as in training."""
    return Renderer(
        load_tokenizer(origin.base, origin.revision),
        chat_template=origin.template,
        max_length=UNCUT,
        generation_stops=generation_stops(origin.base, origin.revision),
    )


def write_speech(origin: Origin, renderer: Renderer, folder: Path) -> None:
    """The base's own tokenizer files, the template of the training, and every token on which an answer ends.

    Raises:
        ModelError: the tokenizer would not make the ids of the training from a conversation.
    """
    tokenizer = AutoTokenizer.from_pretrained(origin.base, revision=origin.revision)
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
    check_speech(folder, renderer)


def check_speech(folder: Path, renderer: Renderer) -> None:
    """Read the folder back: the same ids for the same conversation, the same stop tokens.

    Raises:
        ModelError: they differ.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
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
            "the exported model does not stop where it learnt to",
            where=f"{folder}/generation_config.json",
            got=f"eos_token_id {stops}",
            expected=list(renderer.stop_ids),
        )


def _differing(tokenizer: Any, renderer: Renderer) -> tuple[str, str] | None:
    """The first prompt that the two render to other ids, as the renderer's text and the tokenizer's."""
    for messages in PROMPTS:
        ours = list(renderer.prompt(messages).ids)
        theirs = _ids(tokenizer, messages)
        if ours != theirs:
            return repr(tokenizer.decode(ours)), repr(tokenizer.decode(theirs))
    return None


def _ids(tokenizer: Any, messages: Conversation) -> list[int]:
    found = tokenizer.apply_chat_template(
        [dict(message) for message in messages], add_generation_prompt=True, tokenize=True, date_string=FIXED_DATE
    )
    return list(found["input_ids"] if isinstance(found, Mapping) else found)
