"""A rater's way through the responses: what keys come to, shuffling, undo, and how far raters agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment_core.errors import ConfigError
from alignment_core.feedback import FeedbackStore, Rater, open_feedback
from alignment_core.feedback.ranking import Order, Session
from alignment_core.feedback.web import PASSWORD, is_loopback, password_for

ANN, BEN = Rater("Ann"), Rater("Ben")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with open_feedback(str(tmp_path / "feedback.db")) as opened:
        prompts = [({"role": "user", "content": f"Question {number}"},) for number in range(6)]
        opened.add_rankables([(prompt, [(text, "m") for text in "abcd"]) for prompt in prompts])
        yield opened


def named(*keys: str) -> Order:
    """An order of four, `=2` for the third response tied with the last."""
    order = Order(4)
    for key in keys:
        order.name(int(key[-1]), tied=key.startswith("="))
    return order


def test_keys_make_ranks() -> None:
    assert named("2", "0", "1").ranks() == [2, 3, 1, 4]  # the one that is left is the last
    assert named("2", "=0", "1", "3").ranks() == [1, 2, 1, 3]
    assert named("0", "=1", "=2", "=3").ranks() == [1, 1, 1, 1]
    assert named("2", "0").ranks() is None
    assert named("2", "2", "7", "0", "1", "3").ranks() == [2, 3, 1, 4]  # named twice, and not there
    assert named("=1", "0", "2").ranks() == [2, 1, 3, 4]  # nothing to be tied with
    order = named("2", "=0", "1")
    order.take_back()
    order.take_back()
    assert [order.rank_of(place) for place in range(4)] == [None, None, 1, None]
    for _ in range(3):
        order.take_back()
    assert order.groups == []


def test_ranks_go_to_the_responses_that_were_shown(store: FeedbackStore) -> None:
    session = Session(store, ANN)
    assert (session.judged, session.total) == (0, 6)
    rankable = session.current
    assert rankable is not None
    shown = [rankable.responses[place].text for place in session.shown(rankable)]
    assert sorted(shown) == list("abcd")
    session.submit([3, 1, 2, 4])
    (vote,) = store.votes()
    by_text = {response.text: rank for response, rank in zip(vote.responses, vote.ranks, strict=True)}
    assert by_text == dict(zip(shown, [3, 1, 2, 4], strict=True))
    assert (session.judged, vote.rater) == (1, ANN)


def test_every_rater_has_an_order_of_their_own_that_a_restart_keeps(store: FeedbackStore) -> None:
    def way(rater: Rater) -> list[tuple[str, list[int]]]:
        session = Session(store, rater)
        return [(rankable.id, session.shown(rankable)) for rankable in session._todo]

    assert way(ANN) == way(ANN)
    assert way(ANN) != way(BEN)
    assert len({tuple(places) for _, places in way(ANN)}) > 1


def test_undo_takes_back_and_a_restart_goes_on(store: FeedbackStore) -> None:
    session = Session(store, ANN)
    first = session.current
    session.submit([1, 2, 3, 4])
    second = session.current
    session.submit(None)
    assert session.judged == 2
    assert session.undo()
    assert session.current == second
    assert session.undo()
    assert session.current == first
    assert not session.undo()
    assert list(store.votes()) == []
    session.submit([4, 3, 2, 1])
    again = Session(store, ANN)
    assert (again.current, again.judged) == (second, 1)
    assert not again.undo()


def test_agreement_is_told_in_words(store: FeedbackStore) -> None:
    """Ann and Ben see the same four responses; of their six pairs Ben turns one round."""
    (rankable, *_) = store.rankables()
    store.rank(ANN, rankable, [1, 2, 3, 4])
    store.rank(BEN, rankable, [1, 2, 4, 3])
    assert Session(store, ANN).agreement() == ["Ben: 83% of 6"]


def test_pages_that_others_can_reach_need_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
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
