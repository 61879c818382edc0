"""`align init`: it looks at the data, says what learns from them, and its config file runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import align_here
from screen import python, run_in_terminal

from alignment_core.config_file import load_config
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry
from alignment_flows.starting.advice import Contents, recommend
from alignment_flows.starting.answers import Answers, find_answers
from alignment_flows.starting.config_text import Choices, config_text

COLUMNS = {"prompt": "frage", "completion": "antwort", "label": "urteil"}
QUESTIONS = [f"What is {n} plus {n}?" for n in range(24)]


def pairs() -> list[dict[str, Any]]:
    return [{"prompt": ask, "chosen": "It is easy.", "rejected": f"No, not {ask}"} for ask in QUESTIONS]


def thumbs() -> list[dict[str, Any]]:
    answers = [("Gladly, it is easy.", True), ("No.", False), ("Never.", False)]
    return [
        {"prompt": ask, "completion": f"{answer} {ask}", "label": up} for ask in QUESTIONS for answer, up in answers
    ]


def ranked() -> list[dict[str, Any]]:
    return [{"prompt": ask, "responses": ["one", "two", "three"], "ranks": [1, 2, 3]} for ask in QUESTIONS]


def demonstrations() -> list[dict[str, Any]]:
    return [{"prompt": ask, "completion": "It is easy, if you can add."} for ask in QUESTIONS]


def sums() -> list[dict[str, Any]]:
    return [{"prompt": ask, "solution": str(2 * n)} for n, ask in enumerate(QUESTIONS)]


def capitals() -> list[dict[str, Any]]:
    return [{"prompt": ask, "answer": "the blue one"} for ask in QUESTIONS]


def questions() -> list[dict[str, Any]]:
    return [{"prompt": ask} for ask in QUESTIONS]


Write = Callable[[list[dict[str, Any]]], Path]


@pytest.fixture
def write_rows(tmp_path: Path) -> Write:
    def write(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("rows", "optimizer", "because", "found"),
    [
        (pairs, "dpo", "pairs of a better and a worse answer (24)", "24 pairs"),
        (ranked, "dpo", "pairs of a better and a worse answer (72)", "72 pairs"),
        (thumbs, "kto", "single answers marked good or bad (72, 33 % good)", "72 answers with a thumb or rating"),
        (sums, "grpo", "right answers in the column `solution`, so the rule `numeric_match`", "24 prompts"),
        (capitals, "grpo", "right answers in the column `answer`, so the rule `exact_match`", "24 demonstrations"),
        (demonstrations, "grpo", "demonstrations only (24). SFT imitates them", "24 demonstrations"),
        (questions, "grpo", "prompts without right answers", "24 prompts without an answer"),
    ],
)
def test_data_decide_the_optimizer(
    write_rows: Write,
    tmp_path: Path,
    tiny_model: Path,
    rows: Callable[[], Any],
    optimizer: str,
    because: str,
    found: str,
) -> None:
    out = tmp_path / "made" / "first try.yaml"
    done = align_here("init", write_rows(rows()), "--model", tiny_model, "--card", "cpu", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Found {found}")
    assert f"Recommended: {optimizer}, because your " in done.stdout
    assert because in done.stdout
    made = yaml.safe_load(out.read_text())
    assert made["name"] == "first-try"
    assert made["optimizer"]["name"] == optimizer
    assert ("First: " in done.stdout) == (rows in (demonstrations, questions)), "only a judge has to be set up"
    # The tiny model has no chat template. It needs SFT where there is something to learn it from.
    assert (made["sft"] is None) == (rows in (sums, questions))
    # A rule that rewards the answers judges them, too. A reward model does if there are 50 pairs to train it with.
    assert made["evaluation"].get("evaluators") == (made["reward"]["by"] if rows in (sums, capitals) else None)
    assert made["evaluation"].get("reward_model", False) == (rows is ranked)
    assert ("Nothing judges" in out.read_text()) == (rows in (pairs, thumbs, demonstrations, questions))
    plan = plan_pipeline(load_config(out, [f"store={tmp_path / 'store'}"]), load_registry())
    assert {"ingest", "optimize", "evaluate"} <= set(plan.calls())


@pytest.mark.ci
@pytest.mark.parametrize("rows", [pairs, thumbs, sums, demonstrations])
def test_plan_accepts_the_config(write_rows: Write, tmp_path: Path, tiny_model: Path, rows: Callable[[], Any]) -> None:
    out = tmp_path / "config.yaml"
    assert align_here("init", write_rows(rows()), "--model", tiny_model, "--card", "cpu", "--out", out).returncode == 0
    planned = align_here("plan", out, "--set", f"store={tmp_path / 'store'}")
    assert (planned.returncode, planned.stderr) == (0, "")


@pytest.mark.parametrize(
    ("pairs", "card", "rate"),
    [
        (24, None, 0.001),  # 2 steps in each of 5 passes: 0.01 / (10 · 0.545) = 0.0018, and 0.001 at most
        (800, None, 4e-4),  # 50 steps of 16 pairs: 0.01 / (50 · 0.545) = 0.00037
        (40_000, None, 1e-5),  # 1250 steps of 32 pairs
        (24, 24.0, None),  # at most the default
        (40_000, 24.0, 1e-5),
    ],
)
def test_the_learning_rate_follows_from_the_steps(pairs: int, card: float | None, rate: float | None) -> None:
    chosen = Choices("run", ["pairs.jsonl"], "model", card, {"columns": {}, "desirable": []}, {}, 100)
    contents = Contents(pairs, 0, 0, 0, comparisons=pairs, liked=0, disliked=0, conversations=pairs)
    optimizer = yaml.safe_load(config_text(chosen, contents, recommend(contents, None, instruct=True)))["optimizer"]
    assert optimizer.get("learning_rate") == rate


def test_ratings_get_a_threshold_and_a_file_is_commented(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "answer", "stars"])
        table.writerows((ask, f"{word} {ask}", stars) for ask in QUESTIONS for word, stars in (("Yes.", 5), ("No.", 1)))
        table.writerow(["What is one?", "It is so-so.", 3])
        table.writerow(["What is two?", "It is good.", 4])
    out = tmp_path / "stars.yaml"
    done = align_here("init", path, "--card", "12gb", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"In {path}, ratings from 4 on are a thumbs up." in done.stdout
    assert done.stdout.endswith(f"  align plan {out} --card 12gb\n  align run {out}\n")
    made = yaml.safe_load(out.read_text())
    assert made["data"]["sources"] == [{"path": str(path), "threshold": 4}]
    assert made["model"] == {"base": "Qwen/Qwen2.5-1.5B-Instruct", "max_length": 256}
    assert made["optimizer"] == {"name": "kto", "batch_size": 16, "epochs": 5}
    assert made["sft"] is None
    comments = [line for line in out.read_text().splitlines() if "#" in line]
    assert len(comments) >= 5
    assert max(map(len, out.read_text().splitlines())) <= 120


@pytest.mark.parametrize(
    ("rows", "column", "rule"),
    [
        ([{"answer": "3 + 4 = 7. #### 7"}, {"answer": "so it is \\boxed{8}"}], "answer", "numeric_match"),
        ([{"solution": "12"}, {"solution": "-1,000.5"}, {"solution": "3/4"}], "solution", "numeric_match"),
        ([{"answer": "Paris"}, {"answer": "the Black Sea"}], "answer", "exact_match"),
        ([{"answer": "A sentence that is longer than five words."}], None, None),
        ([{"answer": "1"}, {"other": "2"}], None, None),
        ([], None, None),
    ],
)
def test_right_answers_are_found(rows: list[dict[str, Any]], column: str | None, rule: Any) -> None:
    assert find_answers(rows) == (None if column is None else Answers(column, rule))


def test_columns_and_labels_with_other_names_are_named(tmp_path: Path, tiny_model: Path) -> None:
    path, out = tmp_path / "log.csv", tmp_path / "no.yaml"
    rows = [f"{ask};{answer} {ask};{word}\n" for ask in QUESTIONS for answer, word in (("Oui.", "yes"), ("Non.", "ja"))]
    path.write_text("frage;antwort;urteil\n" + "".join(rows))
    mapped = [f"--column={ours}={theirs}" for ours, theirs in COLUMNS.items()]
    options = ("--desirable", "yes", "--model", tiny_model, "--card", "cpu", "--out", out)
    done = align_here("init", path, *mapped, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Found 48 answers with a thumb or rating (50 % good).")
    settings = load_config(out)
    assert (settings.name, settings.data.sources[0].desirable) == ("no", ["yes"]), "words, not what YAML makes of them"
    assert settings.data.sources[0].columns == COLUMNS


def test_goal_that_the_data_do_not_serve_is_refused(write_rows: Write, tmp_path: Path) -> None:
    path, out = write_rows(demonstrations()), tmp_path / "out.yaml"
    done = align_here("init", path, "--goal", "prefer", "--out", out)
    assert (done.returncode, done.stdout) == (2, "Found 24 demonstrations.\n")
    assert done.stderr.startswith("align: --goal: the data do not show how to answer as people prefer. got 24 demons")
    assert not out.exists()


def test_one_class_of_labels_is_refused(write_rows: Write, tmp_path: Path) -> None:
    liked = [row for row in thumbs() if row["label"]]
    done = align_here("init", write_rows(liked), "--out", tmp_path / "out.yaml")
    assert done.returncode == 2
    assert "good and bad answers" in done.stderr


def test_nothing_is_asked_without_a_terminal_and_no_file_is_replaced(write_rows: Write, tmp_path: Path) -> None:
    done = align_here("init")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("align: DATA: no data are given. Name a file: ")
    out = tmp_path / "mine.yaml"
    out.write_text("name: mine\n")
    done = align_here("init", write_rows(pairs()), "--out", out)
    assert (done.returncode, out.read_text()) == (2, "name: mine\n")


def test_a_person_is_asked_for_what_is_missing(write_rows: Write, tmp_path: Path) -> None:
    path, out = write_rows(pairs()), tmp_path / "asked.yaml"
    script = f"from alignment_flows.cli.app import app; app(['init', '--out', {str(out)!r}])"
    # The data, a card, the suggested model, and another goal than the suggested one.
    code, written = run_in_terminal(python(script), 200, typed=f"{path}\n8gb\n\nsolve\n")
    assert code == 0, written
    assert "Base model [Qwen/Qwen2.5-0.5B-Instruct]:" in written
    assert "Goal (prefer: answer as people prefer; solve: " in written
    made = yaml.safe_load(out.read_text())
    assert made["model"]["base"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert made["optimizer"]["name"] == "grpo"
    assert made["data"]["sources"] == [{"path": str(path)}]


def test_reasons_of_what_is_left_out_are_where_it_says(write_rows: Write, tmp_path: Path, tiny_model: Path) -> None:
    asked = [*QUESTIONS, QUESTIONS[0], ""]
    rows = [{"frage": ask, "antwort": "Easy.", "urteil": ("gut", "schlecht")[asked.index(ask) % 2]} for ask in asked]
    columns = [f"--column={ours}={theirs}" for ours, theirs in COLUMNS.items()]
    out, data = tmp_path / "my run.yaml", write_rows(rows)
    done = align_here("init", data, *columns, "--desirable=gut", "--model", tiny_model, "--card=cpu", "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"Left out 2 of 26 records. Why: `align data check '{out}'`" in done.stdout
    shown = align_here("data", "check", out)
    assert shown.stdout.startswith("Used 24 of 26 records (92 %).")
    assert "empty_prompt" in shown.stdout
