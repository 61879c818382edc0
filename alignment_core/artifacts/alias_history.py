"""The history of an alias: its changes, and how they are read and written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from alignment_core.errors import ArtifactError

NAME = re.compile(r"[a-z][a-z0-9]*([._-][a-z0-9]+)*")
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


def parsed_history(name: str, place: str, content: bytes) -> list[Change]:
    """Return the changes in the content of the history of an alias, oldest first. `place` is where it was read.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        history = [Change.model_validate_json(line) for line in content.decode().splitlines()]
    except ValidationError as error:
        raise damaged_history(name, place, error.errors()[0]["msg"]) from error
    except UnicodeDecodeError as error:
        raise damaged_history(name, place, str(error)) from error
    if not history:
        raise damaged_history(name, place, "an empty file")
    if standing_promotions(history) is None:
        raise damaged_history(name, place, "a rollback without an earlier promotion")
    return history


def written_history(history: Sequence[Change]) -> bytes:
    """Return the content of a history."""
    return "".join(f"{line.model_dump_json()}\n" for line in history).encode()


def check_continues(path: Path, here: bytes | None, shared: bytes) -> None:
    """Check that the history in the remote goes on from the one in this store, if there is one.

    Raises:
        ArtifactError: it does not.
    """
    if here is not None and not shared.startswith(here):
        raise ArtifactError(
            f"the alias `{path.stem}` has another history in this store than in its remote",
            where=str(path),
            do="To go on with the remote's, move the file away. To keep both, choose another folder in `store`",
        )


def is_alias(name: str) -> bool:
    """Return whether a name can be an alias."""
    # A name of hexadecimal digits could be the prefix of a key.
    return bool(NAME.fullmatch(name)) and name not in RESERVED and not re.fullmatch(r"[0-9a-f]+", name)


def damaged_history(name: str, place: str, got: str) -> ArtifactError:
    """Return the error about a history that cannot be read."""
    remedy = "Fix the line, or move the file away and promote again"
    if "://" in place:
        remedy = f"Put a good copy in its place: stores that share the remote have one in `.aliases/{name}.jsonl`"
    return ArtifactError(f"the history of the alias `{name}` is damaged", where=place, got=got, do=remedy)


def change_now(
    action: Literal["promote", "rollback"], kind: str, key: str, previous: str | None, by: str, reason: str
) -> Change:
    """Return a change that is made now."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return Change(action=action, kind=kind, key=key, previous=previous, time=time, by=by, reason=reason)


def standing_promotions(history: Sequence[Change]) -> list[Change] | None:
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
