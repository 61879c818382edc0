"""A GGUF file that announces more than it has is refused at once."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tiny_gguf import needs_gguf, write_gguf

from alignment_core.errors import ModelError
from alignment_core.models.base.gguf_counts import check_counts
from alignment_core.models.base.gguf_unpack import describe

U8, STRING, ARRAY = 0, 8, 9


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def field(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def head(*fields: bytes, count: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(fields) if count is None else count) + b"".join(fields)


NAMED = field(b"general.architecture", STRING, text(b"llama"))
ODD = {
    "array of bytes": head(NAMED, field(b"x", ARRAY, struct.pack("<IQ", U8, 2**40))),
    "array of texts": head(NAMED, field(b"x", ARRAY, struct.pack("<IQ", STRING, 2**40))),
    "array of arrays": head(NAMED, field(b"x", ARRAY, struct.pack("<IQ", ARRAY, 1) * 20_000)),
    "fields": head(NAMED, count=2**60),
    "text": head(field(b"x", STRING, struct.pack("<Q", 2**63))),
    "name": head(struct.pack("<Q", 2**62) + b"x"),
    "type": head(field(b"x", 77, b"")),
    "nothing": b"GGUF",
    "parts": head(NAMED, field(b"split.count", STRING, text(b"many"))),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ODD)
def test_file_that_announces_more_than_it_has(name: str, tmp_path: Path) -> None:
    needs_gguf()
    (tmp_path / "odd.gguf").write_bytes(ODD[name])
    with pytest.raises(ModelError, match=r"^model\.base: the GGUF file cannot be read"):
        describe(tmp_path / "odd.gguf", "model.base")


def test_file_that_is_as_it_says(tiny_model: Path, tmp_path: Path) -> None:
    needs_gguf()
    check_counts(write_gguf(tiny_model, tmp_path / "tiny.gguf", "Q8_0"))
