"""Find out which characters of a rendered text come from which turn.

Every string of a conversation is put between two marks, characters that occur nowhere else, and the template renders
the marked conversation. This shows where each string went, whatever the template did with it: it may trim it, write it
as JSON, drop it, or print it twice. The text without the marks must equal the text of the conversation without marks.
Where it does not, the template looked at the marks, and nothing is concluded from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from alignment_core.data.rendering.encoder import Span
from alignment_core.data.rendering.engine.sandbox import GENERATION_MARKS
from alignment_core.records import Conversation, Message

FIRST = 0x100000
"""Code point of the first mark, in the last private-use plane. A string has two."""
MOST = 0x7F00
"""Number of strings that can be marked."""
MARK = re.compile("([\U00100000-\U0010fffd])")
ESCAPED = re.compile(r"\\u(db[c-f][0-9a-f])\\u(d[c-f][0-9a-f]{2})")
"""Matches a mark as `tojson` writes it in a template that wants only ASCII."""
TOOLS, COPIES = -1, -2
"""The turns of the strings of tool definitions, and of the parts of a call that a template writes again outside of the
call, as with a tool's name before its result."""


class Piece(NamedTuple):
    """Where a string of a turn stands in the rendered text.

    `part` is content, thought, call, argument or tool. `again` marks a part of a call that was written before.
    """

    turn: int
    part: str
    start: int
    end: int
    again: bool = False


class Block(NamedTuple):
    """Consecutive pieces of one turn, and the pieces' neighbours: the text between `before` and `after` is the turn's.

    `before` and `after` are the places where the previous block ends and the next one starts.
    """

    turn: int
    before: int
    start: int
    end: int
    after: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A rendered text with the places of the conversation's strings, in their order in the text.

    `generated` holds the spans of the template's `generation` blocks. None if it has none.
    """

    text: str
    pieces: tuple[Piece, ...]
    generated: tuple[Span, ...] | None

    def parts(self) -> dict[tuple[int, str], int]:
        """Return how often each part of each turn is in the text."""
        found: dict[tuple[int, str], int] = {}
        for piece in self.pieces:
            if not piece.again:
                found[piece.turn, piece.part] = found.get((piece.turn, piece.part), 0) + 1
        return found

    def blocks(self) -> list[Block]:
        """Return the blocks of the text. A turn that other turns interrupt has several."""
        pieces = zip(self._owners(), self.pieces, strict=True)
        runs = [(turn, [piece for _, piece in run]) for turn, run in groupby(pieces, key=itemgetter(0))]
        bounds = [(turn, pieces[0].start, max(piece.end for piece in pieces)) for turn, pieces in runs]
        befores = [0, *(end for _, _, end in bounds)]
        afters = [*(start for _, start, _ in bounds[1:]), len(self.text)]
        return [
            Block(turn, before, start, end, after)
            for (turn, start, end), before, after in zip(bounds, befores, afters, strict=False)
        ]

    def _owners(self) -> list[int]:
        """Return the turn of each piece. A repeated part of a call belongs to the call only in the middle of it."""
        if not any(piece.again for piece in self.pieces):
            return [piece.turn for piece in self.pieces]
        before, last = [], COPIES
        for piece in self.pieces:
            last = last if piece.again else piece.turn
            before.append(last)
        owners, following = [], COPIES
        for piece, last in zip(reversed(self.pieces), reversed(before), strict=True):
            following = following if piece.again else piece.turn
            owners.append(piece.turn if not piece.again or piece.turn == last == following else COPIES)
        return owners[::-1]

    def rest(self) -> str:
        """Return the text after the last string: the end of the last turn, and a header if it was asked for."""
        return self.text[max((piece.end for piece in self.pieces), default=0) :]


class Marker:
    """Marks the strings of a conversation, and reads the marks in a rendered text.

    Args:
        only_assistant: whether to mark only the assistant's turns.
    """

    def __init__(self, *, only_assistant: bool = False) -> None:
        self._only_assistant = only_assistant
        self._owners: list[tuple[int, str]] = []

    def conversation(self, messages: Conversation) -> Conversation:
        """Return the conversation with marks in its texts, thoughts, calls and definitions of tools."""
        return tuple(self._message(index, message) for index, message in enumerate(messages))

    def read(self, marked: str) -> Layout:
        """Return the text without its marks, and their places."""
        if "\\ud" in marked:
            marked = ESCAPED.sub(_character, marked)
        opened: dict[int, int] = {}
        seen: set[int] = set()
        pieces: list[Piece] = []
        generated: list[Span] = []
        parts = MARK.split(marked)
        size = len(parts[0])
        for mark, after in zip(parts[1::2], parts[2::2], strict=True):
            if mark in GENERATION_MARKS:
                generated.append((size, size) if mark == GENERATION_MARKS[0] else (generated.pop()[0], size))
            else:
                number, closes = divmod(ord(mark) - FIRST, 2)
                if not closes:
                    opened[number] = size
                elif number < len(self._owners):
                    turn, part = self._owners[number]
                    again = number in seen and part in ("call", "argument")
                    pieces.append(Piece(turn, part, opened.pop(number, size), size, again))
                    seen.add(number)
            size += len(after)
        pieces += [Piece(*self._owners[number], start, start) for number, start in opened.items()]
        pieces.sort(key=lambda piece: piece.start)
        return Layout("".join(parts[::2]), tuple(pieces), tuple(generated) or None)

    def _message(self, index: int, message: Message) -> Message:
        if len(message) == 2 and not self._only_assistant and isinstance(message.get("content"), str):
            return {"role": message["role"], "content": self._text(message["content"], index, "content")}
        marked: dict[str, Any] = dict(message)
        if message.get("tools"):
            marked["tools"] = [self._named(tool, TOOLS, "tool", arguments=False) for tool in message["tools"]]
        if self._only_assistant and message["role"] != "assistant":
            return marked
        for key, part in (("reasoning_content", "thought"), ("content", "content")):
            if isinstance(message.get(key), str):
                marked[key] = self._text(message[key], index, part)
        if message.get("tool_calls"):
            marked["tool_calls"] = [self._named(call, index, "call") for call in message["tool_calls"]]
        return marked

    def _named(self, item: Mapping[str, Any], turn: int, part: str, *, arguments: bool = True) -> dict[str, Any]:
        """Mark the name of a call or a tool, and the arguments of a call."""
        function = item.get("function")
        if isinstance(function, Mapping):
            return {**item, "function": self._named(function, turn, part, arguments=arguments)}
        marked = dict(item)
        if isinstance(item.get("name"), str):
            marked["name"] = self._text(item["name"], turn, part)
        if arguments and "arguments" in item:
            marked["arguments"] = self._value(item["arguments"], turn)
        return marked

    def _value(self, value: Any, turn: int) -> Any:
        if isinstance(value, str):
            return self._text(value, turn, "argument")
        if isinstance(value, Mapping):
            return {self._text(str(key), turn, "argument"): self._value(item, turn) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(item, turn) for item in value]
        return value

    def _text(self, text: str, turn: int, part: str) -> str:
        """Return a text with marks around what a template does not trim."""
        core = text.strip()
        if not core or len(self._owners) >= MOST:
            return text
        code = FIRST + 2 * len(self._owners)
        self._owners.append((turn, part))
        before, _, after = text.partition(core) if len(core) < len(text) else ("", core, "")
        return f"{before}{chr(code)}{core}{chr(code + 1)}{after}"


def _character(match: re.Match[str]) -> str:
    high, low = (int(half, 16) for half in match.groups())
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
