"""Names in the settings of what is not there are found by the plan, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config_file import check_config
from alignment_core.errors import AlignmentError, ConfigError
from alignment_core.planning import lm_eval
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    rows = [{"prompt": f"What is {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128},
        "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}]},
        "store": str(tmp_path / "store"),
    }


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"format": "nope"}, r"data\.sources\[\]\.format: .*nope"),
        ({"columns": {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}}, "question"),
    ],
)
def test_unknown_format_or_column(settings: dict[str, Any], source: dict[str, Any], problem: str) -> None:
    settings["data"]["sources"][0] |= source
    with pytest.raises(AlignmentError, match=problem) as error:
        plan_pipeline(check_config(settings), load_registry())
    assert error.value.exit_code == 2


def test_unknown_lm_eval_task(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin, own = tmp_path / "builtin", tmp_path / "own"
    for folder, text in ((builtin / "deep", "task: arc_easy\n"), (own, "task: mine\ntag:\n  - some-group\n")):
        folder.mkdir(parents=True)
        (folder / "task.yaml").write_text(text)
    monkeypatch.setattr(lm_eval, "_own_tasks_of_lm_eval", lambda: [builtin])
    monkeypatch.setattr(lm_eval, "_installed", lambda: "0.4.9")
    settings["evaluation"] = {"lm_eval": {"tasks": ["arc_easy", "mine", "some-group"], "include_path": str(own)}}
    plan_pipeline(check_config(settings), load_registry())
    settings["evaluation"]["lm_eval"]["tasks"] = ["arc_eas", "mine", "group"]
    with pytest.raises(ConfigError, match=r"evaluation.lm_eval.tasks: lm-eval has no such task. got arc_eas, group."):
        plan_pipeline(check_config(settings), load_registry())
