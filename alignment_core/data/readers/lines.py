"""Lines of a byte stream: numbered, bounded, with byte-order marks and UTF-16 dealt with."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from itertools import chain, islice
from typing import IO, Any

from alignment_core.data.readers.rows import Unreadable
from alignment_core.records import RawRow

MAX_LINE = 64 * 2**20
"""Bytes of one row; a longer one is quarantined without being held."""
CHUNK = 2**20
SNIFFED = 20
"""Lines of a text file that are looked at for tabs."""


def numbered_lines(name: str, stream: IO[bytes]) -> Iterator[tuple[int, bytes] | Unreadable]:
    """Numbered lines without their end."""
    yield from lines_of(name, utf8(stream))


def lines_of(name: str, source: io.BufferedReader) -> Iterator[tuple[int, bytes] | Unreadable]:
    """As `numbered_lines`, of a stream from `utf8`."""
    number = 0
    while line := source.readline(MAX_LINE):
        number += 1
        if len(line) >= MAX_LINE and not line.endswith(b"\n"):
            while (rest := source.readline(CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield Unreadable(f"{name}:{number}", "line_too_long", f"more than {MAX_LINE} bytes in one line")
            continue
        yield number, line.rstrip(b"\r\n")


def utf8(stream: IO[bytes]) -> io.BufferedReader:
    """The stream without a byte-order mark, and in UTF-8 if it was in UTF-16 or UTF-32."""
    start = stream.read(4)
    joined: Any = _Joined(start.removeprefix(codecs.BOM_UTF8), stream)
    if encoding := _wide(start):
        text = io.TextIOWrapper(io.BufferedReader(joined), encoding=encoding, errors="surrogatepass")
        joined = _Utf8(text)
    return io.BufferedReader(joined, CHUNK)


def _wide(start: bytes) -> str | None:
    """The encoding of a file that starts like this, if it takes two or four bytes for an ASCII character."""
    if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in start)
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be"}.get(zeros)


class _Joined(io.RawIOBase):
    """The bytes that were looked at, then the rest of the stream."""

    def __init__(self, start: bytes, rest: IO[bytes]) -> None:
        self._start, self._rest = start, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # One read at a time: what comes before the end of a broken archive is not lost with it.
        read = getattr(self._rest, "read1", self._rest.read)
        data = self._start[: len(buffer)] or read(len(buffer))
        self._start = self._start[len(data) :]
        buffer[: len(data)] = data
        return len(data)


class _Utf8(io.RawIOBase):
    """A text stream as UTF-8 bytes."""

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
    """Each line that is not blank as `{text}`; as cells "0", "1", … where the first lines make a table of tabs."""
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
