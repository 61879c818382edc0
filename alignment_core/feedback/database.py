"""The feedback database: its tables and how to open it. SQLite by default, PostgreSQL by URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from alignment_core.addresses import hide_secrets
from alignment_core.config.places import expanded
from alignment_core.errors import FeedbackError
from alignment_core.secret_names import is_secret_name

VERSION = 1
BUSY_SECONDS = 120
"""How long a writer waits for other writers: SQLite allows only one at a time."""
LOCK = 0x616C69676E
"""Number of the PostgreSQL advisory lock (`align` in ASCII) held while votes are appended."""
WRITES, READ_ONLY = "alignment_writes", "alignment_read_only"
"""Execution options of SQLAlchemy."""
CACHE_KB = 16_384
"""Memory for pages of an SQLite file."""

metadata = MetaData()
about = Table("about", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))
prompts = Table(
    "prompts",
    metadata,
    Column("id", Text, primary_key=True),  # a hash of the messages
    Column("messages", Text, nullable=False),  # JSON
)
responses = Table(
    "responses",
    metadata,
    Column("id", Text, primary_key=True),  # a hash of the prompt, text and model
    Column("prompt", Text, ForeignKey("prompts.id"), nullable=False),
    Column("text", Text, nullable=False),
    Column("model", Text, nullable=False),  # key of the artifact that wrote it; empty if unknown
)
ranking_tasks = Table(
    "ranking_tasks",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("id", Text, nullable=False, unique=True),  # a hash of the responses
    Column("prompt", Text, ForeignKey("prompts.id"), nullable=False),
    Column("responses", Text, nullable=False),  # JSON: ids in sampling order
)
votes = Table(
    "votes",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("kind", Text, nullable=False),  # "thumb" or "ranking"
    Column("subject", Text, nullable=False),  # id of the response or of the ranking task
    Column("rater", Text, nullable=False),
    Column("rater_kind", Text, nullable=False),  # "human" or "ai"
    Column("value", Text, nullable=False),  # JSON
    Column("comment", Text, nullable=False),
    Column("time", Float, nullable=False),  # seconds since the epoch
    Index("votes_in_force", "rater", "kind", "subject", "id"),
    sqlite_autoincrement=True,
)


def open_engine(place: str) -> Engine:
    """Open the database at `place` and create missing tables.

    Args:
        place: the path of an SQLite file, or an SQLAlchemy URL such as `postgresql://user:password@host/name`.

    Raises:
        FeedbackError: the database cannot be opened, or another version of the program created it.
    """
    url = database_url(place)
    try:
        engine = create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite")
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise FeedbackError(
            "this kind of database cannot be opened",
            where=without_password(url),
            got=str(error).partition("\n")[0],
            do="Use the path of an SQLite file, or a postgresql:// URL after `pip install 'alignment-flows[postgres]'`",
        ) from error
    if url.get_backend_name() == "sqlite":
        _prepare_sqlite(engine, url)
    try:
        version = _version(engine) if _found_read_only(engine) else _make_tables(engine)
    except FeedbackError:
        engine.dispose()
        raise
    if version not in (None, str(VERSION)):
        raise FeedbackError(
            "the feedback store was created by another version of Alignment Flows",
            where=without_password(url),
            got=f"version {version}",
            expected=f"version {VERSION}",
        )
    return engine


def is_read_only(engine: Engine) -> bool:
    """Return whether the database can only be read: its medium, its permissions or its server allow nothing else."""
    return bool(engine.get_execution_options().get(READ_ONLY))


def _found_read_only(engine: Engine) -> bool:
    """Find out whether a PostgreSQL database can only be read. Return whether a database of any kind can."""
    if engine.dialect.name == "postgresql":
        with read_transaction(engine) as connection:
            if connection.execute(text("SHOW transaction_read_only")).scalar() == "on":
                engine.update_execution_options(**{READ_ONLY: True})
    return is_read_only(engine)


def _make_tables(engine: Engine) -> str | None:
    """Create missing tables. Return the schema version that was stored before, or None for a new database."""
    with write_transaction(engine) as connection:
        metadata.create_all(connection)
        version = connection.execute(select(about.c.value).where(about.c.name == "version")).scalar()
        if version is None:
            connection.execute(about.insert().values(name="version", value=str(VERSION)))
        return version


def _version(engine: Engine) -> str | None:
    """Return the schema version of a database that can only be read."""
    with read_transaction(engine) as connection:
        missing = metadata.tables.keys() - set(inspect(connection).get_table_names())
        if not missing:
            return connection.execute(select(about.c.value).where(about.c.name == "version")).scalar()
    raise FeedbackError(
        "the feedback store lacks tables, and they cannot be added because it can only be read",
        where=without_password(engine.url),
        got=f"no {', '.join(sorted(missing))}",
        do="Run `align feedback show` on it once where it can be written",
    )


def database_url(place: str) -> URL:
    """Return the SQLAlchemy URL for a path or URL.

    Raises:
        FeedbackError: the URL is invalid, or has an `@` in its password.
    """
    if "://" not in place:
        return URL.create("sqlite", database=str(expanded(place).absolute()))
    try:
        url = make_url(place)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is no number, which may be part of a password
        got = f"{place.partition('://')[0]}://…"
        do = "Write special characters of a password as %XX, such as %40 for @"
        raise FeedbackError("this is not a database URL", where="feedback", got=got, do=do) from error
    if url.get_backend_name() != "sqlite" and "@" in f"{url.host}{url.database}":
        # The driver would look for a host whose name is the rest of the password, and say so.
        raise FeedbackError(
            "the address of the database has more than one @",
            where="feedback",
            got=hide_secrets(place),
            do="Write an @ in the password as %40, and other special characters in the same way",
        )
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def same_database(one: str, other: str) -> bool:
    """Return whether two paths or URLs name the same database. Passwords and other secrets are ignored.

    Raises:
        FeedbackError: one of the URLs is invalid.
    """
    return _without_secrets(database_url(one)) == _without_secrets(database_url(other))


def _without_secrets(url: URL) -> URL:
    return url._replace(password=None).difference_update_query([name for name in url.query if is_secret_name(name)])


def without_password(url: URL) -> str:
    """Return the path or URL for messages, with every secret hidden."""
    if url.get_backend_name() == "sqlite":
        return url.database or ""
    shown: str = hide_secrets(url.render_as_string(hide_password=False))
    return shown


def as_feedback_error(engine: Engine, error: SQLAlchemyError) -> FeedbackError:
    """Convert an SQLAlchemy error to a `FeedbackError`."""
    reason = str(error.orig if isinstance(error, DBAPIError) else error).strip().partition("\n")[0]
    return FeedbackError(
        "the feedback store cannot be read or written",
        where=without_password(engine.url),
        got=reason,
        do="Check the path or URL and its permissions, and that the database server is running",
    )


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """Open an exclusive write transaction, so that votes are numbered in the order in which they become visible.

    Otherwise a reader that has seen number 6 could miss number 5, which a slower writer commits later.

    Raises:
        FeedbackError: the database cannot be written.
    """
    if is_read_only(engine):
        raise FeedbackError(
            "the feedback store can only be read",
            where=without_password(engine.url),
            got="a read-only medium, or no permission to write to the file and its folder or to the database",
            do="Copy the store to where you can write, or ask for the permission",
        )
    try:
        with engine.execution_options(**{WRITES: True}).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            yield connection
    except SQLAlchemyError as error:
        raise as_feedback_error(engine, error) from error


@contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that reads one state of the database.

    Raises:
        FeedbackError: the database cannot be read.
    """
    try:
        with engine.connect() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise as_feedback_error(engine, error) from error


def _prepare_sqlite(engine: Engine, url: URL) -> None:
    file = Path(url.database or "")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FeedbackError("the folder cannot be created", where=without_password(url), got=error.strerror) from error
    read_only = file.is_file() and not (_writable(file) and _writable(file.parent))
    if read_only:
        engine.update_execution_options(**{READ_ONLY: True})
        _only_read(engine, file)

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # we send BEGIN: the driver would do so too late to wait for writers
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        cursor.execute(f"PRAGMA cache_size = {-CACHE_KB}")
        if not read_only:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")  # an acknowledged vote survives a power failure
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _only_read(engine: Engine, file: Path) -> None:
    """Let SQLite open the file where it can create no files beside it.

    Raises:
        FeedbackError: the newest votes are in a second file, which SQLite reads only with the help of a third one.
    """
    log, index = (file.with_name(file.name + ending) for ending in ("-wal", "-shm"))
    logged = log.is_file() and log.stat().st_size > 0
    if logged and not index.is_file():
        raise FeedbackError(
            "the newest votes are in a log beside the feedback store, which cannot be read on a read-only medium",
            where=str(file),
            got=str(log),
            do=f"Copy {file.name} and {log.name} together to a folder that can be written, and use that copy",
        )

    @event.listens_for(engine, "do_connect")
    def _connect(_: Any, __: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        arguments[0] = f"{file.as_uri()}?mode=ro" + ("" if logged else "&immutable=1")
        options["uri"] = True
