"""Rows that belong together but stand apart in a file, brought together on disk rather than in memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class Groups:
    """Rows by key, in the order in which each key first came; use as a context manager."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # a temporary file of SQLite's own
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
        """Keep a row, which must be plain JSON."""
        text = json.dumps(value, default=str)  # ASCII: lone surrogates survive as escapes
        self._database.execute("INSERT INTO rows VALUES (?, ?, ?)", (_storable(key), origin, text))

    def rename(self, name: str, key: str) -> None:
        """Rows that are or will be added under `name` belong to `key`."""
        if name != key:
            self._database.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (_storable(name), _storable(key)))

    def __iter__(self) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
        """Each key with its rows as (origin, row)."""
        self._database.execute(
            "UPDATE rows SET key = names.key FROM names WHERE rows.key = names.name AND rows.key != names.key"
        )
        self._database.execute("CREATE INDEX IF NOT EXISTS by_key ON rows (key)")
        keys = self._database.execute("SELECT key FROM rows GROUP BY key ORDER BY MIN(rowid)")
        for (key,) in keys:
            yield key, self.get(key)

    def rows(self) -> Iterator[tuple[str, str, Any]]:
        """Every key, origin and row, those of a key one after another, in the order in which they were added."""
        self._database.execute("CREATE INDEX IF NOT EXISTS by_key ON rows (key)")
        for key, origin, value in self._database.execute("SELECT key, origin, value FROM rows ORDER BY key, rowid"):
            yield key, origin, json.loads(value)

    def get(self, key: str) -> list[tuple[str, Any]]:
        """The rows of one key as (origin, row)."""
        rows = self._database.execute("SELECT origin, value FROM rows WHERE key = ? ORDER BY rowid", (_storable(key),))
        return [(origin, json.loads(value)) for origin, value in rows]


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
