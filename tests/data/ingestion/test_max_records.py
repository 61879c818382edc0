"""`max_records` stops the reading of a source, or of all sources together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.ingestion.ingest import ingest
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.progress import Silent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("a", 2), ("b", 20), ("c", 20)):
        rows = [json.dumps({"prompt": f"{name * 3} {i * 7919} {i}", "completion": str(i)}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def run(folder: Path, renderer: Renderer, total: int | None, *sources: dict[str, Any]) -> dict[str, Any]:
    out = folder / "out"
    out.mkdir()
    data = DataConfig(
        sources=[SourceConfig(path=str(folder / source.pop("name")), **source) for source in sources],
        max_records=total,
    )
    return ingest(data, renderer, out, Silent(), pages=False)


def read(report: dict[str, Any]) -> list[int]:
    return [file["records"] for file in report["files"]]


def test_total_is_shared_among_the_files_and_what_one_leaves_goes_to_the_others(
    folder: Path, renderer: Renderer
) -> None:
    report = run(folder, renderer, 12, {"name": "a.jsonl"}, {"name": "b.jsonl"}, {"name": "c.jsonl"})
    assert read(report) == [2, 5, 5]
    assert report["used"] == {"records": 12, "of": 12}
    assert [file["rows"] for file in report["files"]] == [2, 5, 5]
    (warning,) = [text for text in report["warnings"] if "max_records" in text]
    assert warning == "Stopped after 10 records of b.jsonl, c.jsonl (max_records)"


def test_limit_of_one_source(folder: Path, renderer: Renderer) -> None:
    assert read(run(folder, renderer, None, {"name": "b.jsonl", "max_records": 3}, {"name": "c.jsonl"})) == [3, 20]


def test_both_limits(folder: Path, renderer: Renderer) -> None:
    """The order of the files depends on their content. If the one with 2 records is the last, one record is missing."""
    assert sorted(read(run(folder, renderer, 30, {"name": "*.jsonl", "max_records": 9}))) in ([2, 3, 3], [2, 3, 4])


def test_fewer_records_than_files(folder: Path, renderer: Renderer) -> None:
    assert read(run(folder, renderer, 2, {"name": "a.jsonl"}, {"name": "b.jsonl"}, {"name": "c.jsonl"})) == [1, 1]
