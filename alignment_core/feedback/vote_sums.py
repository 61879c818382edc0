"""Identify the training data in the votes without reading all of them.

Every vote stands for its line of training data, and a line for a number of 2048 bits, a hash. The training data of a
store is the sum of these numbers, so the order of the votes does not matter. A vote that supersedes another one adds
its own number and subtracts the other's. Votes are only appended and numbered as they become visible, so the sum of all
votes up to a number never changes. The table `vote_sums` keeps it for every 256th vote; the rest is added when asked.

Whoever changes earlier rows by hand empties the table by a trigger, and it is filled again.

Source: Bellare and Micciancio, 1997, A new paradigm for collision-free hashing: incrementality at reduced cost
(AdHash). Votes can be chosen to match a given sum of 256 bits; for 2048 bits this takes too long (Wagner, 2002).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import DDL, BigInteger, Column, Connection, Integer, Select, Table, Text, event, func, select

from alignment_core.feedback.current_votes import read_judged
from alignment_core.feedback.database import metadata, prompts, ranking_tasks, responses, votes
from alignment_core.feedback.training_rows import training_row

BLOCK = 256
"""Votes from one kept sum to the next."""
BYTES = 256
MODULUS = 1 << 8 * BYTES

vote_sums = Table(
    "vote_sums",
    metadata,
    Column("upto", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("sum", Text, nullable=False),  # of all votes up to this number, hexadecimal
)
for _table in (votes, responses, prompts, ranking_tasks):
    vote_sums.add_is_dependent_on(_table)


def votes_digest(connection: Connection, after: int, upto: int, before: int | None) -> str:
    """Return a hash of the training data in the votes that `current_votes` selects, equal for the same data."""
    last = upto if before is None else min(before, upto)
    total = _older(connection, last, upto) - _older(connection, min(after, last), upto)
    return hashlib.sha256((total % MODULUS).to_bytes(BYTES, "little")).hexdigest()


def extend(connection: Connection, limit: int) -> bool:
    """Keep the sums of up to `limit` more votes. Return whether there may be more.

    Args:
        connection: an exclusive write transaction.
        limit: number of votes.
    """
    kept, total = _kept(connection, None)
    rows, added = [], 0
    for number, change in _changes(connection, _with_previous(kept, None).limit(limit)):
        total, added = (total + change) % MODULUS, added + 1
        if number // BLOCK > kept // BLOCK:
            kept = number
            rows.append({"upto": number, "sum": f"{total:x}"})
    if rows:
        connection.execute(vote_sums.insert(), rows)
    return added == limit


def is_behind(connection: Connection) -> bool:
    """Return whether there are votes for another sum."""
    newest = int(connection.execute(select(func.max(votes.c.id))).scalar() or 0)
    return newest - _kept(connection, None)[0] >= 2 * BLOCK


def _older(connection: Connection, last: int, upto: int) -> int:
    """Return the sum of the votes up to number `last` that are current at number `upto`."""
    if last == 0:
        return 0
    kept, total = _kept(connection, last)
    total += sum(change for _, change in _changes(connection, _with_previous(kept, last)))
    if last < upto:
        query = _with_previous(last, upto)
        superseded = query.where(query.selected_columns.superseded <= last)
        total -= sum(_number(training_row(found, found.row.previous)) for found in read_judged(connection, superseded))
    return total


def _kept(connection: Connection, upto: int | None) -> tuple[int, int]:
    """Return the last kept sum up to a number, with the number of its vote."""
    query = select(vote_sums).order_by(vote_sums.c.upto.desc()).limit(1)
    row = connection.execute(query if upto is None else query.where(vote_sums.c.upto <= upto)).first()
    return (0, 0) if row is None else (int(row.upto), int(row.sum, 16))


def _changes(connection: Connection, query: Select[Any]) -> Iterator[tuple[int, int]]:
    """Yield the number of each vote of a query of `_with_previous`, and what it adds to the sum."""
    for found in read_judged(connection, query):
        change = _number(training_row(found, found.row.value))
        if found.row.superseded is not None:
            change -= _number(training_row(found, found.row.previous))
        yield found.row.id, change


def _with_previous(after: int, upto: int | None) -> Select[Any]:
    """Return a query for the votes after a number and up to another one, each with the vote that it supersedes."""
    earlier, other = votes.alias("earlier"), votes.alias("other")
    same = [other.c[name] == votes.c[name] for name in ("rater", "kind", "subject")]
    previous = select(func.max(other.c.id)).where(*same, other.c.id < votes.c.id).correlate(votes).scalar_subquery()
    found = (
        select(votes, earlier.c.id.label("superseded"), earlier.c.value.label("previous"))
        .select_from(votes.outerjoin(earlier, earlier.c.id == previous))
        .where(votes.c.id > after)
        .order_by(votes.c.id)
    )
    return found if upto is None else found.where(votes.c.id <= upto)


def _number(row: tuple[str, str] | None) -> int:
    if row is None:
        return 0
    return int.from_bytes(hashlib.shake_256("\n".join(row).encode()).digest(BYTES), "little")


def _triggers() -> Iterator[tuple[str, str]]:
    """Yield the dialect and the statement of each trigger that empties the table when earlier rows change."""
    late = "NEW.id <= (SELECT max(upto) FROM vote_sums)"
    yield (
        "postgresql",
        (
            "CREATE FUNCTION forget_vote_sums() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN DELETE FROM vote_sums; RETURN NULL; END $$"
        ),
    )
    yield (
        "postgresql",
        (
            "CREATE FUNCTION forget_vote_sums_if_late() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN IF {late} THEN DELETE FROM vote_sums; END IF; RETURN NULL; END $$"
        ),
    )
    yield (
        "postgresql",
        ("CREATE TRIGGER votes_late AFTER INSERT ON votes FOR EACH ROW EXECUTE FUNCTION forget_vote_sums_if_late()"),
    )
    yield "sqlite", f"CREATE TRIGGER votes_late AFTER INSERT ON votes WHEN {late} BEGIN DELETE FROM vote_sums; END"
    for table in ("votes", "responses", "prompts", "ranking_tasks"):
        yield (
            "postgresql",
            (
                f"CREATE TRIGGER {table}_changed AFTER UPDATE OR DELETE OR TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION forget_vote_sums()"
            ),
        )
        for what in ("UPDATE", "DELETE"):
            name = f"{table}_{what.lower()}"
            yield "sqlite", f"CREATE TRIGGER {name} AFTER {what} ON {table} BEGIN DELETE FROM vote_sums; END"


for _dialect, _statement in _triggers():
    _ddl = DDL(_statement)  # type: ignore[no-untyped-call]
    event.listen(vote_sums, "after_create", _ddl.execute_if(dialect=_dialect))
