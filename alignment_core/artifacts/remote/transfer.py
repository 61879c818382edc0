"""Progress of a large transfer, as lines of the log."""

from __future__ import annotations

import time

from alignment_core.progress import Progress, Stopped

LOG_SECONDS = 10.0
WORTH_A_LINE = 64 * 2**20


class Transfer:
    """Counts the bytes of a transfer, logs them now and then, and ends it if the stage is asked to stop.

    Args:
        what: what is done, such as `pushing sft/0123`.
        total: number of bytes.
        progress: receives the lines.
    """

    def __init__(self, what: str, total: int, progress: Progress) -> None:
        self._what, self._total, self._progress = what, total, progress
        self._done = 0
        self._next = time.monotonic() + LOG_SECONDS
        if total >= WORTH_A_LINE:
            progress.log(f"{what}: {_mebibytes(total)} MiB")

    def __call__(self, count: int) -> None:
        if self._progress.stopping:
            raise Stopped
        self._done += count
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LOG_SECONDS
            self._progress.log(f"{self._what}: {_mebibytes(self._done)} of {_mebibytes(self._total)} MiB")


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f}"
