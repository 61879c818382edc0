"""Lines of a byte stream: numbered, bounded, with byte-order marks and UTF-16 dealt with."""

from __future__ import annotations

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
    """Numbered lines without their end, UTF-16 files re-encoded, a byte-order mark removed."""
    start = stream.read(4)
    joined: Any = _Joined(start, stream)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        joined = _Utf8(io.TextIOWrapper(io.BufferedReader(joined), encoding="utf-16", errors="surrogatepass"))
    source = io.BufferedReader(joined, CHUNK)
    number = 0
    while line := source.readline(MAX_LINE):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) >= MAX_LINE and not line.endswith(b"\n"):
            while (rest := source.readline(CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield Unreadable(f"{name}:{number}", "line_too_long", f"more than {MAX_LINE} bytes in one line")
            continue
        yield number, line.rstrip(b"\r\n")


class _Joined(io.RawIOBase):
    """The bytes that were looked at, then the rest of the stream."""

    def __init__(self, start: bytes, rest: IO[bytes]) -> None:
        self._start, self._rest = start, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._start[: len(buffer)] or self._rest.read(len(buffer))
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
