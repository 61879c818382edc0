"""Aliases of artifacts, such as `production`, each with an append-only history.

    <store>/.aliases/<name>.jsonl     one line per change, newest last
    <store>/.aliases/.lock            locked (flock) by the process that makes a change

A change writes the complete history to a new file, which then replaces the old one by a rename. Readers see the alias
either before or after the change, even if the writer is killed.

If the store shares its artifacts with a remote, the histories there are the aliases, and these files are copies for
the time when the remote cannot be reached. A change first replaces the history in the remote, which fails if another
machine has replaced it meanwhile.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, Protocol

from alignment_core.artifacts.alias_history import (
    Change,
    change_now,
    check_continues,
    damaged_history,
    is_alias,
    parsed_history,
    standing_promotions,
    written_history,
)
from alignment_core.artifacts.files import explain_unwritable, fsync, open_lock, read_file
from alignment_core.artifacts.layout import check_folder, described
from alignment_core.errors import ArtifactError

PRODUCTION, CANDIDATE = "production", "candidate"


class SharedHistories(Protocol):
    """The histories in a remote."""

    def place(self, name: str) -> str:
        """Return the address of the history of an alias."""

    def read(self) -> dict[str, bytes] | None:
        """Return the history of every alias by name. None: the remote cannot be used now, and the log says so."""

    def read_one(self, name: str) -> tuple[bytes, str] | None:
        """Return the history of an alias and its tag, or None if there is none.

        Raises:
            ArtifactError: the remote cannot be used.
        """

    def replace(self, name: str, key: str, history: bytes, tag: str | None) -> bool:
        """Write the history of an alias that now points to `key`, which the remote then holds.

        Args:
            name: the alias.
            key: key of the artifact that it points to.
            history: the complete history.
            tag: tag of the history that this one continues, None for a new alias.

        Returns:
            False if another machine has written a history meanwhile. Nothing is changed then.

        Raises:
            ArtifactError: the remote cannot be used.
        """


class Aliases:
    """The aliases of a store, in the folder `folder`. The folder is created on the first change.

    Args:
        folder: the folder.
        shared: the histories in the remote, None without one. They are read once, on the first use of this object;
            a change reads the history that it changes again.
    """

    def __init__(self, folder: Path, shared: SharedHistories | None = None) -> None:
        self._folder = folder
        self._shared = shared
        self._read: dict[str, bytes] | None = None

    def names(self) -> list[str]:
        """Return every alias that has a history, in alphabetical order.

        Raises:
            ArtifactError: the folder is not one, or holds a history whose name cannot be an alias.
        """
        check_folder(self._folder)
        paths = sorted(self._folder.glob("*.jsonl"))
        for path in paths:
            if not is_alias(path.stem):
                raise damaged_history(path.stem, str(path), "a file name that is not an alias")
        return sorted({*(path.stem for path in paths), *filter(is_alias, self._snapshot())})

    def history(self, name: str) -> list[Change]:
        """Return every change of an alias, oldest first; empty if there is no such alias.

        Raises:
            ArtifactError: the name is not a valid alias, or its file is damaged.
        """
        path = self._path(name)
        if (shared := self._snapshot().get(name)) is not None:
            return self._parsed_shared(path, shared)
        content = self._local(path)
        return [] if content is None else parsed_history(name, str(path), content)

    def check(self) -> None:
        """Read the history of every alias.

        Raises:
            ArtifactError: one is damaged.
        """
        for name in self.names():
            self.history(name)

    def current(self, name: str) -> Change | None:
        """Return the latest change of an alias, or None if there is no such alias."""
        return next(iter(self.history(name)[-1:]), None)

    def of(self, key: str) -> list[str]:
        """Return the current aliases of an artifact."""
        return [name for name in self.names() if (current := self.current(name)) and current.key == key]

    def before(self, name: str) -> Change | None:
        """Return the promotion that a rollback would restore, or None if there is none."""
        return next(iter((standing_promotions(self.history(name)) or [])[-2:-1]), None)

    def promote(
        self, name: str, kind: str, key: str, *, by: str, reason: str, in_place_of: str | Literal["any"] | None = "any"
    ) -> Change:
        """Give an alias to an artifact. Nothing changes if the artifact already has it.

        Args:
            name: the alias.
            kind, key: the artifact.
            by, reason: see `Change`.
            in_place_of: key that the alias must currently point to, None if it must be unset, `any` for no check.

        Returns:
            The new change, or the earlier one by which the artifact already has the alias.

        Raises:
            ArtifactError: the name is not a valid alias, it points to another artifact than `in_place_of`, or the store
                cannot be written.
        """
        # A run that changes nothing works in a store that it may only read.
        if (current := self.current(name)) is not None and current.key == key:
            return current

        def decide(history: Sequence[Change]) -> Change:
            current = history[-1] if history else None
            if current is not None and current.key == key:
                return current
            previous = None if current is None else current.key
            if in_place_of not in ("any", previous):
                raise _changed_meanwhile(name)
            return change_now("promote", kind, key, previous, by, reason)

        return self._change(name, decide)

    def rollback(self, name: str, expected: Change, *, by: str, reason: str) -> Change:
        """Move an alias back to the artifact of `expected`, the result of an earlier call of `before`.

        Raises:
            ArtifactError: the alias was changed in the meantime.
        """

        def decide(history: Sequence[Change]) -> Change:
            if (standing_promotions(history) or [])[-2:-1] != [expected]:
                raise _changed_meanwhile(name)
            return change_now("rollback", expected.kind, expected.key, history[-1].key, by, reason)

        return self._change(name, decide)

    def share(self) -> None:
        """Give the remote the aliases that only this store has.

        Raises:
            ArtifactError: the remote cannot be used, or has another history of an alias.
        """
        for name in self.names():
            history = self.history(name)
            if self._shared is None or name in self._snapshot():
                continue
            if not self._shared.replace(name, history[-1].key, written_history(history), None):
                raise _changed_meanwhile(name)

    def _path(self, name: str) -> Path:
        if not is_alias(name):
            raise ArtifactError(
                "this is not a valid alias",
                got=name,
                expected="lower-case words joined by . - or _, such as production, but not `latest`, `base` or a key",
            )
        return self._folder / f"{name}.jsonl"

    def _local(self, path: Path) -> bytes | None:
        """Return the content of the file of a history, or None if there is none."""
        check_folder(self._folder)
        if (found := described(path)) not in (None, "a file"):
            raise damaged_history(path.stem, str(path), str(found))
        try:
            return read_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise damaged_history(path.stem, str(path), str(error)) from error

    def _snapshot(self) -> dict[str, bytes]:
        """Return the histories in the remote, read once. Copies of them are kept in the files."""
        if self._shared is None:
            return {}
        if self._read is None:
            found = self._shared.read()
            self._read = found or {}
            for name, content in self._read.items():
                path = self._folder / f"{name}.jsonl"
                if is_alias(name) and content != self._local(path):
                    self._parsed_shared(path, content)
                    with suppress(OSError):  # a store that may only be read
                        self._write(path, content)
        return self._read

    def _parsed_shared(self, path: Path, content: bytes) -> list[Change]:
        """Return the changes of a history in the remote, which must go on from the one in this store.

        Raises:
            ArtifactError: it is damaged, or does not.
        """
        assert self._shared is not None
        history = parsed_history(path.stem, self._shared.place(path.stem), content)
        check_continues(path, self._local(path), content)
        return history

    def _change(self, name: str, decide: Callable[[Sequence[Change]], Change]) -> Change:
        """Add what `decide` returns to a history, unless it is already its last change."""
        path = self._path(name)
        with self._locked():
            while True:
                tag = None
                if self._shared is None:
                    history = self.history(name)
                elif (there := self._shared.read_one(name)) is not None:
                    history, tag = self._parsed_shared(path, there[0]), there[1]
                else:  # an alias that only this store has
                    content = self._local(path)
                    history = [] if content is None else parsed_history(name, str(path), content)
                change = decide(history)
                if history and change is history[-1]:
                    return change
                written = written_history([*history, change])
                if self._shared is None or self._shared.replace(name, change.key, written, tag):
                    break
            with explain_unwritable(self._folder.parent):
                self._write(path, written)
            if self._read is not None:
                self._read[name] = written
        return change

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with explain_unwritable(self._folder.parent):
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self._folder / ".lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, path: Path, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)  # a link would be followed
        new.write_bytes(content)
        fsync(new)
        new.replace(path)
        fsync(self._folder)


def _changed_meanwhile(name: str) -> ArtifactError:
    return ArtifactError(
        "the alias was changed by another user or run in the meantime",
        where=name,
        do="Check it with `align artifacts list`, and try again",
    )
