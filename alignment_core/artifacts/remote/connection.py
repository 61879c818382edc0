"""Which remote a local store belongs to, and what is still to be pushed there.

    <store>/.remote/address          address of the remote
    <store>/.remote/pending/<key>    the key was built, or is being built, and is not in the remote yet

The first run whose settings name a remote writes the address. From then on, every command with this store knows it.
"""

from __future__ import annotations

from pathlib import Path

from alignment_core.addresses import hide_secrets
from alignment_core.artifacts.files import explain_unwritable, fsync, read_file
from alignment_core.artifacts.layout import REMOTE
from alignment_core.artifacts.remote.address import folder_of, open_objects
from alignment_core.artifacts.remote.remote import Remote
from alignment_core.config.remote_address import check_remote
from alignment_core.errors import ArtifactError

ADDRESS, PENDING = "address", "pending"


def recorded_address(root: Path) -> str | None:
    """Return the address of the remote that the store in `root` belongs to, or None."""
    try:
        address = read_file(root / REMOTE / ADDRESS).decode().strip()
        return check_remote(address) if address else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ArtifactError(
            "it cannot be read which remote the store belongs to",
            where=str(root / REMOTE / ADDRESS),
            got=str(error),
            do="Write the address of the remote into this file",
        ) from error


def remote_of(root: Path, address: str | None) -> Remote | None:
    """Return the remote of the store in `root`.

    Args:
        root: folder of the local store.
        address: the remote in the settings, None if they name none.

    Raises:
        ArtifactError: the store belongs to another remote, or the remote cannot be opened.
    """
    recorded = recorded_address(root)
    if address is not None and recorded is not None and address.rstrip("/") != recorded.rstrip("/"):
        raise ArtifactError(
            "this store belongs to another remote",
            where=str(root),
            got=address,
            expected=recorded,
            do=f"Choose another folder in `store`, or remove {root / REMOTE} to leave the old remote",
        )
    found = address or recorded
    if found is not None:
        _check_apart(root, found)
    return None if found is None else Remote(open_objects(found))


def _check_apart(root: Path, address: str) -> None:
    """Check that a store and a remote in a folder do not overlap, where each would take the other's files for its own.

    Raises:
        ArtifactError: they do.
    """
    if (folder := folder_of(address)) is None:
        return
    store, remote = root.resolve(), folder.resolve()
    if store.is_relative_to(remote) or remote.is_relative_to(store):
        raise ArtifactError(
            "the store and its remote overlap",
            where=str(root),
            got=address,
            expected="two folders, none of them inside the other",
            do="Choose another folder in `store` or `remote`",
        )


def record_address(root: Path, address: str) -> None:
    """Record the remote that the store in `root` belongs to."""
    folder = root / REMOTE
    with explain_unwritable(root):
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{ADDRESS}.new"
        new.write_text(f"{hide_secrets(address)}\n", encoding="utf-8")
        fsync(new)
        new.replace(folder / ADDRESS)


class Pending:
    """The keys in a local store that are still to be pushed."""

    def __init__(self, root: Path) -> None:
        self._root, self._folder = root, root / REMOTE / PENDING

    def add(self, key: str) -> None:
        """Note a key before it is published in the local store, so that it is not forgotten after a kill."""
        with explain_unwritable(self._root):
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / key).touch()

    def remove(self, key: str) -> None:
        """Forget a key: the remote has it."""
        (self._folder / key).unlink(missing_ok=True)

    def noted(self) -> list[str]:
        """Return the keys that are noted."""
        return sorted(path.name for path in self._folder.glob("*"))
