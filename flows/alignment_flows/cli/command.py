"""Options and error handling shared by the `align` commands."""

import errno
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec
from warnings import catch_warnings, simplefilter

import typer

from alignment_core.errors import AlignmentError, ConfigError
from alignment_flows.terminal.printable import printable_output

Parameters = ParamSpec("Parameters")

TRANSFERS = "alignment_core.artifacts.sharing"
"""Logger of what is pulled from the remote of a store outside of any stage."""
FULL, FIX = "Free some disk space", "Fix its permissions"
WHAT_TO_DO = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EROFS: FIX,
    errno.EACCES: FIX,
    errno.EPERM: FIX,
}
"""What to do about errors of the file system that a user can correct."""
INTERRUPTED = 130
"""Exit code after Ctrl-C (128 + SIGINT)."""

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="Config file (YAML) of the run.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override one setting, e.g. optimizer.beta=0.2. Can be repeated."),
]
Card = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Plan for a GPU with this much memory, e.g. 12gb. It need not be in this machine."
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="OURS=THEIRS", help="Map our column to yours, e.g. prompt=question. Can be repeated."
    ),
]
Desirable = Annotated[
    list[str] | None,
    typer.Option(metavar="LABEL", help="Label that means thumbs up; all others mean down. Can be repeated."),
]
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="An alias, a run's name, a key or its start, or `latest` (newest aligned)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, and everything else to stderr.")]


def named_columns(given: Iterable[str]) -> dict[str, str]:
    """Return the columns of the file by our names.

    Raises:
        ConfigError: one of them is not OURS=THEIRS.
    """
    pairs = [column.partition("=") for column in given]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            raise ConfigError("the column mapping is incomplete", where="--column", got=ours, expected="OURS=THEIRS")
    return {ours: theirs for ours, _, theirs in pairs}


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"align: {record.getMessage()}", err=True)


def command(run: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Wrap a command so that an error prints one paragraph to stderr and sets the exit code."""

    @wraps(run)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        with printable_output():
            _run_command(run, *args, **kwargs)

    return wrapper


def _run_command(run: Callable[Parameters, None], *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
    transfers = logging.getLogger(TRANSFERS)
    transfers.handlers, transfers.propagate = [_ToStderr()], False
    transfers.setLevel(logging.INFO)
    try:
        run(*args, **kwargs)
    except AlignmentError as error:
        typer.echo(f"align: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        do = WHAT_TO_DO.get(error.errno or 0)
        if do is None or (do == FIX and error.filename is None):  # without a file, another process was meant
            raise
        # What a command reads and writes outside the store and the database: exports, reports, new projects.
        place = error.filename or "a file that this command writes"
        typer.echo(f"align: {place}: {error.strerror}. {do}, or choose another folder.", err=True)
        raise typer.Exit(AlignmentError.exit_code) from error
    except KeyboardInterrupt as interrupt:
        typer.echo("align: interrupted. Run the same command again to resume from the last checkpoint.", err=True)
        raise typer.Exit(INTERRUPTED) from interrupt


@contextmanager
def warnings_last() -> Iterator[None]:
    """Print the API's warnings below what the command prints."""
    with catch_warnings(record=True) as problems:
        simplefilter("always")
        yield
    for problem in problems:
        typer.echo(f"align: {problem.message}", err=True)
