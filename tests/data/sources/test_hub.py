"""Hub data sets, read with the real Hub client from a local server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import served

CARD = """---
configs:
- config_name: default
  data_files: data.jsonl
- config_name: other
  data_files: other.jsonl
---
"""
NEW, OLD = "a" * 40, "b" * 40


def rows(word: str, count: int) -> str:
    return "\n".join(json.dumps({"prompt": f"{word} {i}", "completion": "x"}) for i in range(count))


SCRIPT = """
import json, sys
from alignment_core.config import SourceConfig
from alignment_core.data.sources.identity import source_identity
from alignment_core.data.sources.readers import read_hub
from alignment_core.errors import DataError

for settings in json.loads(sys.argv[1]):
    source = SourceConfig(**settings)
    try:
        key = source_identity(source).key
        values = [[row.origin, row.value["prompt"]] for row in read_hub(source, key["commit"])]
        print(json.dumps([key["hub"], key["commit"], values]))
    except DataError as error:
        print(json.dumps(error.to_json()))
"""


@pytest.mark.ci
def test_hub_data_set_is_read_at_the_commit_of_its_revision(tmp_path: Path) -> None:
    files = {"README.md": CARD, "data.jsonl": rows("q", 3), "other.jsonl": rows("r", 2)}
    cases = [
        {}, {"subset": "other"}, {"revision": "old"}, {"revision": OLD}, {"revision": "nope"}, {"split": "test"},
        {"path": "hf://org/none"},
    ]  # fmt: skip
    with served("org/name", {"main": (NEW, files), "old": (OLD, {"data.jsonl": rows("q", 1)})}) as (address, _):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        sources = [{"path": "hf://org/name", **settings} for settings in cases]
        command = [sys.executable, "-c", SCRIPT, json.dumps(sources)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    default_subset, other, old, pinned, nope, split, none = map(json.loads, done.stdout.splitlines())
    assert default_subset == ["org/name", NEW, [[f"org/name:{i + 1}", f"q {i}"] for i in range(3)]]
    assert other == ["org/name", NEW, [["org/name:1", "r 0"], ["org/name:2", "r 1"]]]
    assert old == pinned == ["org/name", OLD, [["org/name:1", "q 0"]]]
    assert (nope["what"], none["what"]) == ("the Hub data set cannot be resolved",) * 2
    assert "RevisionNotFound" in nope["got"]
    assert "RepositoryNotFound" in none["got"]
    assert split["what"] == "the Hub data set cannot be read"
    assert "Bad split" in split["got"]
    assert "data.sources[].subset and .split" in split["do"]


def test_unreachable_hub_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment_core.config import SourceConfig
    from alignment_core.data.sources.identity import hub_commit
    from alignment_core.errors import DataError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="the Hub data set cannot be resolved") as problem:
        hub_commit(SourceConfig(path="hf://org/name"))
    assert "\n" not in str(problem.value)
    assert hub_commit(SourceConfig(path="hf://org/name", revision=NEW)) == NEW


PLAN = """
import json, sys
from alignment_core.config_file import check_config
from alignment_core.errors import DataError
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry

model, store, cases = json.loads(sys.argv[1])
for settings in cases:
    try:
        config = {
            "model": {"base": model, "load_in": "fp32", "max_length": 128},
            "data": {"sources": [{"path": "hf://org/name", **settings}]},
            "optimizer": {"name": "dpo"},
            "store": store,
        }
        print(json.dumps({"key": plan_pipeline(check_config(config), load_registry()).calls()["ingest"].key}))
    except DataError as error:
        print(json.dumps(error.to_json()))
"""


@pytest.mark.slow
def test_plan_reads_the_first_rows_of_a_hub_data_set(tmp_path: Path, tiny_model: Path) -> None:
    """Nothing is read once the data set is ingested, and nothing is checked if the Hub cannot be reached."""
    pairs = [{"a": f"{n}?", "b": "Yes.", "c": "No."} for n in range(3)]
    files = {"data.jsonl": "\n".join(map(json.dumps, pairs))}
    columns = {"prompt": "a", "chosen": "b", "rejected": "c"}
    cases = [
        {"columns": columns}, {"columns": columns | {"prompt": "query"}}, {}, {"format": "nope"}, {"split": "test"},
        {"columns": columns, "subset": "other"}, {"columns": columns, "revision": NEW},
    ]  # fmt: skip
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}

    def plan(store: Path, cases: list[dict[str, object]]) -> list[dict[str, str]]:
        command = [sys.executable, "-c", PLAN, json.dumps([str(tiny_model), str(store), cases])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    with served("org/name", {"main": (NEW, files)}) as (address, requested):
        environment["HF_ENDPOINT"] = address
        good, column, unknown, format, split, subset, pinned = plan(tmp_path / "store", cases)
        assert "query" in column["what"] + column.get("got", "")
        assert unknown["what"] == "no known format matches these rows"
        assert "nope" in format["got"]
        assert "Bad split" in split["got"]
        assert "other" in subset["got"]
        (tmp_path / "store" / "ingest" / good["key"]).mkdir(parents=True)
        requested.clear()
        assert plan(tmp_path / "store", cases[:1]) == [good]
        assert not any("data.jsonl" in path for path in requested)
    assert plan(tmp_path / "new", cases[-1:]) == [pinned]
