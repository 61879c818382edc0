"""Export and import of votes, and the feedback store as a data source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig, SourceConfig
from alignment_core.data.ingestion.check import check
from alignment_core.errors import DataError, FeedbackError
from alignment_core.execution.build import build_here
from alignment_core.feedback import FeedbackStore, Rater, open_feedback
from alignment_core.feedback.data_source import stores_as_files
from alignment_core.feedback.import_export import export, import_votes
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.planning.retrain import last_vote_used
from alignment_core.progress import Silent
from alignment_core.registry import load_registry

ANN, BEN, JUDGE = Rater("Ann"), Rater("Ben"), Rater("judge", "ai")


def question(number: int) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": f"What is {number} plus {number}?"},)


def given(report: Mapping[str, Any], kind: str) -> int:
    """Count the records of one kind in both splits, before any conversion."""
    return sum(report["conversions"].get(split, {}).get(f"{kind} given", 0) for split in ("train", "held_out"))


def fill(store: FeedbackStore, order: int = 1) -> None:
    """Add twelve thumbs, three rankings of three (one with a tie, one skipped) and a comment without a thumb."""
    for number in range(12)[::order]:
        response = store.add_response(question(number), f"It is {2 * number}, of course.", "model-1")
        store.thumb(ANN, response, number % 3 > 0, when=number)
    for number, ranks in [(20, (1, 2, 3)), (21, (2, 1, 2)), (22, None)]:
        texts = [(f"Perhaps {number + n}, or else {n}.", f"model-{n}") for n in range(3)]
        (task,) = store.add_ranking_tasks([(question(number), texts)])
        store.rank(JUDGE if number == 21 else BEN, task, ranks, when=number)
    store.thumb(BEN, store.add_response(question(30), "I do not know.", "model-2"), None, comment="lazy")


@pytest.fixture
def place(tmp_path: Path) -> str:
    path = str(tmp_path / "feedback.db")
    with open_feedback(path) as store:
        fill(store)
    return path


def test_check_finds_every_vote_of_an_export(place: str, tmp_path: Path) -> None:
    """The ranks 1 2 3 give three pairs, 2 1 2 give two pairs and a tie, and the skipped ranking gives nothing."""
    with open_feedback(place) as store:
        assert export(store, tmp_path / "out") == {"thumbs.jsonl": 13, "rankings.jsonl": 2}
        with pytest.raises(FeedbackError, match="Choose a new folder"):
            export(store, tmp_path / "out")
    with stores_as_files([place]) as files:
        for path in (str(tmp_path / "out"), *files):
            report = check([path])
            assert (given(report, "feedback"), given(report, "preferences")) == (12, 5)
            assert report["dropped"] == {"no_label": 1, "tie": 1}
            assert report["quarantined"] == {}


def test_superseded_votes_of_a_history_are_recognized_by_rater_and_time(tmp_path: Path) -> None:
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        response = store.add_response(question(1), "It is 2.", "")
        for rater, up, when in [(ANN, True, 1.0), (BEN, True, 2.0), (ANN, False, 3.0), (BEN, False, 4.0)]:
            store.thumb(rater, response, up, when=when)
        export(store, tmp_path / "out", history=True)
    report = check([str(tmp_path / "out")])
    assert report["votes"]["superseded"] == 2
    assert report["votes"]["contradicting"] == 0
    assert given(report, "feedback") == 1


def active_votes(store: FeedbackStore) -> list[Any]:
    """Return the active votes without skipped rankings, sorted, with the time as the last field."""
    found = [
        (
            *(vote.rater, vote.prompt, tuple((r.text, r.model) for r in vote.responses), vote.ranks, vote.up),
            *(vote.comment, vote.time),
        )
        for vote in store.votes()
        if vote.ranks or vote.is_thumb
    ]
    return sorted(found, key=repr)


def test_import_restores_an_export_and_a_second_import_adds_nothing(place: str, tmp_path: Path) -> None:
    with open_feedback(place) as store, open_feedback(str(tmp_path / "copy.db")) as copy:
        export(store, tmp_path / "out")
        source = [SourceConfig(path=str(tmp_path / "out"))]
        assert import_votes(copy, source) == {"thumbs": 13, "rankings": 2}
        assert [vote[:-1] for vote in active_votes(copy)] == [vote[:-1] for vote in active_votes(store)]
        assert {vote[-1] for vote in active_votes(copy) if vote[-1] < 1e6} == {
            float(n) for n in [*range(1, 12), 20, 21]
        }
        (comment_only,) = [vote for vote in copy.votes() if vote.is_thumb and vote.up is None]
        assert (comment_only.rater, comment_only.comment) == (BEN, "lazy")
        assert copy.count() == store.count() == 14
        newest = copy.newest()
        assert import_votes(copy, source) == {"known": 15}
        assert copy.newest() == newest


def test_edited_and_rejected_answers_are_exported_imported_and_trained_on(tmp_path: Path) -> None:
    """Ben writes a text above two responses, which gives three pairs, and finds two others bad. In a chat he compares
    two answers and improves one."""
    place = str(tmp_path / "feedback.db")
    with open_feedback(place) as store:
        texts = [("It is forty.", "m1"), ("Perhaps fifty, perhaps not.", "m2")]
        ranked, rejected = store.add_ranking_tasks([(question(20), texts), (question(25), texts)])
        store.rank(BEN, ranked, (1, 2), "too short", edited="It is forty, since twice twenty is forty.")
        store.reject_all(BEN, rejected, "both wrong")
        store.compare(BEN, question(1), [("It is two, of course.", "m1"), ("Eleven.", "m2")], (1, 2))
        store.compare(BEN, question(2), [("Four or so.", "m1")], (1,), edited="It is exactly four.")
        assert store.count() == 4
        assert store.count_by_rater() == {("Ben", "human"): {"rankings": 3, "all_bad": 1}}
        assert [task.id for task in store.ranking_tasks()] == [ranked.id, rejected.id], "a chat is not offered"
        (mine,) = store.progress()
        assert (mine.ranked, mine.bad, mine.done) == (1, 1, 2), "and is no progress"
        assert export(store, tmp_path / "out") == {"thumbs.jsonl": 2, "rankings.jsonl": 3}
        source = [SourceConfig(path=str(tmp_path / "out"))]
        assert import_votes(store, source) == {"known": 5}
    with stores_as_files([place]) as files:
        for path in (str(tmp_path / "out"), *files):
            report = check([path])
            assert (given(report, "feedback"), given(report, "preferences")) == (2, 5)
            assert (report["dropped"], report["quarantined"], report["warnings"]) == ({}, {}, [])
    with open_feedback(str(tmp_path / "copy.db")) as copy:
        assert import_votes(copy, source) == {"thumbs": 2, "rankings": 3}
        written = {
            response.text: dict(zip([one.text for one in vote.responses], vote.ranks, strict=True))
            for vote in copy.votes()
            for response in vote.responses
            if response.id == vote.edited
        }
        assert written == {
            "It is forty, since twice twenty is forty.": {
                "It is forty, since twice twenty is forty.": 1, "It is forty.": 2, "Perhaps fifty, perhaps not.": 3,
            },
            "It is exactly four.": {"It is exactly four.": 1, "Four or so.": 2},
        }  # fmt: skip
        assert import_votes(copy, source) == {"known": 5}


def test_import_reads_exports_of_other_tools(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": "Hi", "completion": "Go away.", "label": 0},
        {"prompt": "Hi", "completion": "", "label": 0},
        {"prompt": "Hi", "completion": "Well.", "label": None, "comment": " "},
    ]
    (tmp_path / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    (tmp_path / "pairs.json").write_text(json.dumps([{"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}]))
    sources = [SourceConfig(path=str(tmp_path / name)) for name in ("thumbs.jsonl", "pairs.json")]
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        added = import_votes(store, sources, kind="ai")
        assert added == {"thumbs": 3, "rankings": 1, "empty_completion": 1, "no_label": 1, "invalid_json": 1}
        votes = list(store.votes())
    assert {vote.rater.kind for vote in votes} == {"ai"}
    assert len({vote.rater.name for vote in votes}) == 4  # votes without a rater count as votes of different raters
    pair = next(vote for vote in votes if vote.ranks)
    assert [(response.text, rank) for response, rank in zip(pair.responses, pair.ranks, strict=True)] == [
        ("Hello!", 1), ("No.", 2),
    ]  # fmt: skip


def config(path: str, tiny_model: Path, store: Path, **source: Any) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128},
            "data": {"sources": [{"path": path, **source}], "held_out_fraction": 0.2},
            "optimizer": {"name": "kto"},
            "store": store,
        }
    )


def test_key_depends_on_the_votes_and_not_on_their_location(place: str, tiny_model: Path, tmp_path: Path) -> None:
    registry = load_registry()
    with open_feedback(str(tmp_path / "other" / "votes.sqlite")) as other:
        fill(other, order=-1)
        other.thumb(BEN, other.add_response(question(1), "It is 2, of course.", "model-9"), True)
        upto = other.newest() - 1
        first = plan_pipeline(config(place, tiny_model, tmp_path), registry).ingest
        pinned = config(other.place, tiny_model, tmp_path, votes_upto=upto)
        assert plan_pipeline(pinned, registry).ingest.key == first.key
        later = plan_pipeline(config(other.place, tiny_model, tmp_path), registry).ingest
        assert later.key != first.key
        # Votes that arrive between planning and the stage wait for the next run.
        other.thumb(BEN, other.add_response(question(2), "Nothing.", "model-9"), False)
    metrics = build_here(later, Silent())[0].manifest().metrics
    assert given(metrics, "feedback") == 12
    assert metrics["duplicates"]["exact"] == 1


def test_empty_and_missing_stores_are_reported(tiny_model: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.db")
    with pytest.raises(DataError, match="no such feedback store"):
        plan_pipeline(config(missing, tiny_model, tmp_path), load_registry())
    assert not Path(missing).exists()
    open_feedback(missing).close()
    with pytest.raises(DataError, match="holds no votes"), stores_as_files([missing]):
        pass


def test_no_password_is_stored(postgres: str, tiny_model: Path, tmp_path: Path) -> None:
    """A changed password does not make votes count as new either."""
    with open_feedback(postgres) as store:
        fill(store)
        newest = store.newest()
    plan = plan_pipeline(config(postgres, tiny_model, tmp_path / "store"), load_registry())
    artifact, _ = build_here(plan.ingest, Silent())
    password = make_url(postgres).password
    assert password is not None
    for path in (tmp_path / "store").rglob("*"):
        assert not path.is_file() or password.encode() not in path.read_bytes(), path
    (source,) = artifact.manifest().inputs["sources"]
    assert source["path"] == postgres.replace(password, "***")
    for place, seen in ((postgres, newest), (postgres.replace(password, "new"), newest), (f"{postgres}_2", 0)):
        assert last_vote_used(ArtifactStore(tmp_path / "store"), plan.ingest.key, place) == seen
