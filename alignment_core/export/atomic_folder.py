"""Write a folder atomically: it is either complete or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment_core.artifacts.files import fsync, try_lock
from alignment_core.errors import ConfigError


def check_absent(place: Path, what: str = "folder") -> None:
    """Check that the path does not exist.

    Args:
        place: the path.
        what: what is to be written there.

    Raises:
        ConfigError: the path exists.
    """
    if place.exists() or place.is_symlink():
        raise ConfigError(f"the {what} already exists", where="--out", got=place, do=f"Choose a new {what}")


@contextmanager
def atomic_folder(place: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `place` if the block succeeds and is deleted if it fails.

    The folder is created next to `place`. The next export to the same place clears the files of a killed one.

    Raises:
        ConfigError: `place` exists or cannot be written, or another export is writing to it.
    """
    check_absent(place)
    filling = place.with_name(f".{place.name}.exporting")
    try:
        filling.mkdir(parents=True, exist_ok=True)
        lock = os.open(filling, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError("the folder cannot be created", where="--out", got=f"{place}: {error.strerror}") from error
    try:
        if not try_lock(lock):
            raise ConfigError("another export is writing to this folder", where="--out", got=place)
        _clear(filling)
        try:
            yield filling
            _sync(filling)
            check_absent(place)
            filling.rename(place)
            fsync(place.parent)
        except BaseException:
            shutil.rmtree(filling, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        fsync(path)
