"""Keep what Prefect and libraries log from tearing the view."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment_flows.terminal.run_view import RunView

SHOWN = {"shown": True}
"""`extra` of a log record that the view shows by itself."""


@contextmanager
def shown_in(view: RunView) -> Iterator[None]:
    """Show warnings and errors of every log in the view, and nothing else of what Prefect prints to the terminal.

    Prefect's server gets all of the log.
    """
    from prefect.logging.configuration import ensure_logging_setup
    from prefect.logging.handlers import PrefectConsoleHandler

    ensure_logging_setup()  # otherwise a flow that is imported inside would add the handlers after this
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, PrefectConsoleHandler)]
    divert = _Divert(view)
    for handler in handlers:
        handler.addFilter(divert)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(divert)


class _Divert(logging.Filter):
    def __init__(self, view: RunView) -> None:
        super().__init__()
        self._view = view
        self._format = logging.Formatter("%(levelname)s: %(message)s")

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING and not getattr(record, "shown", False) and not _of_engine(record):
            self._view.line(self._format.format(record))
        return False


def _of_engine(record: logging.LogRecord) -> bool:
    """Return whether Prefect tells how a run ended. The command says so itself, in one paragraph."""
    import prefect

    of_a_run = record.name.startswith(("prefect.flow_runs", "prefect.task_runs"))
    return of_a_run and Path(prefect.__file__).parent in Path(record.pathname).parents
