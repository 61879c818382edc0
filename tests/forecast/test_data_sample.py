"""A plan of many records is an estimate from a random sample of them, says so, and is near the truth."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from alignment_core.config_file import load_config
from alignment_core.data.sources.line_sample import LineSample
from alignment_core.data.sources.source_file import SourceFile
from alignment_core.errors import DataError
from alignment_core.feedback import FeedbackStore, Rater, open_feedback
from alignment_core.feedback.database import read_transaction, votes
from alignment_core.forecast import data_sample
from alignment_core.forecast.data_preview import DataPreview
from alignment_core.forecast.workload import Workload
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.registry import load_registry
from alignment_core.training.rows import Rows
from alignment_core.training.sampled_rows import SampledRows, samples_of

SAMPLE = 150


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sample, "RECORDS", SAMPLE)


def pair(number: int) -> dict[str, Any]:
    answer = f"It is {number}, " + "and so on, " * (number % 7)
    return {"prompt": f"What is {number} plus {number}?", "chosen": answer, "rejected": f"Not {number}."}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- files --------------------------------------------------------------------------------------------------------


def numbers(content: bytes) -> list[int]:
    return [json.loads(line) for line in content.splitlines()]


def test_every_file_gives_the_same_share_of_its_lines(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl.gz"
    one.write_text("\ufeff" + "\n\n".join(map(str, range(900))) + "\n", encoding="utf-16-le")
    other.write_bytes(gzip.compress(b"".join(b"%d\r\n" % number for number in range(900, 1000))))
    files = [SourceFile(path.name, str(path), local=True) for path in (one, other)]
    sample = LineSample(100, total=1000)  # of 2000 records in all, 1000 are elsewhere
    for file in files:
        sample.add(file)
    first, second = (numbers(sample.content(file)) for file in files)
    assert (sample.total, sample.share, len(first), len(second)) == (2000, 0.05, 45, 5)
    assert first == sorted(set(first))
    assert set(first) <= set(range(900))
    assert set(second) <= set(range(900, 1000))


def test_every_line_is_as_likely_as_any_other(tmp_path: Path) -> None:
    drawn: Counter[int] = Counter()
    for name in range(100):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(b"".join(b"%d\n" % number for number in range(300)))
        sample = LineSample(20)
        sample.add(file := SourceFile(path.name, str(path), local=True))
        drawn.update(number // 30 for number in numbers(sample.content(file)))
    # 2000 draws into ten parts: 200 each, with a standard deviation of at most 13.4.
    assert sum(drawn.values()) == 2000
    assert all(150 < drawn[part] < 250 for part in range(10)), drawn


# --- the feedback store -------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeedbackStore:
    place = request.getfixturevalue("postgres") if request.param == "postgres" else str(tmp_path / "votes.db")
    return open_feedback(place)


def vote(store: FeedbackStore, prompts: int) -> None:
    """Give every prompt a ranking, a thumb and a comparison, some of which are changed or withdrawn later."""
    drawn = random.Random(0)
    raters = [Rater("Ann"), Rater("Ben")]
    for number in range(prompts):
        prompt = ({"role": "user", "content": f"Question {number}"},)
        answers = [(f"{letter}{number}", "m") for letter in "abc"]
        (task,) = store.add_ranking_tasks([(prompt, answers)])
        for rater in raters:
            store.rank(rater, task, drawn.sample([1, 2, 3], 3))
            store.thumb(rater, task.responses[0], drawn.random() < 0.5)
            store.compare(rater, prompt, answers[:2], drawn.choice([[1, 2], [2, 1], None]), edited="")
        later = drawn.choice(["rank", "withdraw", "skip", "edit", "nothing"])
        if later == "rank":
            store.rank(raters[0], task, [3, 2, 1])
        elif later == "withdraw":
            store.withdraw(raters[0], task)
            store.withdraw(raters[1], task.responses[0])
        elif later == "skip":
            store.rank(raters[0], task, None)
        elif later == "edit":
            store.compare(raters[0], prompt, answers[:2], [1, 2], edited=f"edited {number}")


def test_votes_on_some_prompts_are_all_votes_on_them(store: FeedbackStore) -> None:
    with store:
        vote(store, 40)
        every = [*store.training_rows()]
        count, sampled = store.sample(0, None, None, 0.5)
        asked = {json.dumps(json.loads(line)["prompt"]) for _, line in sampled}
        assert 10 < len(asked) < 30
        assert sampled == [row for row in every if json.dumps(json.loads(row[1])["prompt"]) in asked]
        limits = (7, store.newest() - 9, store.newest() - 20)
        part = [row for row in store.training_rows(*limits) if json.dumps(json.loads(row[1])["prompt"]) in asked]
        assert store.sample(*limits, 0.5)[1] == part
        # A withdrawn vote is the last one of its rater, too.
        last: dict[Any, int] = {}
        for row in all_votes(store):
            if limits[0] < row.id <= limits[1]:
                last[row.rater, row.kind, row.subject] = row.id
        assert store.count_current(*limits) == sum(number <= limits[2] for number in last.values())
        assert count == pytest.approx(store.count_current(0, None, None) * len(asked) / 40, rel=0.1)


def all_votes(store: FeedbackStore) -> list[Any]:
    with read_transaction(store._engine) as connection:
        return [*connection.execute(select(votes).order_by(votes.c.id))]


# --- the plan -----------------------------------------------------------------------------------------------------


@pytest.fixture
def preview(write: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[DataPreview, Workload, Any]]:
    """Return a function that plans the small run on a source, with the data that the plan reads."""

    def make(source: Path, *changes: str) -> tuple[DataPreview, Workload, Any]:
        changed = [f"data.sources.0.path={source}", "data.near_duplicates=null", *changes]
        calls = plan_pipeline(load_config(write(), changed), load_registry()).calls()
        found = DataPreview(calls, tmp_path / f"scratch-{len([*tmp_path.iterdir()])}")
        return found, Workload(calls, found, width=32), calls

    return make


@pytest.mark.parametrize(("kind", "optimizer"), [("lines", "ppo"), ("store", "dpo")])
def test_estimate_is_near_the_truth(
    preview: Callable[..., tuple[DataPreview, Workload, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    optimizer: str,
) -> None:
    source = tmp_path / ("votes.db" if kind == "store" else "rows.jsonl")
    if kind == "store":
        with open_feedback(str(source)) as store:
            for number in range(400):
                row = pair(number)
                answers = [(row[side], "m") for side in ("chosen", "rejected")]
                store.compare(Rater("Ann"), ({"role": "user", "content": row["prompt"]},), answers, [1, 2])
    else:
        write_rows(source, [pair(number) for number in range(600)])
    changes = (f"optimizer.name={optimizer}", "data.held_out_fraction=0.2", "evaluation.max_prompts=100")
    estimated, guess, calls = preview(source, *changes)
    monkeypatch.setattr(data_sample, "RECORDS", 10_000)
    exact, truth, _ = preview(source, *changes)
    assert exact.sampled() is None
    sampled = estimated.sampled()
    assert sampled is not None
    assert sampled["records"] == pytest.approx(SAMPLE, rel=0.2)
    assert sampled["of"] == exact.report()["used"]["of"]
    assert estimated.report()["used"]["records"] == pytest.approx(exact.report()["used"]["records"], rel=0.05)
    for name in ("reference", "optimize", "evaluate", "reward", "sft"):
        if name not in calls:
            continue
        one, other = guess.of(calls[name]), truth.of(calls[name])
        assert one.rows == pytest.approx(other.rows, rel=0.2), name
        demands = [work.demand(2000) for work in (one, other)]
        for what in ("steps", "learned", "read", "responses"):
            expected = pytest.approx(getattr(demands[1], what), rel=0.25)
            assert getattr(demands[0], what) == expected, (name, what)


def test_sample_that_lacks_rows_is_not_used(
    preview: Callable[..., tuple[DataPreview, Workload, Any]], tmp_path: Path
) -> None:
    """Pairs are in the data, though not in the sample."""
    rows = [{"prompt": pair(number)["prompt"]} for number in range(600)]
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match="contain no preference pairs"):
        preview(tmp_path / "rows.jsonl", "sft=null")
    (tmp_path / "data").mkdir()
    (tmp_path / "rows.jsonl").rename(tmp_path / "data" / "rows.jsonl")
    write_rows(tmp_path / "data" / "pairs.jsonl", [pair(9001)])
    found, _, calls = preview(tmp_path / "data", "sft=null", "data.held_out_fraction=0.01")
    assert found.sampled() is None
    assert len(found.train(calls["optimize"]).preferences) == 1


def test_votes_on_few_prompts_are_all_read(
    preview: Callable[..., tuple[DataPreview, Workload, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sample, "RECORDS", 1)
    with open_feedback(str(tmp_path / "votes.db")) as store:
        for number in range(6):
            prompt = ({"role": "user", "content": f"Question {2 + number % 3}?"},)  # none of them is drawn
            store.compare(Rater(f"rater {number}"), prompt, [(f"a{number}", ""), ("no", "")], [1, 2])
        assert store.sample(0, None, None, 1 / 6) == (0, [])
    found, _, _ = preview(tmp_path / "votes.db")
    assert (found.sampled(), found.report()["used"]["of"]) == (None, 6)


@pytest.mark.parametrize("change", ["data.max_records=300", "data.sources.0.max_records=300"])
def test_first_records_are_all_read(
    preview: Callable[..., tuple[DataPreview, Workload, Any]], tmp_path: Path, change: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", [pair(number) for number in range(400)])
    found, _, _ = preview(tmp_path / "rows.jsonl", change)
    assert (found.sampled(), found.report()["used"]["of"]) == (None, 300)


@pytest.mark.parametrize("name", ["array.jsonl", "rows.csv"])
def test_rows_that_are_no_lines_are_all_read(
    preview: Callable[..., tuple[DataPreview, Workload, Any]], tmp_path: Path, name: str
) -> None:
    rows = [pair(number) for number in range(300)]
    if name.endswith(".csv"):
        lines = [f'"{row["prompt"]}","{row["chosen"]}","{row["rejected"]}"\n' for row in rows]
        text = "".join(["prompt,chosen,rejected\n", *lines])
    else:
        text = json.dumps(rows)
    (tmp_path / name).write_text(text)
    found, _, _ = preview(tmp_path / name)
    assert (found.sampled(), found.report()["used"]["of"]) == (None, 300)


def test_sampled_rows_by_hand() -> None:
    sample = [Row(str(i), {"prompt": TokenSequence((i,), 1)}) for i in range(3)]
    rows = SampledRows(sample, 7)
    assert (len(rows), [row.id for row in rows]) == (7, list("0120120"))
    assert [row.id for row in rows[5:9]] == ["2", "0"]
    assert rows[-1].id == "0"
    assert len(SampledRows([], 7)) == 0
    with pytest.raises(IndexError):
        rows[7]
    assert samples_of(Rows(prompts=rows, feedback=sample[:1])) == Rows(prompts=sample, feedback=sample[:1])
