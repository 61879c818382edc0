"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment_core.artifacts.files import fsync, try_lock
from alignment_core.errors import ConfigError


def refuse_existing(place: Path) -> None:
    """
    Raises:
        ConfigError: something lies there already.
    """
    if place.exists() or place.is_symlink():
        raise ConfigError("the folder exists already", where="--out", got=place, do="Name a new one")


@contextmanager
def appearing(place: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `place` when the block ends well and is gone when it does not.

    It lies beside `place`. What a killed export left there is cleared by the next one to the same place.

    Raises:
        ConfigError: something lies at `place` already, it cannot be written, or another export is writing it.
    """
    refuse_existing(place)
    filling = place.with_name(f".{place.name}.exporting")
    try:
        filling.mkdir(parents=True, exist_ok=True)
        lock = os.open(filling, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError("the folder cannot be made", where="--out", got=f"{place}: {error.strerror}") from error
    try:
        if not try_lock(lock):
            raise ConfigError("another export is writing this folder", where="--out", got=place)
        _clear(filling)
        try:
            yield filling
            _sync(filling)
            refuse_existing(place)
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
