"""Aliases of artifacts, such as `production`, each with an append-only history.

    <store>/.aliases/<name>.jsonl     one line per change, newest last
    <store>/.aliases/.lock            locked (flock) by the process that makes a change

A change writes the complete history to a new file, which then replaces the old one by a rename. Readers see the alias
either before or after the change, even if the writer is killed.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from alignment_core.artifacts.files import explain_unwritable, fsync, open_lock
from alignment_core.artifacts.layout import check_folder, described
from alignment_core.errors import ArtifactError

NAME = re.compile(r"[a-z][a-z0-9]*([._-][a-z0-9]+)*")
PRODUCTION, CANDIDATE = "production", "candidate"
RESERVED = ("latest", "base")
"""Names of models that are not aliases: the newest one, and the base model of the settings."""


class Change(BaseModel):
    """One line of an alias history.

    Attributes:
        action: `promote` moved the alias to another artifact, `rollback` moved it back to the previous one.
        kind: kind of the artifact that the alias points to after the change.
        key: key of that artifact.
        previous: key of the artifact that the alias pointed to before; None for the first change.
        time: time of the change, ISO 8601, UTC.
        by: the person or run that made the change.
        reason: the reasons of the gate, or a text entered by a person.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["promote", "rollback"]
    kind: str
    key: str
    previous: str | None
    time: str
    by: str
    reason: str


class Aliases:
    """The aliases of a store, in the folder `folder`. The folder is created on the first change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Return every alias that has a history, in alphabetical order.

        Raises:
            ArtifactError: the folder is not one, or holds a history whose name cannot be an alias.
        """
        check_folder(self._folder)
        paths = sorted(self._folder.glob("*.jsonl"))
        for path in paths:
            if not is_alias(path.stem):
                raise _damaged(path, "a file name that is not an alias")
        return [path.stem for path in paths]

    def history(self, name: str) -> list[Change]:
        """Return every change of an alias, oldest first; empty if there is no such alias.

        Raises:
            ArtifactError: the name is not a valid alias, or its file is damaged.
        """
        path = self._path(name)
        check_folder(self._folder)
        if (found := described(path)) not in (None, "a file"):
            raise _damaged(path, str(found))
        try:
            history = [Change.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            return []
        except ValidationError as error:
            raise _damaged(path, error.errors()[0]["msg"]) from error
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(path, str(error)) from error
        if not history:
            raise _damaged(path, "an empty file")
        if _standing(history) is None:
            raise _damaged(path, "a rollback without an earlier promotion")
        return history

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
        return next(iter((_standing(self.history(name)) or [])[-2:-1]), None)

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
        with self._changing(name) as history:
            current = history[-1] if history else None
            if current is not None and current.key == key:
                return current
            previous = None if current is None else current.key
            if in_place_of not in ("any", previous):
                raise _changed_meanwhile(name)
            return self._add(name, history, _now("promote", kind, key, previous, by, reason))

    def rollback(self, name: str, expected: Change, *, by: str, reason: str) -> Change:
        """Move an alias back to the artifact of `expected`, the result of an earlier call of `before`.

        Raises:
            ArtifactError: the alias was changed in the meantime.
        """
        with self._changing(name) as history:
            if (_standing(history) or [])[-2:-1] != [expected]:
                raise _changed_meanwhile(name)
            change = _now("rollback", expected.kind, expected.key, history[-1].key, by, reason)
            return self._add(name, history, change)

    def _path(self, name: str) -> Path:
        if not is_alias(name):
            raise ArtifactError(
                "this is not a valid alias",
                got=name,
                expected="lower-case words joined by . - or _, such as production, but not `latest`, `base` or a key",
            )
        return self._folder / f"{name}.jsonl"

    @contextmanager
    def _changing(self, name: str) -> Iterator[list[Change]]:
        """Lock the aliases and yield the history of one."""
        self._path(name)
        with explain_unwritable(self._folder.parent):
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self._folder / ".lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.history(name)
        finally:
            os.close(lock)

    def _add(self, name: str, history: Sequence[Change], change: Change) -> Change:
        path = self._path(name)
        new = path.with_suffix(".new")
        with explain_unwritable(self._folder.parent):
            new.unlink(missing_ok=True)  # a link would be followed
            new.write_text("".join(f"{line.model_dump_json()}\n" for line in (*history, change)), encoding="utf-8")
            fsync(new)
            new.replace(path)
            fsync(self._folder)
        return change


def is_alias(name: str) -> bool:
    """Return whether an alias may have this name."""
    # A name of hexadecimal digits could be the prefix of a key.
    return bool(NAME.fullmatch(name)) and name not in RESERVED and not re.fullmatch(r"[0-9a-f]+", name)


def _damaged(path: Path, got: str) -> ArtifactError:
    return ArtifactError(
        f"the history of the alias `{path.stem}` is damaged",
        where=str(path),
        got=got,
        do="Fix the line, or move the file away and promote again",
    )


def _changed_meanwhile(name: str) -> ArtifactError:
    return ArtifactError(
        "the alias was changed by another user or run in the meantime",
        where=name,
        do="Check it with `align artifacts list`, and try again",
    )


def _now(
    action: Literal["promote", "rollback"], kind: str, key: str, previous: str | None, by: str, reason: str
) -> Change:
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return Change(action=action, kind=kind, key=key, previous=previous, time=time, by=by, reason=reason)


def _standing(history: Sequence[Change]) -> list[Change] | None:
    """Return the promotions that were not rolled back, newest last. None: a rollback undoes no promotion."""
    standing: list[Change] = []
    for change in history:
        if change.action == "rollback":
            if not standing:
                return None
            standing.pop()
        else:
            standing.append(change)
    return standing
