"""Split a byte stream into numbered lines of limited length. Handles byte-order marks, UTF-16 and UTF-32."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from itertools import chain, islice
from typing import IO, Any

from alignment_core.data.sources.readers.unreadable import Unreadable
from alignment_core.records import RawRow

MAX_LINE = 64 * 2**20
"""Maximum bytes per row. A longer row is quarantined without being held in memory."""
CHUNK = 2**20
SNIFFED = 20
"""Number of lines of a text file that are checked for tabs."""


def numbered_lines(name: str, stream: IO[bytes]) -> Iterator[tuple[int, bytes] | Unreadable]:
    """Yield numbered lines without their line endings."""
    yield from lines_of(name, utf8(stream))


def lines_of(name: str, source: io.BufferedReader) -> Iterator[tuple[int, bytes] | Unreadable]:
    """Like `numbered_lines`, for a stream returned by `utf8`."""
    number = 0
    while line := source.readline(MAX_LINE):
        number += 1
        if len(line) >= MAX_LINE and not line.endswith(b"\n"):
            while (rest := source.readline(CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield Unreadable(f"{name}:{number}", "line_too_long", f"the line is longer than {MAX_LINE} bytes")
            continue
        yield number, line.rstrip(b"\r\n")


def utf8(stream: IO[bytes]) -> io.BufferedReader:
    """Return the stream without a byte-order mark, converted to UTF-8 if it is in UTF-16 or UTF-32."""
    start = stream.read(4)
    joined: Any = _Joined(start.removeprefix(codecs.BOM_UTF8), stream)
    if encoding := _wide(start):
        text = io.TextIOWrapper(io.BufferedReader(joined), encoding=encoding, errors="surrogatepass")
        joined = _Utf8(text)
    return io.BufferedReader(joined, CHUNK)


def _wide(start: bytes) -> str | None:
    """Return the encoding of a file that starts with `start` if it has two or four bytes per ASCII character."""
    if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in start)
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be"}.get(zeros)


class _Joined(io.RawIOBase):
    """The bytes that were already read, followed by the rest of the stream."""

    def __init__(self, start: bytes, rest: IO[bytes]) -> None:
        self._start, self._rest = start, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # Only one read per call, so that the data before the damage in a broken archive is not lost.
        read = getattr(self._rest, "read1", self._rest.read)
        data = self._start[: len(buffer)] or read(len(buffer))
        self._start = self._start[len(data) :]
        buffer[: len(data)] = data
        return len(data)


class _Utf8(io.RawIOBase):
    """A text stream, encoded as UTF-8."""

    def __init__(self, text: IO[str]) -> None:
        self._text, self._left = text, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = self._text.read(CHUNK).encode("utf-8", errors="surrogatepass")
        data, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def text_rows(name: str, stream: IO[bytes]) -> Iterator[RawRow | Unreadable]:
    """Yield each non-blank line as `{text}`, or as cells "0", "1", … if the first lines are a tab-separated table."""
    lines = numbered_lines(name, stream)
    first = list(islice((line for line in lines if isinstance(line, Unreadable) or line[1].strip()), SNIFFED))
    tabs = {line[1].count(b"\t") for line in first if not isinstance(line, Unreadable)}
    table = len(tabs) == 1 and tabs != {0}
    for line in chain(first, lines):
        if isinstance(line, Unreadable):
            yield line
            continue
        number, data = line
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            yield Unreadable(f"{name}:{number}", "not_utf8", str(error), repr(data[:2000]))
            continue
        if table:
            yield RawRow({str(index): cell for index, cell in enumerate(text.split("\t"))}, f"{name}:{number}")
        elif text.strip():
            yield RawRow({"text": text.strip()}, f"{name}:{number}")
