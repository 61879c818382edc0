"""Rows that a later stage needs are missed before anything is trained, by a run and by its plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from classifiers import edit_json
from runs import Listener

from alignment_core.config_file import load_config
from alignment_core.data.dataset.splits import read_dataset
from alignment_core.errors import DataError
from alignment_core.execution.build import build_here
from alignment_core.forecast.data_preview import DataPreview
from alignment_core.planning.data_needs import check_data
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.registry import load_registry

Rows = list[dict[str, Any]]


def pair(number: int, prompt: str | None = None) -> dict[str, Any]:
    return {"prompt": prompt or f"What is {number} plus {number}?", "chosen": f"It is {number}.", "rejected": "No!"}


def thumb(number: int, up: bool) -> dict[str, Any]:
    return {"prompt": f"What is {number} plus {number}?", "completion": f"It is {number}.", "label": up}


@pytest.fixture
def planned(write: Callable[..., Path], tmp_path: Path) -> Callable[..., Plan]:
    """Return a function that plans the small run on other rows."""

    def plan(rows: Rows, *changes: str) -> Plan:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = f"data.sources.0.path={tmp_path / 'rows.jsonl'}"
        return plan_pipeline(load_config(write(), [source, "data.near_duplicates=null", *changes]), load_registry())

    return plan


PROBLEMS: list[tuple[Rows, list[str], str]] = [
    ([pair(3)], [], r"no prompt is held out.*got 1 prompt in all.*other prompts"),
    ([{**pair(n), "prompt": "Say it"} for n in range(20)], [], r"no prompt is held out.*got 1 prompt in all"),
    ([thumb(n, up=True) for n in range(20)], ["optimizer.name=kto"], r"kto needs .*20|1\d desirable and 0 undesirable"),
    ([thumb(n, up=False) for n in range(20)], ["optimizer.name=kto", "sft=null"], r"kto needs .*0 desirable and 1\d"),
    ([thumb(n, up=False) for n in range(20)], ["optimizer.name=kto"], "contain no demonstrations.*`sft: null`"),
    ([thumb(n, up=True) for n in range(20)], [], "contain no preference pairs"),
    ([thumb(n, up=True) for n in range(20)], ["optimizer.name=ppo"], r"reward .*contain no preference pairs.*`rank`"),
    ([pair(n) for n in range(3)], ["evaluation.judge_fraction=0.01"], r"judge .*the part of the data .* no preference"),
]


@pytest.mark.parametrize(("rows", "changes", "problem"), PROBLEMS)
def test_missing_rows(
    planned: Callable[..., Plan], tmp_path: Path, rows: Rows, changes: list[str], problem: str
) -> None:
    plan = planned(rows, *changes)
    with pytest.raises(DataError, match=problem):
        DataPreview(plan.calls(), tmp_path / "scratch")
    folders = {name: build_here(plan.calls()[name], Listener())[0].path for name in plan.data_stages()}
    with pytest.raises(DataError, match=problem):
        check_data(plan.calls(), folders)


@pytest.mark.parametrize("optimizer", ["dpo", "kto", "ppo", "grpo", "rloo", "online_dpo"])
def test_small_data_that_suffice(planned: Callable[..., Plan], optimizer: str) -> None:
    plan = planned([pair(3), pair(400)], f"optimizer.name={optimizer}")
    check_data(plan.calls(), {"ingest": build_here(plan.ingest, Listener())[0].path})


@pytest.mark.parametrize("optimizer", ["dpo", "kto", "ppo"])
def test_what_a_ranking_of_samples_adds_may_be_missing(planned: Callable[..., Plan], optimizer: str) -> None:
    rows = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {n}."} for n in range(20)]
    ranked = ["sample={}", "rank={by: {name: wordlist, wanted: [It]}}"]
    plan = planned(rows, f"optimizer.name={optimizer}", *ranked)
    folders = {"ingest": build_here(plan.ingest, Listener())[0].path}
    check_data(plan.calls(), folders)
    with pytest.raises(DataError, match="contain no "):
        check_data(planned(rows, f"optimizer.name={optimizer}").calls(), folders)


@pytest.mark.parametrize(("positions", "warned"), [(64, True), (512, False)])
def test_rows_that_are_longer_than_what_the_model_was_made_for(
    planned: Callable[..., Plan],
    tiny_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    positions: int,
    warned: bool,
) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    edit_json(base / "config.json", max_position_embeddings=positions)
    plan = planned([pair(3), {**pair(400), "chosen": "word " * 16}], f"model.base={base}")
    folder = build_here(plan.ingest, Listener())[0].path
    check_data(plan.calls(), {"ingest": folder})
    longest = json.loads((folder / "report.json").read_text())["fit"]["longest"]
    data = read_dataset(folder)
    rows = [*data.train.preferences, *data.held_out.preferences]
    assert longest == max(len(sequence.ids) for row in rows for sequence in row.sequences.values())
    said = f"the longest row has {longest} tokens, and the model was made for {positions} positions"
    assert (said in caplog.text) is warned
