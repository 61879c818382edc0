"""A feedback store that can only be read: reading works or says what is missing, and writing is refused."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import align_here
from powers import permissions_count
from sqlalchemy import text

from alignment_core.errors import FeedbackError
from alignment_core.feedback import Rater, database, open_feedback
from alignment_core.feedback.database import write_transaction
from alignment_core.feedback.votes import Response

PROMPT = ({"role": "user", "content": "Hi"},)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "medium"
    folder.mkdir()
    yield folder
    folder.chmod(0o755)


def fill(place: str) -> tuple[Response, str]:
    """Vote. Return what was judged, and the digest."""
    with open_feedback(place) as store:
        response = store.add_response(PROMPT, "Hello", "m")
        for name in ("Ann", "Ben"):
            store.thumb(Rater(name), response, True)
        return response, store.digest()


def lock(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)


def test_commands_read_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    place = folder / "feedback.db"
    response, digest = fill(str(place))
    before = place.read_bytes()
    lock(folder)
    with permissions_count():
        shown = align_here("feedback", "show", "--store", place, "--json")
        assert (shown.returncode, '"votes": 2' in shown.stdout) == (0, True)
        assert align_here("feedback", "export", tmp_path / "out", "--store", place).returncode == 0
        with open_feedback(str(place)) as store:
            assert store.digest() == digest
            with pytest.raises(FeedbackError, match="can only be read"):
                store.thumb(Rater("Eve"), response, True)
    assert len((tmp_path / "out" / "thumbs.jsonl").read_text().splitlines()) == 2
    assert [path.name for path in folder.iterdir()] == ["feedback.db"]
    assert place.read_bytes() == before


def test_digest_of_votes_without_kept_sums_is_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_core.feedback.vote_sums.BLOCK", 1)
    _, digest = fill(str(folder / "feedback.db"))
    with sqlite3.connect(folder / "feedback.db") as connection:
        assert connection.execute("DELETE FROM kept_sums").rowcount == 2
    connection.close()
    lock(folder)
    with permissions_count(), open_feedback(str(folder / "feedback.db")) as store:
        assert store.digest() == digest


def test_votes_in_a_log_beside_the_store_are_not_forgotten(folder: Path, tmp_path: Path) -> None:
    """A copy of a store that is in use: the votes are in its log. With its index, SQLite can read it."""
    place, used = folder / "feedback.db", tmp_path / "used.db"
    with open_feedback(str(used)) as store:
        store.thumb(Rater("Ann"), store.add_response(PROMPT, "Hello", "m"), True)
        for ending in ("", "-wal", "-shm"):
            shutil.copy(f"{used}{ending}", f"{place}{ending}")
    lock(folder)
    with permissions_count(), open_feedback(str(place)) as store:
        assert store.newest() == 1
    folder.chmod(0o755)
    (folder / "feedback.db-shm").unlink()
    lock(folder)
    with permissions_count():
        shown = align_here("feedback", "show", "--store", place)
    assert shown.returncode == 2
    assert "feedback.db-wal" in shown.stderr
    assert "Copy feedback.db and feedback.db-wal together" in " ".join(shown.stderr.split())


def test_missing_tables_are_named(folder: Path) -> None:
    fill(str(folder / "feedback.db"))
    with sqlite3.connect(folder / "feedback.db") as connection:
        connection.execute("DROP TABLE kept_sums")
    connection.close()
    lock(folder)
    with permissions_count(), pytest.raises(FeedbackError, match="no kept_sums"):
        open_feedback(str(folder / "feedback.db"))


def test_postgresql_that_allows_no_writes(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a standby."""
    response, digest = fill(postgres)
    place = f"{postgres}{'&' if '?' in postgres else '?'}options=-c%20default_transaction_read_only%3Don"
    with open_feedback(place) as store:
        assert database.is_read_only(store._engine)
        assert (store.newest(), store.digest()) == (2, digest)
        with pytest.raises(FeedbackError, match="can only be read"):
            store.thumb(Rater("Eve"), response, True)
    with open_feedback(postgres) as store, write_transaction(store._engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM votes")).scalar() == 2
