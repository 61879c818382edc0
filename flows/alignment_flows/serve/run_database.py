"""The database of a temporary server: the user's, or one beside it while another server uses the user's.

With two servers on one SQLite file, requests fail with "database is locked", and parts of a run are not recorded.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain, count
from pathlib import Path

from alignment_core.artifacts.files import try_lock


@contextmanager
def reserved_database(url: str) -> Iterator[str]:
    """Reserve a database that no other server uses, and yield its connection URL.

    A database that is not an SQLite file serves several servers, and is not reserved.

    Args:
        url: connection URL of the user's database.
    """
    from sqlalchemy import make_url

    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or ":memory:" in parsed.database:
        yield url
        return
    users = Path(parsed.database)
    files = chain([users], (users.with_name(f"{users.stem}-{number}{users.suffix}") for number in count(2)))
    for file in files:
        with _lock(file) as locked:
            if locked and not _is_open(file):
                yield parsed.set(database=str(file)).render_as_string(hide_password=False)
                return


@contextmanager
def _lock(file: Path) -> Iterator[bool]:
    """Lock the file beside a database. Yield False if another temporary server holds the lock."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        yield try_lock(lock.fileno())


def _is_open(file: Path) -> bool:
    """Return whether a process has the database open. Each connection of a server holds a shared lock on the file."""
    if not file.exists():
        return False
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return True
        except sqlite3.DatabaseError:  # it is not a database, which the server reports
            return False
    return False
