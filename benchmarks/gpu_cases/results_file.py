"""The file of results: one JSON line per case, appended as soon as the case is done."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class ResultsFile:
    """The results in a folder.

    Attributes:
        path: `results.jsonl` in the folder.
        torn: lines of the file that are no JSON objects, for example because the machine stopped while one was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.torn = folder, folder / "results.jsonl", 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from adding results.

        Raises:
            BlockingIOError: another one is doing so.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def read(self) -> list[dict[str, Any]]:
        """Return the newest line of each case and device, in the order in which they were first written."""
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        self.torn = 0
        text = self.path.read_bytes().decode(errors="replace") if self.path.exists() else ""
        for line in filter(str.strip, text.split("\n")):
            try:
                found = json.loads(line)
                key = (found["case"], found["device"])
            except (ValueError, KeyError, TypeError):
                self.torn += 1
                continue
            newest[key] = found
        return list(newest.values())

    def append(self, result: Mapping[str, Any]) -> None:
        """Add a line, also if the last one is incomplete."""
        line = json.dumps(result).encode() + b"\n"
        with self.path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
