"""Rows that ranking will add to the data are part of the forecast, for every optimizer that can learn from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_core.config import SampleConfig
from alignment_core.config_file import load_config
from alignment_core.forecast.data_preview import DataPreview
from alignment_core.forecast.ranked import ranked_rows
from alignment_core.forecast.workload import Workload
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.registry import load_registry

PROMPTS = [Row(f"p{i}", {"prompt": TokenSequence((7,) * (2 + i), 2 + i)}) for i in range(3)]


def test_rows_by_hand() -> None:
    settings = SampleConfig(responses_per_prompt=3, max_prompts=2)
    pairs, labels = ([*ranked_rows(kind, PROMPTS, settings, 4)] for kind in ("preferences", "feedback"))
    # Two prompts, with three responses each: 3 pairs and 3 labels per prompt.
    assert [row.id for row in pairs] == ["p0 0 1", "p0 0 2", "p0 1 2", "p1 0 1", "p1 0 2", "p1 1 2"]
    assert [row.values["desirable"] for row in labels] == [1.0, 0.0, 1.0] * 2
    found = {s for row in (*pairs, *labels) for s in row.sequences.values()}
    # Pairs and labels share the responses. Each label has a mismatched response of its own.
    assert len(found) == 2 * (3 + 3)
    assert {(s.start, len(s.completion)) for s in found} == {(2, 4), (3, 4)}
    assert not [*ranked_rows("prompts", PROMPTS, settings, 4)]


@pytest.fixture
def ranked_run(write: Callable[..., Path], tmp_path: Path) -> Path:
    """Write a run whose data are demonstrations, so that all feedback comes from `rank`."""
    turns = [
        {"messages": [{"role": "user", "content": f"Say {n}!"}, {"role": "assistant", "content": f"{n}."}]}
        for n in range(12)
    ]
    (tmp_path / "demonstrations.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    return write(
        data={"sources": [{"path": str(tmp_path / "demonstrations.jsonl")}], "held_out_fraction": 0.25},
        sample={"responses_per_prompt": 3, "max_new_tokens": 8},
        rank={"by": {"name": "wordlist", "wanted": ["one"]}},
        optimizer={"name": "kto", "batch_size": 4},
    )


@pytest.mark.parametrize(("name", "needed"), [("kto", 3), ("dpo", 3)])
def test_workload_counts_them(ranked_run: Path, tmp_path: Path, name: str, needed: int) -> None:
    config = load_config(ranked_run, [f"optimizer.name={name}"])
    calls = plan_pipeline(config, load_registry()).calls()
    work = Workload(calls, preview := DataPreview(calls, tmp_path / "scratch"), width=8)
    prompts, given = len(preview.prompts().prompts), preview.train(calls["optimize"])
    assert prompts > 0
    assert not given.preferences
    assert not given.feedback
    assert work.of(calls["optimize"]).rows == needed * prompts
    assert work.of(calls["reference"]).rows == needed * prompts
    # Every epoch reads each row once, in steps of 4.
    assert work.of(calls["optimize"]).demand(10_000).steps == -(-needed * prompts // 4)
