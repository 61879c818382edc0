"""What a remote must offer: named objects, and writes that fail if somebody else wrote first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from alignment_core.errors import ArtifactError

Watch = Callable[[int], None]
"""Is told the number of bytes since its last call. It may raise `Stopped`."""


class Conflict(Exception):
    """An object is no longer what a conditional write expected."""


class Unreachable(ArtifactError):
    """The remote did not answer, or refused the request."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(
            "the remote of the store cannot be used",
            where=address,
            got=reason,
            do="Check the address, the network and the credentials. Nothing in the local store is lost",
        )


@dataclass(frozen=True)
class Stored:
    """One object in a list.

    Attributes:
        name: its name.
        size: its size in bytes.
        modified: when it was written, in seconds by the clock of the server that keeps it.
    """

    name: str
    size: int
    modified: float


class Objects(Protocol):
    """Objects by name. Names are relative paths with `/`.

    All methods raise `Unreachable` if the remote cannot be used. They have tried again before that.
    """

    address: str
    """Address of the remote, for messages."""

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return the content of a small object and its tag, or None if there is no such object."""

    def write(self, name: str, content: bytes, replacing: str | None) -> str:
        """Write a small object at once if nobody else wrote it meanwhile, and return its tag.

        Args:
            name: the object.
            content: its content. It must not be the content of another writer: it tells who wrote.
            replacing: the tag that the object must have; None: it must not exist.

        Raises:
            Conflict: the object has another tag, or exists, or does not.
        """

    def upload(self, name: str, path: Path, watch: Watch) -> None:
        """Write an object from a file. It appears at once, when it is complete, in place of an earlier one."""

    def fetch(self, name: str, path: Path | None, watch: Watch) -> str:
        """Read an object, and write it to a new file unless `path` is None. Return the SHA-256 of what was read.

        Raises:
            FileNotFoundError: there is no such object.
        """

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield the objects whose name starts with `prefix`, a folder with its final `/`."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects, as far as they exist."""

    def now(self) -> float:
        """Return the time in seconds by the clock of `Stored.modified`."""
