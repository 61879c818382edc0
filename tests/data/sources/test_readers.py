"""Readers: every row has its origin, every fault has a reason, and the rows after a fault are still read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_core.config import SourceConfig
from alignment_core.data.sources.identity import content_digest
from alignment_core.data.sources.locate import files_and_other_splits, source_files
from alignment_core.data.sources.readers import RawRow, Unreadable, lines, read_file
from alignment_core.errors import DataError

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "é\nb", "n": 2}, {"prompt": "c", "n": [1, {"x": None}]}]
SOURCE = SourceConfig(path="unused")


def read(path: Path, source: SourceConfig = SOURCE) -> list[RawRow | Unreadable]:
    return [row for file in source_files(SourceConfig(path=str(path))) for row in read_file(file, source)]


def values(path: Path) -> list[Any]:
    rows = read(path)
    assert all(isinstance(row, RawRow) for row in rows), rows
    return [row.value for row in rows if isinstance(row, RawRow)]


def faults(path: Path) -> list[tuple[str, str]]:
    return [(row.origin, row.reason) for row in read(path) if isinstance(row, Unreadable)]


def put(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)  # type: ignore[no-any-return]


JSONL = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize(
    "text",
    [JSONL, JSONL + "\n", json.dumps(ROWS), json.dumps(ROWS, indent=2, ensure_ascii=False), json.dumps({"data": ROWS}),
     JSONL.replace("\n", "\n\n \n"), JSONL.replace("\n", "\r\n")],
    ids=["lines", "last line ends", "array", "indented array", "wrapped array", "blank lines", "windows"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_layouts(tmp_path: Path, text: str, name: str) -> None:
    # JSON Lines means one object per line, so nothing is unwrapped there.
    expected = [{"data": ROWS}] if name == "rows.jsonl" and text.startswith('{"data"') else ROWS
    assert values(put(tmp_path, name, text)) == expected


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst", ""])
def test_compressed_files(tmp_path: Path, ending: str) -> None:
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
    assert values(put(tmp_path, f"rows.jsonl{ending}", pack.get(ending, bytes)(JSONL.encode()))) == ROWS


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_truncated_compressed_file_ends_with_a_reason(tmp_path: Path, ending: str) -> None:
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
    packed = pack[ending](os.urandom(20_000).hex().encode())
    rows = read(put(tmp_path, f"rows.jsonl{ending}", packed[: len(packed) // 2]))
    assert isinstance(rows[-1], Unreadable)
    assert {row.reason for row in rows if isinstance(row, Unreadable)} <= {"unreadable_file", "invalid_json"}
    not_packed = read(put(tmp_path, f"other.jsonl{ending}", JSONL))
    assert [row.reason for row in not_packed if isinstance(row, Unreadable)] == ["unreadable_file"]


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_archive_is_read_like_a_folder(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", "y"]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    parquet = (tmp_path / "rows.parquet").read_bytes()
    inside = tmp_path / "inside"
    inside.mkdir()
    members = {"b/rows.jsonl.gz": gzip.compress(JSONL.encode()), "c.parquet": parquet, "a.txt": b"", "image.png": b"no"}
    path = zipped(inside / "export.zip", members)
    expected = [*ROWS, {"a": "x"}, {"a": "y"}]
    for where in (path, inside, inside / "*.zip"):
        assert values(where) == expected
    origins = [row.origin for row in read(path) if isinstance(row, RawRow)]
    assert origins[0] == "export.zip/b/rows.jsonl.gz:1"
    one, other = (
        content_digest(file) for file in source_files(SourceConfig(path=str(path))) if file.container != ".txt"
    )
    assert one != other


def test_damaged_archive_has_a_reason_and_other_files_are_read(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "whole.zip", {"rows.jsonl": os.urandom(5000).hex().encode()}).read_bytes()
    put(tmp_path, "cut.zip", whole[: len(whole) // 2])
    put(tmp_path, "whole.zip", whole[:1000] + bytes(50) + whole[1050:])
    put(tmp_path, "good.jsonl", JSONL)
    rows = read(tmp_path)
    assert [row.value for row in rows if isinstance(row, RawRow)] == ROWS
    reasons = {row.origin.partition(":")[0]: row for row in rows if isinstance(row, Unreadable)}
    assert reasons["cut.zip"].reason == "unreadable_file"
    assert "not a zip file" in reasons["cut.zip"].detail
    assert reasons["whole.zip/rows.jsonl"].reason == "unreadable_file"


def test_archive_with_too_many_files_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_core.data.sources.locate.MOST_MEMBERS", 2)
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.jsonl", "b.jsonl", "README.md"):
            archive.writestr(name, "{}")
    assert len(source_files(SourceConfig(path=str(path)))) == 2
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("c.jsonl", "{}")
    with pytest.raises(DataError, match=r"too many files.* got 3, expected at most 2\. Unpack it"):
        source_files(SourceConfig(path=str(path)))


def test_archive_without_readable_files_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no readable files.*an archive with"):
        read(zipped(tmp_path / "images.zip", {"image.png": b"no"}))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    assert values(put(tmp_path, "rows.jsonl", mark + JSONL.encode(encoding))) == ROWS
    assert values(put(tmp_path, "array.json", mark + json.dumps(ROWS, indent=1).encode(encoding))) == ROWS


def test_bad_line_has_a_reason_and_the_rest_is_read(tmp_path: Path) -> None:
    text = '{"a": 1}\n{"a": \n{"a": 2}\n\xff\xfe\n'.encode("latin-1") + b'{"a": 3}\n{"a": 4, "b'
    path = put(tmp_path, "rows.jsonl", text)
    assert faults(path) == [("rows.jsonl:2", "invalid_json"), ("rows.jsonl:4", "not_utf8"),
                            ("rows.jsonl:6", "invalid_json")]  # fmt: skip
    assert [(row.value["a"], row.origin) for row in read(path) if isinstance(row, RawRow)] == [
        (1, "rows.jsonl:1"), (2, "rows.jsonl:3"), (3, "rows.jsonl:5"),
    ]  # fmt: skip


def test_a_bad_first_line_does_not_hide_the_others(tmp_path: Path) -> None:
    path = put(tmp_path, "rows.jsonl", '{"a": \n{"a": 2}\n')
    assert faults(path) == [("rows.jsonl:1", "invalid_json")]
    assert len(read(path)) == 2


def test_truncated_array_is_reported(tmp_path: Path) -> None:
    whole = json.dumps(ROWS, indent=2)
    path = put(tmp_path, "rows.json", whole[: whole.index('"c"')])
    rows = read(path)
    assert [row.value for row in rows if isinstance(row, RawRow)] == ROWS[:2]
    assert isinstance(rows[-1], Unreadable)
    assert "rest of the file" in rows[-1].detail
    assert faults(put(tmp_path, "open.json", '[{"a": 1},\n{"a": 2}')) == [("open.json:2", "invalid_json")]


def test_origin_of_an_array_row_is_the_line_where_it_starts(tmp_path: Path) -> None:
    path = put(tmp_path, "rows.json", '[\n{"a": "x\\ny"},\n\n{"a":\n2}, {"a": 3}\n]\n')
    assert [row.origin for row in read(path)] == ["rows.json:2", "rows.json:4", "rows.json:5"]


def test_line_over_the_size_limit_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    path = put(tmp_path, "rows.jsonl", '{"a": 1}\n{"a": "' + "x" * 5000 + '"}\n{"a": 2}\n')
    assert faults(path) == [("rows.jsonl:2", "line_too_long")]
    assert [row.value["a"] for row in read(path) if isinstance(row, RawRow)] == [1, 2]


def test_csv_with_multiline_cells(tmp_path: Path) -> None:
    path = put(tmp_path, "rows.csv", 'a,b\n"1\n2, ""x""",y\n\nonly\n3,z\n')
    rows = read(path)
    assert [(row.value, row.origin) for row in rows if isinstance(row, RawRow)] == [
        ({"a": '1\n2, "x"', "b": "y"}, "rows.csv:2"), ({"a": "3", "b": "z"}, "rows.csv:6"),
    ]  # fmt: skip
    assert faults(path) == [("rows.csv:5", "bad_csv")]


def test_tsv_with_and_without_header(tmp_path: Path) -> None:
    assert values(put(tmp_path, "rows.tsv", 'a\tb\n1\t"x\ty"\n')) == [{"a": "1", "b": "x\ty"}]
    table = put(tmp_path, "rows.txt", 'it is "good\t1\nbad\t0\n')
    assert values(table) == [{"0": 'it is "good', "1": "1"}, {"0": "bad", "1": "0"}]
    headerless = SourceConfig(path="unused", columns={"completion": "0", "label": "1"})
    rows = read(put(tmp_path, "bare.tsv", 'say "hi\t1\n'), headerless)
    assert [row.value for row in rows if isinstance(row, RawRow)] == [{"0": 'say "hi', "1": "1"}]


def test_plain_text_has_one_row_per_line(tmp_path: Path) -> None:
    assert values(put(tmp_path, "rows.txt", " one \n\ntwo\tx\nthree\n")) == [
        {"text": "one"}, {"text": "two\tx"}, {"text": "three"},
    ]  # fmt: skip


def test_columnar_files(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{index}", "chosen": [{"role": "assistant", "content": "é"}]} for index in range(700)]
    table = pa.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=100)
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=99)
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as writer:
        writer.write_table(table)
    for name in ("rows.parquet", "file.arrow", "stream.arrow"):
        found = read(tmp_path / name)
        assert [row.value for row in found if isinstance(row, RawRow)] == rows
        assert found[699].origin == f"{name}:700"
    damaged = (tmp_path / "rows.parquet").read_bytes()[:-20]
    assert faults(put(tmp_path, "damaged.parquet", damaged)) == [("damaged.parquet", "unreadable_file")]
    assert faults(put(tmp_path, "damaged.arrow", b"ARROW1 but no more")) == [("damaged.arrow", "unreadable_file")]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.csv", "a.txt", "a.tsv"):
        assert read(put(tmp_path, name, "")) == []


def test_file_without_permission_is_reported_as_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "rows.jsonl", JSONL)
    file = source_files(SourceConfig(path=str(path)))[0]

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root may read anything, so chmod would prove nothing
    (fault,) = read_file(file, SOURCE)
    assert isinstance(fault, Unreadable)
    assert fault.reason == "unreadable_file"
    assert "Permission denied" in fault.detail


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=8), indent=st.booleans())
def test_any_json_array_is_read_unchanged(tmp_path_factory: pytest.TempPathFactory, rows: Any, indent: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(rows, indent=2 if indent else None), encoding="utf-8")
    if not (len(rows) == 1 and set(rows[0]) & {"data", "rows"}):
        assert values(path) == rows


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200), name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet",
                                                           "a.arrow", "a.jsonl.gz", "a.json.zst"]))  # fmt: skip
def test_any_bytes_are_rows_or_faults(tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    for row in read(path):
        assert isinstance(row, RawRow | Unreadable)
        assert row.origin.startswith(name)


# --- faults do not affect other rows -----------------------------------------------------------------------------


def test_array_on_one_line_may_have_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    many = [{"prompt": f"é {i}", "n": "x" * 20} for i in range(200)]
    rows = read(put(tmp_path, "rows.json", json.dumps(many, ensure_ascii=False)))
    assert [row.value for row in rows if isinstance(row, RawRow)] == many
    assert [row.origin for row in rows[:2]] == ["rows.json:1[1]", "rows.json:1[2]"]


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_array_rows_after_a_broken_one_are_read(tmp_path: Path, indent: int | None) -> None:
    many = [{"n": i, "inner": {"x": [i]}} for i in range(40)]
    text = json.dumps(many, indent=indent)
    if indent is None:
        text = "[" + ",\n".join(json.dumps(row) for row in many) + "]"
    broken = text.replace('"n": 7,', '"n": oops,')
    rows = read(put(tmp_path, "rows.json", broken))
    assert [row.value for row in rows if isinstance(row, RawRow)] == [*many[:7], *many[8:]]
    (bad,) = [row for row in rows if isinstance(row, Unreadable)]
    assert bad.reason == "invalid_json"
    assert bad.raw.startswith("{")
    line = int(bad.origin.rpartition(":")[2])
    assert broken.split("\n")[line - 1].endswith("{") or "oops" in broken.split("\n")[line - 1]


def test_start_of_a_truncated_gzip_file_is_read(tmp_path: Path) -> None:
    many = [{"n": i, "text": os.urandom(20).hex()} for i in range(3000)]
    packed = gzip.compress("\n".join(map(json.dumps, many)).encode())
    rows = read(put(tmp_path, "rows.jsonl.gz", packed[:-1000]))
    whole = [row.value for row in rows if isinstance(row, RawRow)]
    assert whole == many[: len(whole)]
    assert len(whole) > 2500
    assert ("rows.jsonl.gz", "unreadable_file") in [(row.origin, getattr(row, "reason", "")) for row in rows]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("text", [JSONL, json.dumps(ROWS, indent=1, ensure_ascii=False)])
def test_wide_encodings(tmp_path: Path, encoding: str, text: str) -> None:
    assert values(put(tmp_path, "rows.json", text.encode(encoding))) == ROWS


def test_semicolon_separated_tables(tmp_path: Path) -> None:
    assert values(put(tmp_path, "rows.csv", 'a;b\n1;x\n2;"y;z"\n')) == [{"a": "1", "b": "x"}, {"a": "2", "b": "y;z"}]


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_corrupted_compressed_file_has_a_reason(tmp_path: Path, ending: str, pack: Any) -> None:
    """These three formats have checksums, so damage anywhere inside is detected."""
    packed = pack("\n".join(json.dumps({"n": index * 7919}) for index in range(5000)).encode())
    for place in (12, len(packed) // 2):
        damaged = packed[:place] + bytes(40) + packed[place + 40 :]
        rows = read(put(tmp_path, f"rows.jsonl{ending}", damaged))
        assert "unreadable_file" in {row.reason for row in rows if isinstance(row, Unreadable)}


@pytest.mark.parametrize("name", ["export.tar", "export.tar.gz", "export.tgz", "export.tar.bz2", "export.tar.xz"])
def test_tar_archive_is_read_like_a_folder(tmp_path: Path, name: str) -> None:
    put(tmp_path, "rows.jsonl", JSONL)
    packing: Any = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}.get(name.rpartition(".")[2], "w")
    with tarfile.open(tmp_path / name, packing) as archive:
        for member in ("b/rows.jsonl", "b/._rows.jsonl", "a.png"):
            archive.add(tmp_path / "rows.jsonl", member)
    (tmp_path / "rows.jsonl").unlink()
    assert values(tmp_path / name) == values(tmp_path) == ROWS
    assert read(tmp_path)[0].origin == f"{name}/b/rows.jsonl:1"
    cut = (tmp_path / name).read_bytes()[:100]
    (tmp_path / name).write_bytes(cut)
    assert faults(tmp_path) == [(name, "unreadable_file")]


def saved(folder: Path, *texts: str) -> None:
    """Write what `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    table = pa.table({"text": list(texts)})
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as to,
    ):
        to.write_table(table)
    put(folder, "state.json", '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": null}')
    put(folder, "dataset_info.json", '{"citation": "", "features": {}}')
    put(folder, "cache-0123.arrow", b"the result of a map")


def test_descriptions_of_a_saved_data_set_are_not_rows(tmp_path: Path) -> None:
    saved(tmp_path / "set", "a", "b")
    assert values(tmp_path / "set") == [{"text": "a"}, {"text": "b"}]
    put(tmp_path, "state.json", '{"text": "a row"}')
    assert {"text": "a row"} in values(tmp_path)


def test_splits_of_a_saved_dictionary_are_told_apart(tmp_path: Path) -> None:
    saved(tmp_path / "set" / "train", "a")
    saved(tmp_path / "set" / "test", "b")
    put(tmp_path / "set", "dataset_dict.json", '{"splits": ["train", "test"]}')
    source = SourceConfig(path=str(tmp_path / "set"))
    assert values(tmp_path / "set") == [{"text": "a"}]
    assert files_and_other_splits(source)[1] == ["test"]
    (file,) = source_files(source.model_copy(update={"split": "test"}))
    assert file.name == "test/data-00000-of-00001.arrow"
    with pytest.raises(DataError, match=r"no such split.*got dev, expected one of test, train"):
        source_files(source.model_copy(update={"split": "dev"}))


def test_parts_of_a_copied_hub_data_set_are_told_apart(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        put(tmp_path, f"{name}.jsonl", json.dumps({"part": name}))
    put(tmp_path, "more.jsonl", json.dumps({"part": "more"}))
    assert {row["part"] for row in values(tmp_path)} == {"train-00000-of-00002", "train-00001-of-00002", "more"}
    assert files_and_other_splits(SourceConfig(path=str(tmp_path)))[1] == ["test"]
    (tmp_path / "test-00000-of-00001.jsonl").unlink()
    assert files_and_other_splits(SourceConfig(path=str(tmp_path)))[1] == []


@pytest.mark.parametrize("layout", ["{}\n{}", "[{}, {}]", "[\n {},\n {}\n]"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_ids_of_thousands_of_digits_cost_nothing(tmp_path: Path, layout: str, name: str) -> None:
    rows = [f'{{"id": {digits}, "n": 5}}' for digits in ("7" * 5000, "12")]
    assert values(put(tmp_path, name, layout.format(*rows))) == [{"id": "7" * 5000, "n": 5}, {"id": 12, "n": 5}]
