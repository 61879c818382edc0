"""The feedback store: superseded votes, selecting votes by number, and invalid input."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment_core.errors import DataError, FeedbackError
from alignment_core.feedback import FeedbackStore, Rater, open_feedback
from alignment_core.feedback.database import same_database

ANN, BEN, JUDGE = Rater("Ann"), Rater("Ben"), Rater("judge", "ai")
PROMPT = ({"role": "user", "content": "What is two plus two?"},)
OTHER = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Grüße 👋"})


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeedbackStore]:
    postgres = request.param == "postgres"
    place = request.getfixturevalue("postgres") if postgres else str(tmp_path / "new" / "feedback.db")
    with open_feedback(place) as opened:
        yield opened


def test_later_votes_of_a_rater_supersede_and_the_history_is_kept(store: FeedbackStore) -> None:
    four, five = (store.add_response(PROMPT, text, "model-1") for text in ("four", "five"))
    for rater, response, up in [(ANN, four, False), (BEN, four, True), (ANN, five, False), (ANN, four, True)]:
        store.thumb(rater, response, up)
    store.thumb(JUDGE, five, False, comment="  wrong  ")
    found = [(vote.rater, vote.responses[0].text, vote.up, vote.comment) for vote in store.votes()]
    assert found == [
        (BEN, "four", True, ""), (ANN, "five", False, ""), (ANN, "four", True, ""), (JUDGE, "five", False, "wrong"),
    ]  # fmt: skip
    assert [vote.up for vote in store.history()] == [False, True, False, True, False]
    store.withdraw(ANN, five)
    assert store.count() == 3
    store.thumb(BEN, four, None, comment="hm")
    assert store.count() == 2
    assert [vote.comment for vote in store.votes() if vote.up is None] == ["hm"]


def test_votes_are_selected_by_number(store: FeedbackStore) -> None:
    response = store.add_response(PROMPT, "four", "")
    first = store.thumb(ANN, response, True)
    second = store.thumb(BEN, response, True)
    assert store.newest() == second
    store.thumb(ANN, response, False)
    at = [(vote.rater.name, vote.up) for vote in store.votes(upto=second)]
    assert at == [("Ann", True), ("Ben", True)]
    assert [(vote.rater.name, vote.up) for vote in store.votes(after=second)] == [("Ann", False)]
    assert store.count(after=first, upto=second) == 1
    # Ann's first vote is superseded by her later one, so only votes after the first are returned.
    assert [(vote.rater.name, vote.up) for vote in store.votes(after=first)] == [("Ben", True), ("Ann", False)]


def test_rankings_with_ties_skips_and_undo(store: FeedbackStore) -> None:
    answers = [("four", "m1"), ("five", "m1"), (" four ", "m2"), ("", "m1"), ("4", "m2")]
    (task,) = store.add_ranking_tasks([(OTHER, answers), (PROMPT, [("same", "m1"), ("same", "m2")])])
    assert [(response.text, response.model) for response in task.responses] == [
        ("four", "m1"), ("five", "m1"), ("4", "m2"),
    ]  # fmt: skip
    assert store.add_ranking_tasks([(OTHER, answers)]) == [task]
    assert store.ranking_tasks() == [task]
    store.rank(ANN, task, (1, 2, 1))
    store.rank(BEN, task, None)
    ranked, skipped = store.votes()
    assert (ranked.prompt, ranked.ranks, ranked.is_thumb) == (OTHER, (1, 2, 1), False)
    assert (skipped.rater, skipped.ranks) == (BEN, ())
    assert store.count() == 1
    assert store.judged_by(ANN) == store.judged_by(BEN) == {task.id}
    store.withdraw(ANN, task)
    assert store.judged_by(ANN) == set()
    assert [vote.rater for vote in store.votes()] == [BEN]
    with pytest.raises(DataError, match="3 ranks from 1"):
        store.rank(ANN, task, (1, 2))


def test_text_that_cannot_be_stored_is_refused(store: FeedbackStore) -> None:
    with pytest.raises(DataError, match="NUL"):
        store.add_response(PROMPT, "a\0b", "")
    with pytest.raises(DataError, match="Unicode"):
        store.add_response(PROMPT, "half \ud83d", "")
    with pytest.raises(DataError, match="name"):
        store.thumb(Rater("  "), store.add_response(PROMPT, "four", ""), True)
    assert store.newest() == 0
    store.thumb(ANN, store.add_response(OTHER, "Ünï 👋 \U0001f600", ""), True, comment="日本語")
    (vote,) = store.votes()
    assert (vote.prompt, vote.responses[0].text, vote.comment) == (OTHER, "Ünï 👋 \U0001f600", "日本語")


def test_agreement_counts_what_both_raters_judged(store: FeedbackStore) -> None:
    """Ann ranks a > b = c and Ben a > c > b. They agree on a > b and a > c. Ann's tie of b and c does not count."""
    (task,) = store.add_ranking_tasks([(PROMPT, [("a", ""), ("b", ""), ("c", "")])])
    store.rank(ANN, task, (1, 2, 2))
    store.rank(BEN, task, (1, 3, 2))
    response = store.add_response(PROMPT, "d", "")
    for rater, up in [(ANN, True), (BEN, False), (JUDGE, False)]:
        store.thumb(rater, response, up)
    found = {(pair.first, pair.second): (pair.agreed, pair.opposed) for pair in store.agreements()}
    assert found == {("Ann", "Ben"): (2, 1), ("Ann", "judge"): (0, 1), ("Ben", "judge"): (1, 0)}


def test_listener_is_called_after_a_vote_is_committed(tmp_path: Path) -> None:
    place = str(tmp_path / "feedback.db")
    seen: list[int] = []
    store = open_feedback(place, lambda count: seen.append(open_feedback(place).newest()))
    store.thumb(ANN, store.add_response(PROMPT, "four", ""), True)
    store.thumb(ANN, store.add_response(PROMPT, "five", ""), True)
    assert seen == [1, 2]


def test_invalid_feedback_stores_are_reported(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database at all, and it is long enough to be looked at" * 10)
    with pytest.raises(FeedbackError, match="not a database"):
        open_feedback(str(tmp_path / "text.db"))
    open_feedback(str(tmp_path / "newer.db")).close()
    with sqlite3.connect(tmp_path / "newer.db") as database:
        database.execute("UPDATE about SET value = '99'")
    with pytest.raises(FeedbackError, match="version 99"):
        open_feedback(str(tmp_path / "newer.db"))
    with pytest.raises(FeedbackError) as refused:
        open_feedback("postgresql://someone:secret@127.0.0.1:9/none")
    assert "secret" not in str(refused.value)
    with pytest.raises(FeedbackError) as refused:
        open_feedback("postgresql://127.0.0.1:9/none?user=someone&password=secret")
    assert "secret" not in str(refused.value)
    for password in ("se@cret", "se@cret/x", "se@cret:x", "secret@:9x/"):
        with pytest.raises(FeedbackError, match="as %") as refused:
            open_feedback(f"postgresql://someone:{password}@127.0.0.1:9/none")
        assert "cret" not in str(refused.value)
    with pytest.raises(FeedbackError, match="cannot be opened"):
        open_feedback("nosuch://somewhere/else")
    (tmp_path / "file").write_text("")
    with pytest.raises(FeedbackError, match="folder"):
        open_feedback(str(tmp_path / "file" / "feedback.db"))


def test_secrets_do_not_tell_databases_apart() -> None:
    one = "postgresql://ann@db/votes"
    for same in (
        "postgresql://ann:a@db/votes",
        "postgresql://ann:***@db/votes",
        "postgresql://ann@db/votes?password=a",
    ):
        assert same_database(one, same)
    for other in ("postgresql://ben:a@db/votes", "postgresql://ann@db/votes?host=a", "postgresql://ann@db/other"):
        assert not same_database(one, other)
