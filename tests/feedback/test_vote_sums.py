"""The kept sums of the votes give what adding up the votes themselves gives."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from sqlalchemy import select, text

from alignment_core.feedback import FeedbackStore, Rater, open_feedback, vote_sums
from alignment_core.feedback.database import read_transaction, write_transaction
from alignment_core.feedback.vote_sums import kept_sums

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
    """Return the digest from the definition: the numbers of all current votes, added up."""
    with read_transaction(store._engine) as connection:
        rows = connection.execute(text("SELECT id, rater, kind, subject, value FROM votes ORDER BY id")).all()
    current = {row[1:4]: row for row in rows if upto is None or row.id <= upto}
    said = [
        f"{row.kind}\n{row.subject}\n{row.value}"
        for row in current.values()
        if after < row.id and (before is None or row.id <= before) and not row.value.startswith(('{"wi', '{"sk'))
    ]
    numbers = [int.from_bytes(hashlib.shake_256(vote.encode()).digest(256), "little") for vote in said]
    return hashlib.sha256((sum(numbers) % (1 << 2048)).to_bytes(256, "little")).hexdigest()


def lines(store: FeedbackStore, after: int, upto: int) -> list[tuple[str, str]]:
    return sorted(store.training_rows(after, upto))


def kept(store: FeedbackStore) -> list[int]:
    with read_transaction(store._engine) as connection:
        return list(connection.execute(select(kept_sums.c.upto).order_by(kept_sums.c.upto)).scalars())


def test_any_range_of_votes(store: FeedbackStore) -> None:
    assert kept(store) == list(range(BLOCK, 100, BLOCK))
    assert store.digest() == added_up(store)
    for upto in range(0, 101, 9):
        for edge in range(0, upto + 10, 7):
            assert store.digest(0, upto, edge) == added_up(store, 0, upto, edge), (edge, upto)
            assert store.digest(edge, upto) == added_up(store, edge, upto), (edge, upto)
    assert store.digest(20, 90, 60) == added_up(store, 20, 90, 60)
    assert store.digest(0, 90, 60) != store.digest(0, 60), "later votes superseded some of them"


def test_ranges_have_the_same_digest_exactly_if_they_have_the_same_training_data(store: FeedbackStore) -> None:
    ranges = [(after, upto) for upto in range(0, 101, 20) for after in range(0, upto + 1, 20)]
    found = {chosen: (store.digest(*chosen), lines(store, *chosen)) for chosen in ranges}
    same = 0
    for one, other in combinations(ranges, 2):
        assert (found[one][0] == found[other][0]) == (found[one][1] == found[other][1]), (one, other)
        same += found[one][0] == found[other][0] and bool(found[one][1])
    assert same > 0


def test_bulk_insert_gets_its_sums_at_the_first_digest(store: FeedbackStore) -> None:
    """The numbers have a gap that is longer than a block, and some supersede earlier votes."""
    with write_transaction(store._engine) as connection:
        for number in (*range(500, 540), 10_000, 10_001):
            connection.execute(
                text(
                    f"INSERT INTO votes (id, kind, subject, rater, rater_kind, value, comment, time) SELECT {number}, "
                    f"kind, subject, rater, rater_kind, value, '', 0 FROM votes WHERE id = {1 + number % 97}"
                )
            )
    assert store.digest() == added_up(store)
    assert kept(store)[-1] == 10_000
    assert store.digest(0, 520) == added_up(store, 0, 520)
    assert store.digest(30, 10_000) == added_up(store, 30, 10_000)


CHANGES = {
    "a vote": "UPDATE votes SET value = '{\"up\": true}' "
    "WHERE id = (SELECT max(id) FROM votes WHERE value LIKE '%false%')",
    "a vote is deleted": "DELETE FROM votes WHERE id = (SELECT max(id) FROM votes WHERE value LIKE '%ranks%')",
    "a response": "UPDATE responses SET text = 'five' WHERE text = 'four'",
    "a prompt": "UPDATE prompts SET messages = '[]'",
    "a response is deleted": "DELETE FROM responses WHERE text = 'four'",
    "a late vote": "INSERT INTO votes (id, kind, subject, rater, rater_kind, value, comment, time) "
    "SELECT 0, kind, subject, 'D', 'human', value, '', 0 FROM votes WHERE value LIKE '%ranks%' LIMIT 1",
}


@pytest.mark.parametrize("what", CHANGES)
def test_rows_changed_by_hand_change_the_digest(store: FeedbackStore, what: str) -> None:
    before, unbroken = store.digest(), lines(store, 0, 100)
    with write_transaction(store._engine) as connection:
        assert connection.execute(text(CHANGES[what])).rowcount > 0
    assert (store.digest() != before) == (what != "a late vote"), "votes are numbered from 1"
    assert (lines(store, 0, 100) != unbroken) == (what != "a late vote")
    if "vote" in what:
        assert store.digest() == added_up(store)


def test_replaced_and_foreign_rows_enter_the_digest_with_their_content(tmp_path: Path) -> None:
    """`INSERT OR REPLACE` of SQLite is neither an update nor a deletion. `a` is no hash of any content."""
    digests = set()
    for content in ("one", "two"):
        with open_feedback(str(tmp_path / f"{content}.db")) as opened:
            response = opened.add_response(({"role": "user", "content": "Hi"},), "same", "m")
            opened.thumb(Rater("Ann"), response, True)
            digests.add(opened.digest())
            for name in (response.id, "a"):
                with write_transaction(opened._engine) as connection:
                    connection.execute(text("PRAGMA defer_foreign_keys = ON"))
                    row = f"SELECT '{name}', prompt, '{content}', 'm' FROM responses LIMIT 1"
                    connection.execute(text(f"INSERT OR REPLACE INTO responses {row}"))
                digests.add(opened.digest())
    assert len(digests) == 5


def test_truncated_table_changes_the_digest(postgres: str) -> None:
    with open_feedback(postgres) as store:
        vote(store, 10)
        before = store.digest()
        with write_transaction(store._engine) as connection:
            connection.execute(text("TRUNCATE responses"))
        assert store.digest() != before


def test_store_of_an_earlier_version_gets_its_sums(place: str, store: FeedbackStore) -> None:
    before = store.digest()
    with write_transaction(store._engine) as connection:
        if connection.dialect.name == "postgresql":
            for name in ("forget_kept_sums", "forget_kept_sums_if_late", "note_row_by_hand", "note_table_by_hand"):
                connection.execute(text(f"DROP FUNCTION {name} CASCADE"))
        else:
            for name in (
                connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            ):
                connection.execute(text(f"DROP TRIGGER {name}"))
        for table in ("kept_sums", "by_hand"):
            connection.execute(text(f"DROP TABLE {table}"))
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
            copied = other.add_response(({"role": "user", "content": "Hi"},), ("one", "two")[place], "m")
            other.thumb(Rater("E", "ai"), copied, True, comment="another rater and time", when=1.0)
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
