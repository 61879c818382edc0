"""A plugin's record format is detected, read, and enters the keys of what it read, and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config import PipelineConfig
from alignment_core.data.check import check
from alignment_core.registry import load_registry
from alignment_core.stages.plan import make_plan

FORMAT = """
    from typing import ClassVar
    from alignment_core.plugin_api import Dropped, LabelledResponse, Reading, RecordFormat, hookimpl

    class Verdicts(RecordFormat):
        'A table of verdicts.'
        name: ClassVar[str] = "verdicts"
        shape: ClassVar[str] = "{frage, antwort, urteil}"

        def matches(self, row):
            return {"frage", "antwort", "urteil"} <= set(row)

        def read(self, row, origin, source):
            if row["urteil"] == "egal":
                yield Dropped("neutral", origin)
                return
            said = lambda role, text: ({"role": role, "content": text},)
            prompt, answer = said("user", row["frage"]), said("assistant", row["antwort"])
            yield Reading(LabelledResponse(prompt, answer, row["urteil"] == "gut", origin=origin))

    @hookimpl
    def alignment_formats():
        return [Verdicts]
"""


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Rows that only the plugin reads."""
    verdicts = ["gut", "schlecht", "egal"]
    rows = [{"frage": f"Was ist {n}?", "antwort": f"Es ist {n}.", "urteil": verdicts[n % 3]} for n in range(30)]
    return write(tmp_path / "verdicts.jsonl", rows)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Rows in a built-in format."""
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 2 == 0} for n in range(30)]
    return write(tmp_path / "labelled.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def keys(model: Path, *paths: Path, **source: Any) -> tuple[str, Any]:
    """Key of the ingestion, and the plugins in it."""
    config = PipelineConfig.model_validate(
        {
            "model": {"base": str(model)},
            "data": {"sources": [{"path": str(path), **source} for path in paths]},
            "optimizer": {"name": "kto"},
        }
    )
    ingest = make_plan(config, load_registry()).ingest
    return ingest.key, ingest.config.get("plugins")


def test_its_rows_are_detected_read_and_counted(install: Callable[..., None], ours: Path) -> None:
    install("stranger-verdicts", FORMAT)
    report = check([str(ours)], plugged=load_registry().formats())
    assert [file["format"] for file in report["files"]] == ["verdicts"]
    rows = report["rows"]
    assert rows["train"]["feedback"] + rows["held_out"]["feedback"] == 20
    assert report["dropped"] == {"neutral": 10}


def test_only_what_the_plugin_reads_depends_on_its_version(
    install: Callable[..., None], tiny_model: Path, ours: Path, theirs: Path, tmp_path: Path
) -> None:
    without = keys(tiny_model, theirs)
    install("stranger-verdicts", FORMAT, version="1.0")
    assert keys(tiny_model, theirs) == without
    first, plugins = keys(tiny_model, ours)
    assert plugins == [{"package": "stranger-verdicts", "version": "1.0"}]
    assert keys(tiny_model, ours, format="verdicts")[1] == plugins
    (tmp_path / "stranger_verdicts-1.0.dist-info").rename(tmp_path / "gone")
    install("stranger-verdicts", FORMAT, version="1.1")
    second, plugins = keys(tiny_model, ours)
    assert plugins == [{"package": "stranger-verdicts", "version": "1.1"}]
    assert second != first
    assert keys(tiny_model, theirs) == without


def test_a_listener_enters_no_key(tiny_model: Path, theirs: Path, tmp_path: Path) -> None:
    def calls(**changes: Any) -> Iterator[str]:
        data = {"sources": [{"path": str(theirs)}]}
        config = PipelineConfig.model_validate({"model": {"base": str(tiny_model)}, "data": data, **changes})
        yield from (call.key for call in make_plan(config, load_registry()).calls().values())

    assert list(calls()) == list(calls(listeners=[{"name": "jsonl", "path": str(tmp_path / "metrics.jsonl")}]))
