"""Show the progress of a stage as a bar in the terminal, in the log and on the page of the run in Prefect."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_SECONDS = 10.0
PAGE_SECONDS = 3.0


class StageProgress:
    """Shows the progress of one stage. Implements `alignment_core.progress.Progress`.

    The log goes to Prefect. Prefect also prints it to stderr, except on a terminal, which shows the bar instead.
    """

    stopping = False

    def __init__(self, label: str) -> None:
        self._label = label
        self._name = label.partition(" · ")[0]
        self._logger = get_run_logger()
        self._newest = self._last_logged = ""
        self._logged = self._shown = time.monotonic()
        self._percent = 0.0
        self._first: tuple[float, int] | None = None
        self._page: UUID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[newest]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._row = self._bar.add_task(label, total=None, newest="")

    def __enter__(self) -> "StageProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._tell()
        if self._page is not None and kind is None:
            self._show()

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        now = time.monotonic()
        # A stage that resumes from a checkpoint does not start at 0.
        self._first = self._first or (now, done)
        values = "  ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items())
        started, before = self._first
        self._newest = f"{done}/{total}{_time_left(done - before, total - done, now - started)}  {values}".rstrip()
        self._percent = 100 * done / max(total, 1)
        self._bar.update(self._row, completed=done, total=total, newest=values)
        if now - self._logged > LOG_SECONDS:
            self._logged = now
            self._tell()
        if now - self._shown > PAGE_SECONDS:
            self._shown = now
            self._show()

    def log(self, message: str) -> None:
        self._print(message)
        self._tell()
        self._logger.info(message)

    def warn(self, message: str) -> None:
        self._print(f"warning: {message}")
        self._logger.warning(message)

    def _print(self, message: str) -> None:
        """Print a line above the bar, if there is a bar."""
        if not self._bar.disable:
            self._bar.console.print(f"{self._label}: {message}", highlight=False, markup=False)

    def _tell(self) -> None:
        """Log the newest step, unless it has been logged or no step is done.

        The line includes the stage's name, because one of Prefect's user interfaces does not show which task a line
        belongs to.
        """
        if self._newest != self._last_logged and self._percent > 0:
            self._last_logged = self._newest
            self._logger.info(f"{self._name} {self._newest}")

    def _show(self) -> None:
        with tolerate_server_outage():
            description = f"{self._name} {self._newest}"
            if self._page is None:
                self._page = cast(UUID, create_progress_artifact(self._percent, description=description))
            else:
                update_progress_artifact(self._page, self._percent, description=description)


@contextmanager
def tolerate_server_outage() -> Iterator[None]:
    """Log a warning instead of failing when the Prefect server does not answer, so that training continues."""
    try:
        yield
    except httpx.HTTPError as error:
        get_run_logger().warning("could not update the page in Prefect: %s", error)


def _time_left(done: int, left: int, seconds: float) -> str:
    """Format the time that `left` steps will take if `done` steps took `seconds`."""
    if done <= 0 or left <= 0 or seconds < 1:
        return ""
    remaining = seconds / done * left
    return f", {remaining / 60:.0f} min left" if remaining > 90 else f", {remaining:.0f} s left"
