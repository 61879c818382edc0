"""Group rows that belong together but are scattered over a file. The rows are kept on disk, not in memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class Groups:
    """Rows grouped by key, in the order in which each key first appears. Use it as a context manager."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # a temporary SQLite file
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE rows (key TEXT, origin TEXT, value TEXT)")
        self._database.execute("CREATE TABLE names (name TEXT PRIMARY KEY, key TEXT) WITHOUT ROWID")

    def __enter__(self) -> Groups:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, key: str, origin: str, value: Any) -> None:
        """Add a row, which must be plain JSON."""
        text = json.dumps(value, default=str)  # ASCII, so that lone surrogates are kept as escapes
        self._database.execute("INSERT INTO rows VALUES (?, ?, ?)", (_storable(key), origin, text))

    def rename(self, name: str, key: str) -> None:
        """Assign rows under `name` to `key`, including rows added later."""
        if name != key:
            self._database.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (_storable(name), _storable(key)))

    def __iter__(self) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
        """Yield each key with its rows as (origin, row)."""
        self._database.execute(
            "UPDATE rows SET key = names.key FROM names WHERE rows.key = names.name AND rows.key != names.key"
        )
        self._database.execute("CREATE INDEX IF NOT EXISTS by_key ON rows (key)")
        keys = self._database.execute("SELECT key FROM rows GROUP BY key ORDER BY MIN(rowid)")
        for (key,) in keys:
            yield key, self.get(key)

    def rows(self) -> Iterator[tuple[str, str, Any]]:
        """Yield every key, origin and row, grouped by key, in the order in which the rows of a key were added."""
        self._database.execute("CREATE INDEX IF NOT EXISTS by_key ON rows (key)")
        for key, origin, value in self._database.execute("SELECT key, origin, value FROM rows ORDER BY key, rowid"):
            yield key, origin, json.loads(value)

    def get(self, key: str) -> list[tuple[str, Any]]:
        """Return the rows of one key as (origin, row)."""
        rows = self._database.execute("SELECT origin, value FROM rows WHERE key = ? ORDER BY rowid", (_storable(key),))
        return [(origin, json.loads(value)) for origin, value in rows]


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
