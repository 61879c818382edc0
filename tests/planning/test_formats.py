"""A plugin's record format is detected and read. It enters only the keys of data that it read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config import PipelineConfig
from alignment_core.data.ingestion.check import check
from alignment_core.errors import PluginError
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry

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
            turn = lambda role, text: ({"role": role, "content": text},)
            prompt, answer = turn("user", row["frage"]), turn("assistant", row["antwort"])
            yield Reading(LabelledResponse(prompt, answer, row["urteil"] == "gut", origin=origin))

    @hookimpl
    def alignment_formats():
        return [Verdicts]
"""


@pytest.fixture
def plugin_rows(tmp_path: Path) -> Path:
    """Write rows that only the plugin reads."""
    verdicts = ["gut", "schlecht", "egal"]
    rows = [{"frage": f"Was ist {n}?", "antwort": f"Es ist {n}.", "urteil": verdicts[n % 3]} for n in range(30)]
    return write(tmp_path / "verdicts.jsonl", rows)


@pytest.fixture
def builtin_rows(tmp_path: Path) -> Path:
    """Write rows in a built-in format."""
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 2 == 0} for n in range(30)]
    return write(tmp_path / "labelled.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def keys(model: Path, *paths: Path, **source: Any) -> tuple[str, Any]:
    """Return the key of the `ingest` stage and the plugins in its configuration."""
    config = PipelineConfig.model_validate(
        {
            "model": {"base": str(model)},
            "data": {"sources": [{"path": str(path), **source} for path in paths]},
            "optimizer": {"name": "kto"},
        }
    )
    ingest = plan_pipeline(config, load_registry()).ingest
    return ingest.key, ingest.config.get("plugins")


def test_plugin_rows_are_detected_read_and_counted(install: Callable[..., None], plugin_rows: Path) -> None:
    install("stranger-verdicts", FORMAT)
    report = check([str(plugin_rows)], plugged=load_registry().formats())
    assert [file["format"] for file in report["files"]] == ["verdicts"]
    rows = report["rows"]
    assert rows["train"]["feedback"] + rows["held_out"]["feedback"] == 20
    assert report["dropped"] == {"neutral": 10}


def test_plugin_version_enters_only_keys_of_data_it_reads(
    install: Callable[..., None], tiny_model: Path, plugin_rows: Path, builtin_rows: Path, tmp_path: Path
) -> None:
    without = keys(tiny_model, builtin_rows)
    install("stranger-verdicts", FORMAT, version="1.0")
    assert keys(tiny_model, builtin_rows) == without
    first, plugins = keys(tiny_model, plugin_rows)
    assert plugins == [{"package": "stranger-verdicts", "version": "1.0"}]
    assert keys(tiny_model, plugin_rows, format="verdicts")[1] == plugins
    (tmp_path / "stranger_verdicts-1.0.dist-info").rename(tmp_path / "gone")
    install("stranger-verdicts", FORMAT, version="1.1")
    second, plugins = keys(tiny_model, plugin_rows)
    assert plugins == [{"package": "stranger-verdicts", "version": "1.1"}]
    assert second != first
    assert keys(tiny_model, builtin_rows) == without


def test_listeners_enter_no_key(tiny_model: Path, builtin_rows: Path, tmp_path: Path) -> None:
    def calls(**changes: Any) -> Iterator[str]:
        data = {"sources": [{"path": str(builtin_rows)}]}
        config = PipelineConfig.model_validate({"model": {"base": str(tiny_model)}, "data": data, **changes})
        yield from (call.key for call in plan_pipeline(config, load_registry()).calls().values())

    assert list(calls()) == list(calls(listeners=[{"name": "jsonl", "path": str(tmp_path / "metrics.jsonl")}]))


def test_a_format_that_raises_is_named_with_the_row(install: Callable[..., None], plugin_rows: Path) -> None:
    """`records` joins rows, so the rows before the fault cannot be kept."""
    joining = FORMAT.replace(
        "        def read(self, row",
        "        def records(self, rows, source):\n"
        "            for number, row in enumerate(rows):\n"
        "                yield Dropped(row.value['frage' if number < 3 else 'fage'], row.origin)\n\n"
        "        def read(self, row",
    )
    install("stranger-verdicts", joining)
    with pytest.raises(PluginError) as error:
        check([str(plugin_rows)], plugged=load_registry().formats())
    first, *trace = str(error.value).splitlines()
    assert first == (
        "`records` of the record format `verdicts` (stranger_verdicts), verdicts.jsonl:4: it raised KeyError: 'fage'. "
        "The last lines of the traceback:"
    )
    assert "stranger_verdicts.py" in trace[0]
    assert trace[-1] == "  KeyError: 'fage'."


def test_a_format_that_cannot_tell_its_rows_is_named(install: Callable[..., None], builtin_rows: Path) -> None:
    """If it did not match, the rows that it was installed for might be read as something else."""
    install("stranger-verdicts", FORMAT.replace('{"frage", "antwort", "urteil"} <= set(row)', 'row["urteil"] > 0'))
    with pytest.raises(PluginError) as error:
        check([str(builtin_rows)], plugged=load_registry().formats())
    where = "`matches` of the record format `verdicts` (stranger_verdicts), labelled.jsonl, row 1: "
    assert str(error.value).startswith(f"{where}it raised KeyError: 'urteil'")


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("yield Dropped(", "yield (", "it yields something that is not an outcome. got tuple"),
        ("yield Reading(Lab", "yield (Lab", "it yields something that is not an outcome. got LabelledResponse"),
        ("Reading(Lab", "Reading(str(Lab", "it yields a reading without a record. got str"),
        ('({"role": role, "content": text},)', "text", "`prompt` of a record is not a conversation. got 'Was ist 0?'"),
        ('({"role": role, "content": text},)', '[{"role": role}]', "`prompt` of a record is not a conversation. got ["),
        (", origin=origin", "", "the origin of a record is not that of a row. got '', expected the"),
    ],
)  # fmt: skip
def test_what_a_format_yields_is_checked(
    install: Callable[..., None], plugin_rows: Path, old: str, new: str, part: str
) -> None:
    assert old in FORMAT
    closing = ")" if "str(" in new else ""
    install("stranger-verdicts", FORMAT.replace(old, new).replace("origin=origin)", f"origin=origin){closing}"))
    with pytest.raises(PluginError) as error:
        check([str(plugin_rows)], plugged=load_registry().formats())
    message = str(error.value)
    assert message.startswith("`read` of the record format `verdicts` (stranger_verdicts), ")
    assert part in message


def test_a_format_whose_records_returns_nothing(install: Callable[..., None], plugin_rows: Path) -> None:
    install(
        "stranger-verdicts", FORMAT.replace("def read(", "def records(self, rows, source): pass\n\n        def read(")
    )
    with pytest.raises(
        PluginError, match=r"`records` of .*: it yields no outcomes\. got NoneType, expected a generator"
    ):
        check([str(plugin_rows)], plugged=load_registry().formats())
