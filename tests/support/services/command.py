"""The `align` command inside the test process, where nothing has to be imported first."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

from typer.testing import CliRunner

from alignment_flows.cli.app import app


def align_here(*arguments: str | Path) -> CompletedProcess[str]:
    """Run the command, and return its exit code and what it wrote."""
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)
