"""Checkpoints of running builds in the remote, so that another machine can go on if this one is lost.

    checkpoints/<key>/newest.json               name and files of the newest checkpoint, written last
    checkpoints/<key>/<name>.<writer>/<file>    its files

Only complete checkpoints are pushed: folders `checkpoint-<n>` of a stage that trains. A higher number is newer.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from uuid import uuid4

from alignment_core.artifacts.digest import hash_file
from alignment_core.artifacts.remote.objects import Conflict, Objects, Unreachable
from alignment_core.artifacts.remote.transfer import Transfer
from alignment_core.progress import Progress, Stopped

PREFIX = "checkpoints/"
NEWEST = "newest.json"


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
    record = json.loads(there[0])
    name, place = str(record["name"]), str(record["place"])
    here = _newest(folder)
    if (here is not None and here.name >= name) or PurePosixPath(name).name != name:
        return
    partial = folder / f".{name}.pulled"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    watch = Transfer(f"pulling {name} of {key[:12]}", sum(file["size"] for file in record["files"].values()), progress)
    for file, facts in record["files"].items():
        try:
            intact = objects.fetch(place + file, partial / Path(file).name, watch) == facts["sha256"]
        except FileNotFoundError:
            intact = False
        if not intact:
            shutil.rmtree(partial)
            progress.warn(f"{name} of {key} in the remote is damaged and is not used")
            return
    partial.rename(folder / name)
    progress.log(f"going on from {name}, which another machine has pushed")


def remove_checkpoints(objects: Objects, key: str) -> None:
    """Remove the checkpoints of a key, whose artifact is complete."""
    names = [stored.name for stored in objects.list(f"{PREFIX}{key}/")]
    objects.delete(sorted(names, key=lambda name: not name.endswith(NEWEST)))


def _push(objects: Objects, key: str, checkpoint: Path, ended: Callable[[], bool], progress: Progress) -> None:
    before = objects.read(f"{PREFIX}{key}/{NEWEST}")
    place = f"{PREFIX}{key}/{checkpoint.name}.{uuid4().hex[:8]}/"
    files = {
        path.name: {"sha256": hash_file(path), "size": path.stat().st_size} for path in sorted(checkpoint.iterdir())
    }

    def watch(_: int) -> None:
        if ended():
            raise Stopped

    for name in files:
        objects.upload(place + name, checkpoint / name, watch)
    record = json.dumps({"name": checkpoint.name, "place": place, "files": files}).encode()
    objects.write(f"{PREFIX}{key}/{NEWEST}", record, None if before is None else before[1])
    if before is not None:
        old = str(json.loads(before[0])["place"])
        objects.delete([stored.name for stored in objects.list(old)])
    progress.log(f"pushed {checkpoint.name} of {key[:12]}")


def _newest(folder: Path) -> Path | None:
    return max(folder.glob("checkpoint-*"), default=None)
