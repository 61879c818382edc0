"""What every command of `align` is made with."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from alignment_core.errors import AlignmentError

Parameters = ParamSpec("Parameters")

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended (128 + SIGINT)."""

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the settings of the run.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Change one setting, e.g. optimizer.beta=0.2; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]


def command(run: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """A command whose errors are one paragraph on stderr and an exit code."""

    @wraps(run)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            run(*args, **kwargs)
        except AlignmentError as error:
            typer.echo(f"align: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            typer.echo("align: interrupted. The same command goes on from the last checkpoint.", err=True)
            raise typer.Exit(INTERRUPTED) from interrupt

    return wrapper
