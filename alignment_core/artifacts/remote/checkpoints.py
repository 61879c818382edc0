"""Checkpoints of running builds in the remote, so that another machine can go on if this one is lost.

    checkpoints/<key>/newest.json               name and files of the newest checkpoint, written last
    checkpoints/<key>/<name>.<writer>/<file>    its files

Only complete checkpoints are pushed: folders `checkpoint-<n>` of a stage that trains. A higher number is newer.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignment_core.artifacts.digest import hash_file
from alignment_core.artifacts.remote.objects import Conflict, Objects, Unreachable
from alignment_core.artifacts.remote.transfer import Transfer
from alignment_core.progress import Progress, Stopped

PREFIX = "checkpoints/"
NEWEST = "newest.json"


class _File(BaseModel):
    """A file of a checkpoint: its checksum, and its size in bytes."""

    sha256: str
    size: int


class _Newest(BaseModel):
    """The content of `newest.json`. `place` is the prefix of the files, whose names have no folder."""

    model_config = ConfigDict(strict=True)

    name: str = Field(pattern=r"^checkpoint-\d+$")
    place: str = Field(pattern=rf"^{PREFIX}[^/]+/[^/]+/$")
    files: dict[Annotated[str, Field(pattern=r"^[^/]*[^/.][^/]*$")], _File]


def _recorded(content: bytes) -> _Newest | None:
    """Return what `newest.json` says, or None if it is damaged."""
    try:
        return _Newest.model_validate_json(content)
    except ValidationError:
        return None


@contextmanager
def pushing(objects: Objects, key: str, folder: Path, every: float, progress: Progress) -> Iterator[None]:
    """Push the newest checkpoint in a folder every so many seconds during the block, while there is a newer one.

    A failure is logged and costs nothing but that checkpoint.
    """
    ended = threading.Event()

    def push_until_ended() -> None:
        done = None
        while not ended.wait(every):
            newest = _newest(folder)
            if newest is None or newest.name == done:
                continue
            try:
                _push(objects, key, newest, ended.is_set, progress)
                done = newest.name
            except Stopped:
                return
            except Conflict:
                progress.log(f"another machine has pushed a checkpoint of {key} meanwhile")
            except (Unreachable, OSError) as error:  # OSError: the stage has removed this checkpoint
                progress.log(f"{newest.name} was not pushed: {error}")

    thread = threading.Thread(target=push_until_ended, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def pull_checkpoint(objects: Objects, key: str, folder: Path, progress: Progress) -> None:
    """Download the newest checkpoint of a key into its folder of checkpoints, if it is newer than those there.

    Raises:
        Unreachable: the remote cannot be used.
    """
    there = objects.read(f"{PREFIX}{key}/{NEWEST}")
    if there is None:
        return
    record = _recorded(there[0])
    if record is None:
        progress.warn(f"the checkpoint of {key} in the remote is damaged and is not used")
        return
    here = _newest(folder)
    if here is not None and here.name >= record.name:
        return
    partial = folder / f".{record.name}.pulled"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    total = sum(file.size for file in record.files.values())
    watch = Transfer(f"pulling {record.name} of {key[:12]}", total, progress)
    for file, facts in record.files.items():
        try:
            intact = objects.fetch(record.place + file, partial / file, watch) == facts.sha256
        except FileNotFoundError:
            intact = False
        if not intact:
            shutil.rmtree(partial)
            progress.warn(f"{record.name} of {key} in the remote is damaged and is not used")
            return
    partial.rename(folder / record.name)
    progress.log(f"going on from {record.name}, which another machine has pushed")


def remove_checkpoints(objects: Objects, key: str) -> None:
    """Remove the checkpoints of a key, whose artifact is complete."""
    names = [stored.name for stored in objects.list(f"{PREFIX}{key}/")]
    objects.delete(sorted(names, key=lambda name: not name.endswith(NEWEST)))


def _push(objects: Objects, key: str, checkpoint: Path, ended: Callable[[], bool], progress: Progress) -> None:
    before = objects.read(f"{PREFIX}{key}/{NEWEST}")
    place = f"{PREFIX}{key}/{checkpoint.name}.{uuid4().hex[:8]}/"
    files = {
        path.name: _File(sha256=hash_file(path), size=path.stat().st_size) for path in sorted(checkpoint.iterdir())
    }

    def watch(_: int) -> None:
        if ended():
            raise Stopped

    for name in files:
        objects.upload(place + name, checkpoint / name, watch)
    record = _Newest(name=checkpoint.name, place=place, files=files)
    objects.write(f"{PREFIX}{key}/{NEWEST}", record.model_dump_json().encode(), None if before is None else before[1])
    if before is not None and (old := _recorded(before[0])) is not None:
        objects.delete([stored.name for stored in objects.list(old.place)])
    progress.log(f"pushed {checkpoint.name} of {key[:12]}")


def _newest(folder: Path) -> Path | None:
    return max(folder.glob("checkpoint-*"), default=None)
