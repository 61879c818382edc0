"""Show the progress of a stage in the terminal, in the log and on the page of the run in Prefect."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from alignment_flows.terminal.prefect_lines import SHOWN
from alignment_flows.terminal.run_view import current_view, name_of

LOG_SECONDS = 10.0
PAGE_SECONDS = 3.0


class StageProgress:
    """Shows the progress of one stage. Implements `alignment_core.progress.Progress`.

    The log goes to Prefect, and in a worker to stderr as well. A command shows the stage in its view of the run.
    """

    stopping = False

    def __init__(self, label: str) -> None:
        self._name = name_of(label)
        self._view = current_view()
        self._logger = get_run_logger()
        self._newest = self._last_logged = ""
        self._logged = self._shown = time.monotonic()
        self._percent = 0.0
        self._first: tuple[float, int] | None = None
        self._page: UUID | None = None
        self._began = self._logged
        if self._view is not None:
            self._view.begin(label)

    def __enter__(self) -> "StageProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._view is not None and kind is not None:
            how = "failed" if issubclass(kind, Exception) else "stopped"
            self._view.end(f"{how} after {time.monotonic() - self._began:.0f} s", well=False)
        self._tell()
        if self._page is not None and kind is None:
            self._show()

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        now = time.monotonic()
        # A stage that resumes from a checkpoint does not start at 0.
        self._first = self._first or (now, done)
        values = "  ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items())
        started, before = self._first
        left = _time_left(done - before, total - done, now - started)
        self._newest = f"{done}/{total}{f', {left}' if left else ''}  {values}".rstrip()
        self._percent = 100 * done / max(total, 1)
        if self._view is not None:
            self._view.step(done, total, left, metrics or {})
        self._refresh(now)

    def show(self, percent: float, description: str) -> None:
        """Show what the page of another flow run shows of the same stage."""
        newest = description.removeprefix(self._name).strip()
        if (percent, newest) == (self._percent, self._newest):
            return
        self._percent, self._newest = percent, newest
        if self._view is not None:
            self._view.step(round(percent), 100, "", {})
        self._refresh(time.monotonic())

    def _refresh(self, now: float) -> None:
        if now - self._logged > LOG_SECONDS:
            self._logged = now
            self._tell()
        if now - self._shown > PAGE_SECONDS:
            self._shown = now
            self._show()

    def log(self, message: str) -> None:
        if self._view is not None:
            self._view.log(message)
        self._tell()
        self._logger.info(message)

    def warn(self, message: str) -> None:
        if self._view is not None:
            self._view.log(f"warning: {message}")
        self._logger.warning(message, extra=SHOWN if self._view is not None else None)

    def finish(self, outcome: str) -> None:
        """Show how the stage ended."""
        if self._view is not None:
            self._view.end(outcome)
        self._tell()
        self._logger.info(outcome)

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
    return f"{remaining / 60:.0f} min left" if remaining > 90 else f"{remaining:.0f} s left"
