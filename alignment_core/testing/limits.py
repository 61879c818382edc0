"""Guard the kit against plugins that never return and that print."""

from __future__ import annotations

import io
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import FrameType

CALL_SECONDS = 60.0
"""Most seconds of one call of a plugin's method. On the tiny model it takes milliseconds."""
CHECK_SECONDS = 300.0
"""Most seconds of a check that calls many methods."""


class TookTooLong(BaseException):
    """Raised in the middle of a plugin's code. Not an `Exception`, which that code may catch."""


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Interrupt the block after some seconds.

    Only in the main thread of a system with alarm signals. Elsewhere there is no limit.

    Raises:
        TookTooLong: the time is over. Its text says what took too long.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"{what} has not returned after {seconds:g} seconds")

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, interrupt)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # A test runner may have set an alarm of its own.
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 0.01) if left else 0)
        signal.signal(signal.SIGALRM, before)


class Overheard(io.StringIO):
    """What a plugin printed. It is shown on stderr as well, so that stdout holds only the kit's results."""

    def write(self, text: str) -> int:
        sys.stderr.write(text)
        return super().write(text)

    def first_line(self) -> str:
        """Return the first line that is not blank, or an empty text."""
        return next((line.strip() for line in self.getvalue().splitlines() if line.strip()), "")


@contextmanager
def overhearing() -> Iterator[Overheard]:
    """Collect what the block prints."""
    with redirect_stdout(Overheard()) as heard:
        yield heard
