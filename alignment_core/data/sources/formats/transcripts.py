"""Anthropic HH: complete transcripts as text, `\\n\\nHuman: …\\n\\nAssistant: …`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.parsing import shapes
from alignment_core.data.sources.parsing.judgments import preference_pair
from alignment_core.data.sources.parsing.turns import checked
from alignment_core.records import Conversation, Message
from alignment_core.records.format import BadRow, Fields, Outcome, Reading, RecordFormat

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")
PREAMBLE = re.compile(r"^(?:System:[ \n]?)?")
LEFTOVERS = ("\n\nHuman", "\n\nHuman:", "\n\nAssistant", "\n\nAssistant:")
"""A speaker's name without a turn. Many HH responses end with one."""


class AnthropicHH(RecordFormat):
    """Two transcripts that differ in their last assistant turn, or the shared part as `prompt` and the two turns."""

    name: ClassVar[str] = "anthropic_hh"
    shape: ClassVar[str] = r"{prompt?, chosen: '\n\nHuman: …\n\nAssistant: …', rejected: …}"

    def matches(self, row: Fields) -> bool:
        sides = [row.get("chosen"), row.get("rejected")]
        if "prompt" in row:
            return is_transcript(row["prompt"]) and all(isinstance(side, str) for side in sides)
        return all(is_transcript(side) for side in sides)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        texts = {side: row[side] for side in ("chosen", "rejected")}
        for side, text in texts.items():
            if "prompt" in row and not _starts_with_speaker(text):  # only the response
                texts[side] = f"{row['prompt'].rstrip()} {text.lstrip()}"
        chosen, rejected = (transcript(text, side) for side, text in texts.items())
        prompt, better, worse = shapes.common_prefix(chosen, rejected)
        yield Reading(preference_pair(prompt, better, worse, None, origin))


def is_transcript(value: Any) -> bool:
    """Whether a value is a text of turns by `Human:` and `Assistant:`, perhaps after a system prompt."""
    if not isinstance(value, str) or "Human:" not in value or "\nAssistant:" not in value:
        return False
    if _starts_with_speaker(value):
        return True
    first = TURN.search(_unix(value))
    return first is not None and first.group(1) == "Human"


def as_turns(value: Any) -> Any:
    """Return the messages of a transcript, and any other value unchanged.

    Raises:
        BadRow: the transcript contains a NUL character or cannot be encoded as UTF-8.
    """
    return [turn for turn in _turns(value, "prompt") if turn["content"]] if is_transcript(value) else value


def _starts_with_speaker(text: str) -> bool:
    return text.lstrip().startswith("Human:")


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").lstrip()


def transcript(text: str, field: str) -> Conversation:
    """Split a transcript into turns. Consecutive turns of the same speaker are merged.

    Raises:
        BadRow: the transcript does not end with a non-empty assistant turn.
    """
    turns = _turns(text, field)
    if not turns or turns[-1]["role"] != "assistant":
        raise BadRow("no_assistant_turn", f"{field} does not end with an assistant turn")
    if not turns[-1]["content"]:
        raise BadRow("empty_completion", f"the last turn of {field} is empty")
    return tuple(turn for turn in turns if turn["content"])


def _turns(text: str, field: str) -> list[Message]:
    text = _unix(checked(text, field))
    marks = list(TURN.finditer(text))
    turns: list[Message] = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        role = "user" if mark.group(1) == "Human" else "assistant"
        content = _without_leftover(text[mark.end() : following.start() if following else len(text)].strip())
        if turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{content}".strip()}
        else:
            turns.append({"role": role, "content": content})
    before = PREAMBLE.sub("", text[: marks[0].start()]).strip() if marks else ""
    return [{"role": "system", "content": before}, *turns] if before else turns


def _without_leftover(content: str) -> str:
    for leftover in LEFTOVERS:
        if content.endswith(leftover):
            return content.removesuffix(leftover).rstrip()
    return content
