"""Names for artifacts, such as `production`, each with a history that is only ever added to.

    <store>/.aliases/<name>.jsonl     one line per change, the newest last
    <store>/.aliases/.lock            held (flock) by the process that makes a change

A change writes the whole history beside the old one and takes its place by a rename: whoever reads, and whatever dies,
sees the name either before the change or after it.
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

from alignment_core.artifacts.files import fsync, told_if_unwritable
from alignment_core.errors import ArtifactError

NAME = re.compile(r"[a-z][a-z0-9]*([._-][a-z0-9]+)*")
PRODUCTION, CANDIDATE = "production", "candidate"


class Change(BaseModel):
    """One line of a name's history.

    Attributes:
        action: `promote` gave the name to another artifact, `rollback` gave it back to the one before.
        kind: the stage that made the artifact which the name means from here on.
        key: that artifact's key.
        previous: key that the name meant until then; None at first.
        time: when, ISO 8601, UTC.
        by: which person or run did it.
        reason: why: a gate's verdict, or a person's words.
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
    """The names of a store, in the folder `folder`, which is made on the first change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Every name that was ever given, in alphabetical order."""
        return sorted(path.stem for path in self._folder.glob("*.jsonl"))

    def history(self, name: str) -> list[Change]:
        """Every change of a name, the oldest first; empty where it was never given.

        Raises:
            ArtifactError: the name cannot be one, or its file is damaged.
        """
        path = self._path(name)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        try:
            return [Change.model_validate_json(line) for line in lines]
        except ValidationError as error:
            raise ArtifactError(
                f"the history of the alias `{name}` is damaged",
                where=str(path),
                got=error.errors()[0]["msg"],
                do="Mend the line, or move the file away and promote again",
            ) from error

    def current(self, name: str) -> Change | None:
        """The change that made the name mean what it means now; None where it was never given."""
        return next(iter(self.history(name)[-1:]), None)

    def of(self, key: str) -> list[str]:
        """The names that an artifact has now."""
        return [name for name in self.names() if (current := self.current(name)) and current.key == key]

    def before(self, name: str) -> Change | None:
        """The promotion that `rollback` would go back to; None where there is none."""
        return next(iter(_standing(self.history(name))[-2:-1]), None)

    def promote(
        self, name: str, kind: str, key: str, *, by: str, reason: str, in_place_of: str | Literal["any"] | None = "any"
    ) -> Change:
        """Give the name to an artifact; nothing changes where it has it already.

        Args:
            name: the name.
            kind, key: the artifact.
            by, reason: see `Change`.
            in_place_of: key that the name must mean until now, None if none; `any`: whatever it means.

        Returns:
            The change, or the one by which the artifact has the name already.

        Raises:
            ArtifactError: the name cannot be one or means another artifact, or the store cannot be written.
        """
        with self._changing(name) as history:
            current = history[-1] if history else None
            if current is not None and current.key == key:
                return current
            previous = None if current is None else current.key
            if in_place_of not in ("any", previous):
                raise _changed_meanwhile(name)
            return self._add(name, history, _now("promote", kind, key, previous, by, reason))

    def rollback(self, name: str, expected: Change, *, by: str, reason: str) -> Change:
        """Give the name back to the artifact of `expected`, which `before` had named.

        Raises:
            ArtifactError: somebody else changed the name meanwhile.
        """
        with self._changing(name) as history:
            if _standing(history)[-2:-1] != [expected]:
                raise _changed_meanwhile(name)
            change = _now("rollback", expected.kind, expected.key, history[-1].key, by, reason)
            return self._add(name, history, change)

    def _path(self, name: str) -> Path:
        # A name of digits and a to f could be the beginning of a key.
        if not NAME.fullmatch(name) or name == "latest" or re.fullmatch(r"[0-9a-f]+", name):
            raise ArtifactError(
                "this cannot be the name of an alias",
                got=name,
                expected="lower-case words joined by `.`, `-` or `_`, such as production; not `latest`, not a key",
            )
        return self._folder / f"{name}.jsonl"

    @contextmanager
    def _changing(self, name: str) -> Iterator[list[Change]]:
        """The history of a name that nobody else changes meanwhile."""
        self._path(name)
        with told_if_unwritable(self._folder.parent):
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.history(name)
        finally:
            os.close(lock)

    def _add(self, name: str, history: Sequence[Change], change: Change) -> Change:
        path = self._path(name)
        new = path.with_suffix(".new")
        with told_if_unwritable(self._folder.parent):
            new.write_text("".join(f"{line.model_dump_json()}\n" for line in (*history, change)), encoding="utf-8")
            fsync(new)
            new.replace(path)
            fsync(self._folder)
        return change


def _changed_meanwhile(name: str) -> ArtifactError:
    return ArtifactError(
        "the alias was changed by somebody else meanwhile", where=name, do="Look at it again: `align artifacts list`"
    )


def _now(
    action: Literal["promote", "rollback"], kind: str, key: str, previous: str | None, by: str, reason: str
) -> Change:
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return Change(action=action, kind=kind, key=key, previous=previous, time=time, by=by, reason=reason)


def _standing(history: Sequence[Change]) -> list[Change]:
    """The promotions that were not rolled back, the newest last."""
    standing: list[Change] = []
    for change in history:
        if change.action == "rollback":
            standing.pop()
        else:
            standing.append(change)
    return standing
