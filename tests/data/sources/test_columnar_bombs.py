"""Small Parquet and Arrow files that hold gigabytes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from alignment_core.config import SourceConfig
from alignment_core.data.sources.locate import source_files
from alignment_core.data.sources.readers import RawRow, Unreadable, columnar, read_file
from alignment_core.processes.memory_limit import memory_limit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process by its data")

LIMIT = 96 * 2**20
LONG = 40 * 2**20


def parquet(table: pa.Table, path: Path) -> None:
    pyarrow.parquet.write_table(table, path, compression="zstd")


def arrow(table: pa.Table, path: Path) -> None:
    pyarrow.feather.write_feather(table, str(path), compression="zstd")


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[RawRow | Unreadable]]:
    """Return a function that writes a table and reads it, with at most `LIMIT` bytes for a batch."""
    monkeypatch.setattr(columnar, "LARGEST_BATCH", LIMIT)

    def written_and_read(write: Callable[[pa.Table, Path], None], texts: pa.Array) -> list[RawRow | Unreadable]:
        path = tmp_path / f"rows.{write.__name__}"
        write(pa.table({"text": texts}), path)
        assert path.stat().st_size < 100_000
        source = SourceConfig(path=str(path))
        (file,) = source_files(source)
        return list(read_file(file, source))

    return written_and_read


@pytest.mark.parametrize("write", [parquet, arrow])
def test_one_value_a_million_times_is_not_spread_out(
    read: Callable[..., list[RawRow | Unreadable]], write: Callable[[pa.Table, Path], None]
) -> None:
    """The file holds 10 MB once, and a batch of rows would hold it 256 times."""
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["a" * 10_000_000]))
    (found,) = read(write, same)
    assert isinstance(found, Unreadable)
    assert (found.reason, found.detail) == (
        "unreadable_file",
        f"MemoryError: it takes more than {LIMIT} bytes of memory",
    )


@pytest.mark.parametrize("write", [parquet, arrow])
def test_a_cell_larger_than_the_limit_is_not_read(
    read: Callable[..., list[RawRow | Unreadable]], write: Callable[[pa.Table, Path], None]
) -> None:
    (found,) = read(write, pa.array(["a" * 2 * LIMIT]))
    assert isinstance(found, Unreadable)
    assert found.reason == "unreadable_file"


@pytest.mark.parametrize("write", [parquet, arrow])
def test_a_long_row_is_left_out_and_the_others_are_read(
    read: Callable[..., list[RawRow | Unreadable]],
    write: Callable[[pa.Table, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(columnar, "LARGEST_BATCH", 2**30)
    monkeypatch.setattr(columnar, "MAX_LINE", LONG)
    first, long, last = read(write, pa.array(["a", "b" * (LONG + 1), "c" * LONG]))
    assert isinstance(long, Unreadable)
    assert (long.origin[-2:], long.reason) == (":2", "line_too_long")
    assert [row.value["text"][:1] for row in (first, last) if isinstance(row, RawRow)] == ["a", "c"]


def test_limit_ends_with_its_block() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(MemoryError, match="it takes more than 1000000 bytes"), memory_limit(1_000_000):
        bytearray(LIMIT)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with memory_limit(2 * LIMIT), memory_limit(10 * LIMIT):
        bytearray(LIMIT)
    # An inner block cannot widen the limit of an outer one.
    with pytest.raises(MemoryError), memory_limit(LIMIT // 2), memory_limit(10 * LIMIT):
        bytearray(LIMIT)
