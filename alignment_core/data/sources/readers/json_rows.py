"""Stream the rows of JSON lines and JSON arrays."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import IO, Any

from alignment_core.data.sources.readers.lines import CHUNK, MAX_LINE, lines_of, utf8
from alignment_core.data.sources.readers.unreadable import Unreadable
from alignment_core.records import RawRow

WRAPPERS = ("data", "rows", "examples", "items", "records", "train")
"""Keys that hold the list of rows if an exporter writes the file as one object."""


def json_rows(name: str, stream: IO[bytes], *, lines_only: bool) -> Iterator[RawRow | Unreadable]:
    """Yield the rows of JSON lines, of an array, or of one object. The content decides which of them the file is.

    Args:
        name: file name for the origin of the rows.
        stream: bytes of the file.
        lines_only: whether the extension promises one row per line. If so, a broken first line is a broken row.
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
            # The next line distinguishes a single object, which may wrap the rows, from one row per line.
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
        _parsed(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str | bytes) -> Any:
    """Parse JSON. Numbers with more digits than Python converts (an id may have thousands) stay text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:
        return digits


def _line(name: str, number: int, line: bytes) -> Iterator[RawRow | Unreadable]:
    origin = f"{name}:{number}"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        yield Unreadable(origin, "not_utf8", str(error), repr(line[:2000]))
        return
    try:
        yield RawRow(_parsed(text), origin)
    except (ValueError, RecursionError) as error:
        yield Unreadable(origin, "invalid_json", str(error), text[:2000])


def _document(name: str, text: _Text) -> Iterator[RawRow | Unreadable]:
    """Yield the rows of top-level arrays and of objects that span lines, each with the line where it starts."""
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
            # Rows on the same line are distinguished by their position in the array.
            origin = f"{name}:{text.line}" + (f"[{index}]" if depth and text.line == before else "")
            before = text.line
            try:
                value = text.value()
            except (ValueError, RecursionError) as error:
                start, problem = text.rest(), getattr(error, "msg", str(error))
                resumed = indent is not None and text.resume(f"\n{indent}{{")
                detail = problem if resumed else f"{problem}. The rest of the file is not read"
                yield Unreadable(origin, "invalid_json", detail, start)
                if resumed:
                    continue
                return
            yield from _unwrapped(name, origin, value) if depth == 0 else [RawRow(value, origin)]
    if depth:
        yield Unreadable(f"{name}:{text.line}", "invalid_json", "the array is not closed. The file may be incomplete")


def _unwrapped(name: str, origin: str, value: Any) -> Iterator[RawRow]:
    if isinstance(value, dict):
        for key in WRAPPERS:
            if isinstance(value.get(key), list):
                for index, row in enumerate(value[key], 1):
                    yield RawRow(row, f"{name}:{key}[{index}]")
                return
    yield RawRow(value, origin)


class _Text:
    """A window over a long JSON text, filled as it is read.

    Args:
        number: line number where the text starts.
        first: the first bytes.
        pieces: the remaining bytes.
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
        """Skip any of `characters`. Return the indentation of the next character, or None if it is on the same line."""
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
        """Return the next JSON value. If the text is incomplete, read more, doubling the amount each time."""
        while True:
            try:
                value, end = self._decode_value()
            except json.JSONDecodeError as error:
                held = len(self._buffer) - self._position
                if held > MAX_LINE or not self._incomplete(error) or not self._more(max(held, 4096)):
                    raise
                continue
            if end == len(self._buffer) and not isinstance(value, dict | list) and self._more(1):
                continue  # a number may continue
            self.advance(end - self._position)
            return value

    def _decode_value(self) -> tuple[Any, int]:
        try:
            return self._decoder.raw_decode(self._buffer, self._position)
        except json.JSONDecodeError:
            raise
        except ValueError:
            return json.JSONDecoder(parse_int=_integer).raw_decode(self._buffer, self._position)

    def rest(self) -> str:
        """Return the remaining text, cut to a length that fits in a report."""
        return self._buffer[self._position : self._position + 2000]

    def resume(self, start: str) -> bool:
        """Skip a broken row up to the next one that begins like it, on a new line with the same indentation.

        Return False if there is none.
        """
        while (found := self._buffer.find(start, self._position)) < 0:
            self.advance(max(len(self._buffer) - self._position - len(start), 0))
            if not self._more(1):
                return False
        self.advance(found + len(start) - 1 - self._position)
        return True

    def _incomplete(self, error: json.JSONDecodeError) -> bool:
        """Whether the text is only cut off: the error is at its end, or a string is not closed."""
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
