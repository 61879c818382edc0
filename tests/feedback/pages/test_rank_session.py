"""A rater's session: ranks from key presses, shuffling, undo, and agreement between raters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment_core.errors import ConfigError, DataError
from alignment_core.feedback import FeedbackStore, Rater, open_feedback
from alignment_core.feedback.pages.rank_session import Order, Session, Verdict
from alignment_core.feedback.pages.web import PASSWORD, is_loopback, password_for

ANN, BEN = Rater("Ann"), Rater("Ben")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with open_feedback(str(tmp_path / "feedback.db")) as opened:
        prompts = [({"role": "user", "content": f"Question {number}"},) for number in range(6)]
        opened.add_ranking_tasks([(prompt, [(text, "m") for text in "abcd"]) for prompt in prompts])
        yield opened


def named(*keys: str) -> Order:
    """Build an order of four responses. `=2` ties the third response with the one named before it."""
    order = Order(4)
    for key in keys:
        order.name(int(key[-1]), tied=key.startswith("="))
    return order


def test_keys_become_ranks() -> None:
    assert named("2", "0", "1").ranks() == [2, 3, 1, 4]  # the remaining response gets the last rank
    assert named("2", "=0", "1", "3").ranks() == [1, 2, 1, 3]
    assert named("0", "=1", "=2", "=3").ranks() == [1, 1, 1, 1]
    assert (named("2", "0").ranks(), named("2", "0").missing(), named("=2", "=0", "1").missing()) == (None, 1, 0)
    assert named("2", "2", "7", "0", "1", "3").ranks() == [2, 3, 1, 4]  # a repeated key and one out of range
    assert named("=1", "0", "2").ranks() == [2, 1, 3, 4]  # there is no response to tie with
    order = named("2", "=0", "1")
    order.take_back()
    order.take_back()
    assert [order.rank_of(place) for place in range(4)] == [None, None, 1, None]
    for _ in range(3):
        order.take_back()
    assert order.groups == []


def test_ranks_belong_to_the_responses_in_shown_order(store: FeedbackStore) -> None:
    session = Session(store, ANN)
    assert (session.judged, session.total) == (0, 6)
    task = session.current
    assert task is not None
    shown = [task.responses[place].text for place in session.shown(task)]
    assert sorted(shown) == list("abcd")
    session.submit(Verdict([3, 1, 2, 4]))
    (vote,) = store.votes()
    by_text = {response.text: rank for response, rank in zip(vote.responses, vote.ranks, strict=True)}
    assert by_text == dict(zip(shown, [3, 1, 2, 4], strict=True))
    assert (session.judged, vote.rater) == (1, ANN)


def test_each_rater_has_a_separate_order_that_a_restart_keeps(store: FeedbackStore) -> None:
    def orders(rater: Rater) -> list[tuple[str, list[int]]]:
        session = Session(store, rater)
        return [(task.id, session.shown(task)) for task in session._todo]

    assert orders(ANN) == orders(ANN)
    assert orders(ANN) != orders(BEN)
    assert len({tuple(places) for _, places in orders(ANN)}) > 1


def test_undo_withdraws_votes_and_a_restart_resumes(store: FeedbackStore) -> None:
    session = Session(store, ANN)
    first = session.current
    session.submit(Verdict([1, 2, 3, 4], comment="clear"))
    second = session.current
    session.submit(Verdict())
    assert session.judged == 2
    assert session.undo() == Verdict()
    assert session.current == second
    assert session.undo() == Verdict([1, 2, 3, 4], comment="clear")
    assert session.current == first
    assert not session.undo()
    assert list(store.votes()) == []
    session.submit(Verdict([4, 3, 2, 1]))
    again = Session(store, ANN)
    assert (again.current, again.judged) == (second, 1)
    assert not again.undo()


def test_edited_text_ranks_above_all_responses_and_all_bad_is_no_ranking(store: FeedbackStore) -> None:
    session = Session(store, ANN)
    task = session.current
    assert task is not None
    best = task.responses[session.shown(task)[2]].text
    session.submit(Verdict([2, 2, 1, 3], comment="too short", edited=f"{best}, and why"))
    session.submit(Verdict(bad=True, comment="all wrong"))
    edited, bad = store.votes()
    assert (edited.comment, bad.comment) == ("too short", "all wrong")
    by_text = {response.text: rank for response, rank in zip(edited.responses, edited.ranks, strict=True)}
    assert by_text.pop(f"{best}, and why") == 1
    assert sorted(by_text.items(), key=lambda item: item[1])[0] == (best, 2)
    assert sorted(by_text.values()) == [2, 3, 3, 4]
    assert (bad.ranks, bad.bad, len(bad.responses)) == ((), True, 4)
    ((mine,), _) = session.team()
    assert (mine.rater, mine.ranked, mine.bad, mine.skipped, mine.done) == (ANN, 1, 1, 0, 2)
    with pytest.raises(DataError, match="equal to one of the responses"):
        session.submit(Verdict([1, 2, 3, 4], edited=" a "))
    assert session.judged == 2


def test_disagreements_show_only_what_the_rater_has_ranked(store: FeedbackStore) -> None:
    """Ann and Ben disagree on 1 of 6 pairs of the first task and on all of the second. Ann has not ranked the third."""
    one, two, three, four, *_ = store.ranking_tasks()
    for task, mine, other in ((one, [1, 2, 3, 4], [1, 2, 4, 3]), (two, [1, 2, 3, 4], [4, 3, 2, 1])):
        store.rank(ANN, task, mine)
        store.rank(BEN, task, other, edited="better")
    store.rank(BEN, three, [1, 2, 3, 4])
    store.rank(Rater("judge", "ai"), three, [4, 3, 2, 1])
    store.rank(ANN, four, [1, 1, 2, 2])
    store.rank(BEN, four, [1, 2, 3, 4])
    _, (worst, other) = Session(store, ANN).team()
    assert (worst.task, worst.opposed) == (two, 6)
    assert worst.ranks == {"Ann": (1, 2, 3, 4), "Ben": (4, 3, 2, 1)}
    assert (other.task, other.opposed) == (one, 1)
    assert store.disagreements(ANN, 1) == [worst]
    assert store.disagreements(Rater("Zoe"), 5) == []


def test_agreement_text(store: FeedbackStore) -> None:
    """Ann and Ben rank the same four responses and disagree on one of the six pairs."""
    (task, *_) = store.ranking_tasks()
    store.rank(ANN, task, [1, 2, 3, 4])
    store.rank(BEN, task, [1, 2, 4, 3])
    assert Session(store, ANN).agreement() == ["Ben on 83 % of 6 judgments"]


def test_pages_on_other_hosts_than_loopback_need_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    for host in ("127.0.0.1", "127.1.2.3", "localhost", "::1"):
        assert is_loopback(host)
        assert password_for(host) is None
    for host in ("0.0.0.0", "::", "192.168.1.4", "my-machine"):
        assert not is_loopback(host)
        with pytest.raises(ConfigError, match=PASSWORD):
            password_for(host)
    monkeypatch.setenv(PASSWORD, "short")
    with pytest.raises(ConfigError, match="too short"):
        password_for("127.0.0.1")
    monkeypatch.setenv(PASSWORD, "long enough")
    assert password_for("0.0.0.0") == password_for("127.0.0.1") == "long enough"
