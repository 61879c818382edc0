"""Anthropic HH: whole transcripts as text, `\\n\\nHuman: …\\n\\nAssistant: …`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.formats import shapes
from alignment_core.data.formats.comparing import pair
from alignment_core.record_format import BadRow, Fields, Outcome, Reading, RecordFormat
from alignment_core.records import Conversation, Message

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")
LEFTOVERS = ("\n\nHuman", "\n\nHuman:", "\n\nAssistant", "\n\nAssistant:")
"""A speaker's name without a turn, which HH has at the end of many answers."""


class AnthropicHH(RecordFormat):
    """Two transcripts that differ in their last assistant turn; or what they share as `prompt`, and the two turns."""

    name: ClassVar[str] = "anthropic_hh"
    shape: ClassVar[str] = r"{prompt?, chosen: '\n\nHuman: …\n\nAssistant: …', rejected: …}"

    def matches(self, row: Fields) -> bool:
        sides = [row.get("chosen"), row.get("rejected")]
        if "prompt" in row:
            return _is_transcript(row["prompt"]) and all(isinstance(side, str) for side in sides)
        return all(_is_transcript(side) for side in sides)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        texts = {side: row[side] for side in ("chosen", "rejected")}
        for side, text in texts.items():
            if "prompt" in row and not _is_transcript(text):  # the answer alone
                texts[side] = f"{row['prompt'].rstrip()} {text.lstrip()}"
        chosen, rejected = (transcript(text, side) for side, text in texts.items())
        prompt, better, worse = shapes.common_prefix(chosen, rejected)
        yield Reading(pair(prompt, better, worse, None, origin))


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def transcript(text: str, field: str) -> Conversation:
    """The turns of a transcript; two turns of one speaker in a row are one.

    Raises:
        BadRow: it does not end with an assistant turn that says something.
    """
    shapes.checked(text, field)
    text = text.lstrip()
    marks = list(TURN.finditer(text))
    turns: list[Message] = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        role = "user" if mark.group(1) == "Human" else "assistant"
        content = _without_leftover(text[mark.end() : following.start() if following else len(text)].strip())
        if turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{content}".strip()}
        else:
            turns.append({"role": role, "content": content})
    if not turns or turns[-1]["role"] != "assistant":
        raise BadRow("no_assistant_turn", f"{field} does not end with an assistant turn")
    if not turns[-1]["content"]:
        raise BadRow("empty_completion", f"the last turn of {field} is empty")
    return tuple(turn for turn in turns if turn["content"])


def _without_leftover(content: str) -> str:
    for leftover in LEFTOVERS:
        if content.endswith(leftover):
            return content.removesuffix(leftover).rstrip()
    return content
