"""The feedback store: what supersedes what, which votes a number stands for, and what can go wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment_core.errors import DataError, FeedbackError
from alignment_core.feedback import FeedbackStore, Rater, open_feedback
from alignment_core.feedback.agreement import agreements

ANN, BEN, JUDGE = Rater("Ann"), Rater("Ben"), Rater("judge", "ai")
PROMPT = ({"role": "user", "content": "What is two plus two?"},)
OTHER = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Grüße 👋"})


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeedbackStore]:
    postgres = request.param == "postgres"
    place = request.getfixturevalue("postgres") if postgres else str(tmp_path / "new" / "feedback.db")
    with open_feedback(place) as opened:
        yield opened


def test_later_votes_of_the_same_rater_supersede_and_the_history_stays(store: FeedbackStore) -> None:
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


def test_a_number_says_exactly_which_votes_there_were(store: FeedbackStore) -> None:
    response = store.add_response(PROMPT, "four", "")
    first = store.thumb(ANN, response, True)
    second = store.thumb(BEN, response, True)
    assert store.newest() == second
    store.thumb(ANN, response, False)
    at = [(vote.rater.name, vote.up) for vote in store.votes(upto=second)]
    assert at == [("Ann", True), ("Ben", True)]
    assert [(vote.rater.name, vote.up) for vote in store.votes(after=second)] == [("Ann", False)]
    assert store.count(after=first, upto=second) == 1
    # What Ann said first is superseded by now, and after it there is only what came later.
    assert [(vote.rater.name, vote.up) for vote in store.votes(after=first)] == [("Ben", True), ("Ann", False)]


def test_rankings_with_ties_skips_and_undo(store: FeedbackStore) -> None:
    answers = [("four", "m1"), ("five", "m1"), (" four ", "m2"), ("", "m1"), ("4", "m2")]
    (rankable,) = store.add_rankables([(OTHER, answers), (PROMPT, [("same", "m1"), ("same", "m2")])])
    assert [(response.text, response.model) for response in rankable.responses] == [
        ("four", "m1"), ("five", "m1"), ("4", "m2"),
    ]  # fmt: skip
    assert store.add_rankables([(OTHER, answers)]) == [rankable]
    assert store.rankables() == [rankable]
    store.rank(ANN, rankable, (1, 2, 1))
    store.rank(BEN, rankable, None)
    ranked, skipped = store.votes()
    assert (ranked.prompt, ranked.ranks, ranked.is_thumb) == (OTHER, (1, 2, 1), False)
    assert (skipped.rater, skipped.ranks) == (BEN, ())
    assert store.count() == 1
    assert store.judged_by(ANN) == store.judged_by(BEN) == {rankable.id}
    store.withdraw(ANN, rankable)
    assert store.judged_by(ANN) == set()
    assert [vote.rater for vote in store.votes()] == [BEN]
    with pytest.raises(DataError, match="3 ranks from 1"):
        store.rank(ANN, rankable, (1, 2))


def test_text_that_no_database_holds_is_refused_in_words(store: FeedbackStore) -> None:
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


def test_agreement_counts_what_both_judged(store: FeedbackStore) -> None:
    """Ann: a > b = c; Ben: a > c > b. In common a > b and a > c, both agreed; b against c is a tie of Ann's."""
    (rankable,) = store.add_rankables([(PROMPT, [("a", ""), ("b", ""), ("c", "")])])
    store.rank(ANN, rankable, (1, 2, 2))
    store.rank(BEN, rankable, (1, 3, 2))
    response = store.add_response(PROMPT, "d", "")
    for rater, up in [(ANN, True), (BEN, False), (JUDGE, False)]:
        store.thumb(rater, response, up)
    found = {(pair.first, pair.second): (pair.agreed, pair.opposed) for pair in agreements(store.votes())}
    assert found == {("Ann", "Ben"): (2, 1), ("Ann", "judge"): (0, 1), ("Ben", "judge"): (1, 0)}


def test_listener_hears_of_a_vote_when_it_is_safe(tmp_path: Path) -> None:
    place = str(tmp_path / "feedback.db")
    seen: list[int] = []
    store = open_feedback(place, lambda count: seen.append(open_feedback(place).newest()))
    store.thumb(ANN, store.add_response(PROMPT, "four", ""), True)
    store.thumb(ANN, store.add_response(PROMPT, "five", ""), True)
    assert seen == [1, 2]


def test_what_is_no_feedback_store_is_said_in_words(tmp_path: Path) -> None:
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
    with pytest.raises(FeedbackError, match="cannot be opened"):
        open_feedback("nosuch://somewhere/else")
    (tmp_path / "file").write_text("")
    with pytest.raises(FeedbackError, match="folder"):
        open_feedback(str(tmp_path / "file" / "feedback.db"))
