"""JSON lines and JSON arrays, streaming."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import IO, Any

from alignment_core.data.readers.lines import CHUNK, MAX_LINE, lines_of, utf8
from alignment_core.data.readers.rows import Unreadable
from alignment_core.records import RawRow

WRAPPERS = ("data", "rows", "examples", "items", "records", "train")
"""Keys under which exporters put the rows of a file that is one object."""


def json_rows(name: str, stream: IO[bytes], *, lines_only: bool) -> Iterator[RawRow | Unreadable]:
    """JSON lines, an array of rows, or one object, by the content.

    Args:
        name: the file, for the rows' origin.
        stream: its bytes.
        lines_only: the extension promises one row a line, so a broken first line is a broken row.
    """
    source = utf8(stream)
    if source.peek(1).lstrip().startswith(b"["):  # an array may be one long line
        yield from _document(name, _Text(1, b"", iter(partial(source.read1, CHUNK), b"")))
        return
    lines = lines_of(name, source)
    for line in lines:
        if isinstance(line, Unreadable):
            yield line
        elif line[1].strip():
            # What follows the first row tells a lone object, which may wrap the rows, from one row a line.
            following = next(lines, None)
            rest = lines if following is None else chain([following], lines)
            if _starts_document(line[1], alone=following is None, lines_only=lines_only):
                unreadable: list[Unreadable] = []
                yield from _document(name, _Text(*line, _joined(rest, unreadable)))
                yield from unreadable
            else:
                yield from _one_a_line(name, chain([line], rest))


def _joined(lines: Iterator[tuple[int, bytes] | Unreadable], unreadable: list[Unreadable]) -> Iterator[bytes]:
    for line in lines:
        if isinstance(line, Unreadable):
            unreadable.append(line)
        else:
            yield b"\n" + line[1]


def _starts_document(line: bytes, *, alone: bool, lines_only: bool) -> bool:
    if line.lstrip().startswith(b"["):
        return True
    return not lines_only and (alone or not _is_json(line))


def _one_a_line(name: str, lines: Iterator[tuple[int, bytes] | Unreadable]) -> Iterator[RawRow | Unreadable]:
    for line in lines:
        if isinstance(line, Unreadable):
            yield line
        elif line[1].strip():
            yield from _line(name, *line)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _line(name: str, number: int, line: bytes) -> Iterator[RawRow | Unreadable]:
    origin = f"{name}:{number}"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        yield Unreadable(origin, "not_utf8", str(error), repr(line[:2000]))
        return
    try:
        yield RawRow(json.loads(text), origin)
    except (ValueError, RecursionError) as error:
        yield Unreadable(origin, "invalid_json", str(error), text[:2000])


def _document(name: str, text: _Text) -> Iterator[RawRow | Unreadable]:
    """Rows of top-level arrays and objects that spread over lines, each with the line that it starts on."""
    depth, index, before = 0, 0, text.line
    while True:
        indent = text.skip(" \t\r\n," if depth else " \t\r\n")
        character = text.peek()
        if not character:
            break
        if character == "[" and depth == 0:
            text.advance(1)
            depth = 1
        elif character == "]" and depth == 1:
            text.advance(1)
            depth = 0
        else:
            index += depth
            # Several rows in one line are told apart by their place in the array.
            origin = f"{name}:{text.line}" + (f"[{index}]" if depth and text.line == before else "")
            before = text.line
            try:
                value = text.value()
            except (ValueError, RecursionError) as error:
                start, problem = text.rest(), getattr(error, "msg", str(error))
                resumed = indent is not None and text.resume(f"\n{indent}{{")
                detail = problem if resumed else f"{problem}; the rest of the file is not read"
                yield Unreadable(origin, "invalid_json", detail, start)
                if resumed:
                    continue
                return
            yield from _unwrapped(name, origin, value) if depth == 0 else [RawRow(value, origin)]
    if depth:
        yield Unreadable(f"{name}:{text.line}", "invalid_json", "the array does not end: half-written?")


def _unwrapped(name: str, origin: str, value: Any) -> Iterator[RawRow]:
    if isinstance(value, dict):
        for key in WRAPPERS:
            if isinstance(value.get(key), list):
                for index, row in enumerate(value[key], 1):
                    yield RawRow(row, f"{name}:{key}[{index}]")
                return
    yield RawRow(value, origin)


class _Text:
    """A window on a long JSON text that is filled as it is read.

    Args:
        number: the line that it starts on.
        first: its beginning.
        pieces: the rest.
    """

    def __init__(self, number: int, first: bytes, pieces: Iterator[bytes]) -> None:
        self.line = number
        self._pieces = pieces
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape").decode
        self._decoder = json.JSONDecoder()
        self._buffer = self._decode(first)
        self._position = 0

    def peek(self) -> str:
        while self._position >= len(self._buffer):
            if not self._more(1):
                return ""
        return self._buffer[self._position]

    def skip(self, characters: str) -> str | None:
        """Go over any of `characters`; what of them stands before the next one in its line, None on the same line."""
        indent = None
        while (character := self.peek()) and character in characters:
            indent = "" if character == "\n" else None if indent is None else indent + character
            self.advance(1)
        return indent

    def advance(self, count: int) -> None:
        end = self._position + count
        self.line += self._buffer.count("\n", self._position, end)
        self._position = end

    def value(self) -> Any:
        """The next JSON value; reads as much more as it needs, twice as much each time."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                held = len(self._buffer) - self._position
                if held > MAX_LINE or not self._incomplete(error) or not self._more(max(held, 4096)):
                    raise
                continue
            if end == len(self._buffer) and not isinstance(value, dict | list) and self._more(1):
                continue  # a number may go on
            self.advance(end - self._position)
            return value

    def rest(self) -> str:
        """The text from here on, as much of it as a report can use."""
        return self._buffer[self._position : self._position + 2000]

    def resume(self, start: str) -> bool:
        """Go on behind a broken row to the next that begins like it: on a line of its own, as far to the right."""
        while (found := self._buffer.find(start, self._position)) < 0:
            self.advance(max(len(self._buffer) - self._position - len(start), 0))
            if not self._more(1):
                return False
        self.advance(found + len(start) - 1 - self._position)
        return True

    def _incomplete(self, error: json.JSONDecodeError) -> bool:
        """Whether the text merely ends too soon: the fault is at its end, or a string never closed."""
        return error.msg.startswith("Unterminated string") or len(self._buffer.rstrip()) - error.pos < 16

    def _more(self, wanted: int) -> bool:
        parts, gained = [self._buffer[self._position :]], 0
        for piece in self._pieces:
            parts.append(self._decode(piece))
            gained += len(parts[-1])
            if gained >= wanted:
                break
        self._buffer, self._position = "".join(parts), 0
        return gained > 0
