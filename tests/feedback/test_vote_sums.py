"""The kept sums of the votes give what adding up the votes themselves gives."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text

from alignment_core.feedback import FeedbackStore, Rater, open_feedback, vote_sums
from alignment_core.feedback.database import read_transaction, write_transaction

BLOCK = 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vote_sums, "BLOCK", BLOCK)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    found: str = request.getfixturevalue("postgres") if request.param == "postgres" else str(tmp_path / "votes.db")
    return found


@pytest.fixture
def store(place: str) -> Iterator[FeedbackStore]:
    with open_feedback(place) as store:
        vote(store, 100)
        yield store


def vote(store: FeedbackStore, count: int, seed: int = 0) -> None:
    """Let three raters judge, judge again and withdraw."""
    drawn = random.Random(seed)
    prompts = [({"role": "user", "content": f"Question {number} 👋"},) for number in range(4)]
    tasks = store.add_ranking_tasks([(prompt, [("a", "m"), ("b", "m"), ("c", "")]) for prompt in prompts])
    shown = [store.add_response(prompt, "four", "m") for prompt in prompts]
    for _ in range(count):
        rater = Rater(drawn.choice("ABC"))
        match drawn.randrange(8):
            case 0:
                store.withdraw(rater, drawn.choice([*tasks, *shown]))
            case 1:
                store.rank(rater, drawn.choice(tasks), None)
            case 2 | 3 | 4:
                store.rank(rater, drawn.choice(tasks), [drawn.randint(1, 3) for _ in range(3)])
            case _:
                store.thumb(rater, drawn.choice(shown), drawn.choice([True, False, None]), comment="hm")


def added_up(store: FeedbackStore, after: int = 0, upto: int | None = None, before: int | None = None) -> str:
    """Return the digest from the definition: the numbers of all lines, added up."""
    lines = store.training_rows(after, upto, before)
    numbers = [int.from_bytes(hashlib.shake_256("\n".join(line).encode()).digest(256), "little") for line in lines]
    return hashlib.sha256((sum(numbers) % (1 << 2048)).to_bytes(256, "little")).hexdigest()


def kept(store: FeedbackStore) -> list[int]:
    with read_transaction(store._engine) as connection:
        return list(
            connection.execute(select(vote_sums.vote_sums.c.upto).order_by(vote_sums.vote_sums.c.upto)).scalars()
        )


def test_any_range_of_votes(store: FeedbackStore) -> None:
    assert kept(store) == list(range(BLOCK, 100, BLOCK))
    assert store.digest() == added_up(store)
    for upto in range(0, 101, 9):
        for edge in range(0, upto + 10, 7):
            assert store.digest(0, upto, edge) == added_up(store, 0, upto, edge), (edge, upto)
            assert store.digest(edge, upto) == added_up(store, edge, upto), (edge, upto)
    assert store.digest(20, 90, 60) == added_up(store, 20, 90, 60)
    assert store.digest(0, 90, 60) != store.digest(0, 60), "later votes superseded some of them"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE votes SET value = '{\"up\": true}' WHERE id = (SELECT max(id) FROM votes WHERE value LIKE '%false%')",
        "DELETE FROM votes WHERE id = (SELECT max(id) FROM votes WHERE value LIKE '%ranks%')",
        "UPDATE responses SET text = 'five' WHERE text = 'four'",
        "UPDATE prompts SET messages = '[]'",
        "INSERT INTO votes (id, kind, subject, rater, rater_kind, value, comment, time) "
        "SELECT -1, kind, subject, 'D', 'human', value, '', 0 FROM votes WHERE value LIKE '%ranks%' LIMIT 1",
    ],
)
def test_rows_changed_by_hand_change_the_digest(store: FeedbackStore, change: str) -> None:
    before = store.digest()
    with write_transaction(store._engine) as connection:
        assert connection.execute(text(change)).rowcount > 0
    assert store.digest() == added_up(store)
    assert (store.digest() != before) == ("-1" not in change), "votes are numbered from 1"


def test_store_of_an_earlier_version_gets_its_sums(place: str, store: FeedbackStore) -> None:
    before = store.digest()
    with write_transaction(store._engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("DROP FUNCTION forget_vote_sums CASCADE"))
            connection.execute(text("DROP FUNCTION forget_vote_sums_if_late CASCADE"))
        else:
            for name in (
                connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            ):
                connection.execute(text(f"DROP TRIGGER {name}"))
        connection.execute(text("DROP TABLE vote_sums"))
    with open_feedback(place) as opened:
        assert kept(opened) == []
        assert opened.digest() == before
        assert kept(opened)[-1] == 96


def test_equal_votes_in_any_order_give_the_same_digest(tmp_path: Path, store: FeedbackStore) -> None:
    response = [store.add_response(({"role": "user", "content": "Hi"},), text, "m") for text in ("one", "two")]
    for place in (0, 1):
        store.thumb(Rater("D"), response[place], True)
    with open_feedback(str(tmp_path / "other.db")) as other:
        for place in (1, 0):
            other.add_response(({"role": "user", "content": "Hi"},), "two", "m")
            copied = other.add_response(({"role": "user", "content": "Hi"},), ("one", "two")[place], "other model")
            other.thumb(Rater("E", "ai"), copied, True, comment="another rater, model and time", when=1.0)
        assert other.digest() == store.digest(after=100)
        other.thumb(Rater("E"), copied, False)
        assert other.digest() != store.digest(after=100)


def test_plans_during_votes(place: str) -> None:
    """Four writers vote while another connection asks for the digest."""
    with open_feedback(place) as store:

        def write(seed: int) -> None:
            with open_feedback(place) as mine:
                vote(mine, 30, seed)

        writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            newest = store.newest()
            assert store.digest(0, newest) == added_up(store, 0, newest)
        for writer in writers:
            writer.join()
        assert store.newest() == 120
        assert store.digest() == added_up(store)
