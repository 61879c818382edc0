"""`align feedback`, and `align data check` of a feedback store: the output and the error messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_disk import small_disk
from typer.testing import CliRunner

from alignment_core.feedback import Rater, open_feedback
from alignment_flows.cli.app import app

PROMPT = ({"role": "user", "content": "What is two plus two?"},)


@pytest.fixture
def place(tmp_path: Path) -> str:
    with open_feedback(str(tmp_path / "votes.db")) as store:
        response = store.add_response(PROMPT, "Four, of course.", "model-1")
        for rater, up in [(Rater("Ann [bold]"), True), (Rater("Ben"), True), (Rater("judge", "ai"), False)]:
            store.thumb(rater, response, up)
        return store.place


def align(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stdout, done.stderr


def test_show_names_raters_their_kind_and_their_agreement(place: str) -> None:
    code, out, _ = align("feedback", "show", "--store", place)
    assert code == 0
    assert "3 votes" in out
    assert "Ann [bold]" in out
    assert "Ann [bold] and Ben agree on 100 % of 1 judgment\n" in out
    found = json.loads(align("feedback", "show", "--store", place, "--json")[1])
    assert found["raters"] == [
        {"rater": "Ann [bold]", "kind": "human", "thumbs": 1},
        {"rater": "Ben", "kind": "human", "thumbs": 1},
        {"rater": "judge", "kind": "ai", "thumbs": 1},
    ]
    assert {"raters": ["Ben", "judge"], "agreed": 0, "opposed": 1} in found["agreement"]


def test_export_import_and_check(place: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    assert align("feedback", "export", folder, "--store", place)[1] == f"{folder}: 3 rows in thumbs.jsonl\n"
    other = str(tmp_path / "other.db")
    assert align("feedback", "import", folder, "--store", other)[1] == f"{other}: imported 3 thumbs\n"
    assert (
        align("feedback", "import", folder, "--store", other)[1]
        == f"{other}: imported nothing\nAlready there: 3 votes\n"
    )
    (tmp_path / "more.jsonl").write_text(
        '{"prompt": "Hi?", "completion": "Yes.", "label": true}\n{"prompt": "", "completion": "No.", "label": true}\n'
    )
    assert align("feedback", "import", str(tmp_path / "more.jsonl"), "--store", other)[1] == (
        f"{other}: imported 1 thumb\nLeft out: 1, empty prompt\n"
    )
    code, out, _ = align("data", "check", other, "--json")
    assert code == 0
    assert json.loads(out)["votes"]["outvoted"] == 1


def test_errors_are_reported(place: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.db")
    for command in (["feedback", "show"], ["feedback", "export", str(tmp_path / "new")]):
        code, _, error = align(*command, "--store", missing)
        assert (code, "no such feedback store" in error) == (2, True)
    assert "no such feedback store" in align("data", "check", missing)[2]
    assert not Path(missing).exists()
    assert "Choose a new folder" in align("feedback", "export", str(tmp_path), "--store", place)[2]
    code, _, error = align("feedback", "import", str(tmp_path / "nothing.jsonl"), "--store", place)
    assert (code, "no such file" in error) == (2, True)


def test_chat_without_a_model_offers_the_base_model(write: Callable[..., Path], tmp_path: Path) -> None:
    config = str(write())
    code, _, err = align("chat", config)
    assert code == 2
    assert "run a pipeline first, or open the base model with `--model base`" in err
    (tmp_path / "store").mkdir()
    assert "another store with `--store`, or open the base model with `--model base`" in align("chat", config)[2]
    assert "both models are the same" in align("chat", config, "--beside", "production")[2]


def test_export_to_a_full_disk_is_one_paragraph_and_leaves_nothing(place: str, tmp_path: Path) -> None:
    with open_feedback(place) as store:
        store.thumb(Rater("Eve"), store.add_response(PROMPT, "x" * 100_000, "m"), True)
    with small_disk(tmp_path / "disk", 0.05) as disk:
        code, _, errors = align("feedback", "export", str(disk / "out"), "--store", place)
        assert code == 2
        assert errors.startswith("align: ")
        assert "No space left on device. Free some disk space" in " ".join(errors.split())
        assert list(disk.iterdir()) == []
