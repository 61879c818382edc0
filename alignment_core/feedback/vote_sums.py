"""Identify the training data in the votes without reading all of them.

The ids of prompts, responses and ranking tasks are hashes of their content, so what a vote judges and what it says
identify its line of training data. Both stand for a number of 2048 bits, a hash. The training data of a store is the
sum of these numbers, so the order of the votes does not matter. A vote that supersedes another one adds its own number
and subtracts the other's. Votes are only appended and numbered as they become visible, so the sum of all votes up to a
number never changes. The table `kept_sums` keeps it for every 256th number; the rest is added when asked.

Triggers notice what others do with SQL. A change of an earlier vote empties the table, and it is filled again. Prompts,
responses and ranking tasks that were changed, or whose id is no hash, are listed in the table `by_hand`, and their
content is read each time.

Source: Bellare and Micciancio, 1997, A new paradigm for collision-free hashing: incrementality at reduced cost
(AdHash). Votes can be chosen to match a given sum of 256 bits; for 2048 bits this takes too long (Wagner, 2002).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Select,
    Table,
    Text,
    event,
    func,
    select,
)

from alignment_core.feedback.database import metadata, prompts, ranking_tasks, responses, votes
from alignment_core.feedback.vote_values import SKIPPED, WITHDRAWN

BLOCK = 256
"""Votes from one kept sum to the next."""
BYTES = 256
MODULUS = 1 << 8 * BYTES
ROWS = 10_000
"""Rows that are read at once."""
SEEK = 5
"""Time to look up the vote before a vote, in times of passing over one in the order of the index."""
_CONTENT = {"prompts": prompts, "responses": responses, "ranking_tasks": ranking_tasks}

kept_sums = Table(
    "kept_sums",
    metadata,
    Column("upto", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("sum", Text, nullable=False),  # of all votes up to this number, hexadecimal
)
by_hand = Table("by_hand", metadata, Column("kind", Text, primary_key=True), Column("id", Text, primary_key=True))
for _table in (votes, *_CONTENT.values(), by_hand):
    kept_sums.add_is_dependent_on(_table)  # it is created last, and the triggers after it


def votes_digest(connection: Connection, after: int, upto: int, before: int | None) -> str:
    """Return a hash of the training data in the votes that `current_votes` selects, equal for the same data.

    It also depends on every row in `by_hand`, whether or not these votes judge it.
    """
    last = upto if before is None else min(before, upto)
    total = _older(connection, last, upto) - _older(connection, min(after, last), upto)
    digest = hashlib.sha256((total % MODULUS).to_bytes(BYTES, "little"))
    for row in _changed_by_hand(connection):
        digest.update((json.dumps(row) + "\n").encode())
    return digest.hexdigest()


def extend(connection: Connection, limit: int) -> None:
    """Keep the sums of up to `limit` more votes, at least twice `BLOCK`. The last few votes are left out.

    Args:
        connection: an exclusive write transaction.
        limit: number of votes.
    """
    kept, total = _kept(connection, None)
    further = select(votes.c.id).where(votes.c.id > kept).order_by(votes.c.id).offset(limit - 1).limit(1)
    last = connection.execute(further).scalar()
    upto = (_newest(connection) if last is None else last) // BLOCK * BLOCK
    if upto <= kept:
        return
    blocks = defaultdict(int, {upto: 0})  # by the last number of the block
    for number, change in _changes(connection, kept, upto):
        blocks[-(-number // BLOCK) * BLOCK] += change
    rows = []
    for end in sorted(blocks):
        total = (total + blocks[end]) % MODULUS
        rows.append({"upto": end, "sum": f"{total:x}"})
    connection.execute(kept_sums.insert(), rows)


def is_behind(connection: Connection) -> bool:
    """Return whether there are votes for another sum."""
    return _newest(connection) - _kept(connection, None)[0] >= 2 * BLOCK


def _newest(connection: Connection) -> int:
    return int(connection.execute(select(func.max(votes.c.id))).scalar() or 0)


def _older(connection: Connection, last: int, upto: int) -> int:
    """Return the sum of the votes up to number `last` that are current at number `upto`."""
    if last == 0:
        return 0
    kept, total = _kept(connection, last)
    total += sum(change for _, change in _changes(connection, kept, last))
    if last < upto:
        total -= sum(_number(vote) for _, vote in _rows(connection, _superseded(last, upto, last)))
    return total


def _kept(connection: Connection, upto: int | None) -> tuple[int, int]:
    """Return the last kept sum up to a number, with that number."""
    query = select(kept_sums).order_by(kept_sums.c.upto.desc()).limit(1)
    row = connection.execute(query if upto is None else query.where(kept_sums.c.upto <= upto)).first()
    return (0, 0) if row is None else (int(row.upto), int(row.sum, 16))


def _changes(connection: Connection, after: int, upto: int) -> Iterator[tuple[int, int]]:
    """Yield what the votes after a number and up to another one add to the sum, each with the number of its vote.

    A vote that supersedes another one is yielded twice. The order is undefined.
    """
    added = select(votes.c.id, _text(votes)).where(votes.c.id > after, votes.c.id <= upto, _says_something(votes))
    for number, vote in _rows(connection, added):
        yield number, _number(vote)
    for number, vote in _rows(connection, _superseded(after, upto, upto)):
        yield number, -_number(vote)


def _superseded(after: int, upto: int, last: int) -> Select[Any]:
    """Return a query for votes up to number `last` that are superseded by one after a number and up to another one.

    Its columns are the number of the later vote and the text of the earlier one.
    """
    earlier, other = votes.alias("earlier"), votes.alias("other")
    later: ColumnElement[int]
    if SEEK * (upto - after) < upto:
        same = [other.c[name] == votes.c[name] for name in ("rater", "kind", "subject")]
        previous = select(func.max(other.c.id)).where(*same, other.c.id < votes.c.id).correlate(votes)
        later, joined = votes.c.id, votes.join(earlier, earlier.c.id == previous.scalar_subquery())
    else:
        keys = [other.c.rater, other.c.kind, other.c.subject]
        before = func.lag(other.c.id).over(partition_by=keys, order_by=other.c.id)
        passed = select(other.c.id, before.label("previous")).subquery()
        later, joined = passed.c.id, passed.join(earlier, earlier.c.id == passed.c.previous)
    found = select(later, _text(earlier)).select_from(joined).where(later > after, later <= upto)
    return found.where(earlier.c.id <= last, _says_something(earlier))


def _text(table: FromClause) -> ColumnElement[str]:
    """Return what identifies the training data in a vote."""
    return table.c.kind + "\n" + table.c.subject + "\n" + table.c.value


def _says_something(table: FromClause) -> ColumnElement[bool]:
    """Return the condition that there are training data in a vote."""
    return table.c.value.not_in([json.dumps(value) for value in (WITHDRAWN, SKIPPED)])


def _rows(connection: Connection, query: Select[Any]) -> Iterator[Any]:
    for rows in connection.execute(query.execution_options(yield_per=ROWS)).partitions():
        yield from rows


def _number(vote: str) -> int:
    return int.from_bytes(hashlib.shake_256(vote.encode()).digest(BYTES), "little")


def _changed_by_hand(connection: Connection) -> Iterator[list[str | None]]:
    """Yield kind, id and content of each row in `by_hand`. The content of a row that was deleted is None."""
    for kind, table in _CONTENT.items():
        content = [column for column in table.c if column.name not in ("id", "number", "model")]
        listed = select(by_hand.c.kind, by_hand.c.id, *content).outerjoin(table, table.c.id == by_hand.c.id)
        for row in _rows(connection, listed.where(by_hand.c.kind == kind).order_by(by_hand.c.id)):
            yield list(row)


def _sqlite_triggers() -> Iterator[str]:
    late = "NEW.id <= (SELECT max(upto) FROM kept_sums)"
    yield f"CREATE TRIGGER vote_too_late AFTER INSERT ON votes WHEN {late} BEGIN DELETE FROM kept_sums; END"
    for what in ("UPDATE", "DELETE"):
        yield f"CREATE TRIGGER vote_{what.lower()} AFTER {what} ON votes BEGIN DELETE FROM kept_sums; END"
    for name in _CONTENT:
        note = f"INSERT OR IGNORE INTO by_hand VALUES ('{name}', {{}}.id);"
        old, new = note.format("OLD"), note.format("NEW")
        # INSERT OR REPLACE calls neither the trigger for updates nor the one for deletions.
        odd = f"length(NEW.id) <> 32 OR NEW.id GLOB '*[^0-9a-f]*' OR EXISTS (SELECT 1 FROM {name} WHERE id = NEW.id)"
        yield f"CREATE TRIGGER {name}_by_hand_insert BEFORE INSERT ON {name} WHEN {odd} BEGIN {new} END"
        yield f"CREATE TRIGGER {name}_by_hand_update AFTER UPDATE ON {name} BEGIN {old} {new} END"
        yield f"CREATE TRIGGER {name}_by_hand_delete AFTER DELETE ON {name} BEGIN {old} END"


def _postgresql_triggers() -> Iterator[str]:
    def function(name: str, body: str) -> str:
        return f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NULL; END $$"

    yield function("forget_kept_sums", "DELETE FROM kept_sums;")
    late = "IF NEW.id <= (SELECT max(upto) FROM kept_sums) THEN DELETE FROM kept_sums; END IF;"
    yield function("forget_kept_sums_if_late", late)
    note = "INSERT INTO by_hand VALUES (TG_TABLE_NAME, {}.id) ON CONFLICT DO NOTHING;"
    changed = " ".join(f"IF TG_OP <> '{other}' THEN {note.format(row)} END IF;" for row, other in _ROWS_OF)
    yield function("note_row_by_hand", changed)
    every = "INSERT INTO by_hand SELECT %%L, id FROM %%I ON CONFLICT DO NOTHING"  # DDL() replaces %% with %
    yield function("note_table_by_hand", f"EXECUTE format('{every}', TG_TABLE_NAME, TG_TABLE_NAME);")
    trigger = "CREATE TRIGGER {} {} ON {} FOR EACH {} EXECUTE FUNCTION {}()"
    yield trigger.format("too_late", "AFTER INSERT", "votes", "ROW", "forget_kept_sums_if_late")
    changes = "AFTER UPDATE OR DELETE OR TRUNCATE"
    yield trigger.format("changed", changes, "votes", "STATEMENT", "forget_kept_sums")
    for name in _CONTENT:
        odd = "ROW WHEN (NEW.id !~ '^[0-9a-f]{32}$')"
        yield trigger.format("by_hand_insert", "AFTER INSERT", name, odd, "note_row_by_hand")
        yield trigger.format("by_hand_change", "AFTER UPDATE OR DELETE", name, "ROW", "note_row_by_hand")
        yield trigger.format("by_hand_truncate", "BEFORE TRUNCATE", name, "STATEMENT", "note_table_by_hand")


_ROWS_OF = (("OLD", "INSERT"), ("NEW", "DELETE"))
"""The row in a trigger, and the change that has none such."""

for _dialect, _statements in (("sqlite", _sqlite_triggers()), ("postgresql", _postgresql_triggers())):
    for _statement in _statements:
        _ddl = DDL(_statement)  # type: ignore[no-untyped-call]
        event.listen(kept_sums, "after_create", _ddl.execute_if(dialect=_dialect))
