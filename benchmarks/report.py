"""The result of a benchmark as JSON: what every result says, and where it goes."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def circumstances(*packages: str) -> dict[str, Any]:
    """Return the date, the machine with its load, and the versions of Python and of these packages."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}",
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def circumstances_line(*packages: str, commit: str | None = None) -> str:
    """Return `circumstances` as a sentence of a results page, with the commit if one is given."""
    where = circumstances(*packages)
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    date = where["date"] if commit is None else f"{where['date']}, commit {commit}"
    return f"{date}, {where['machine']}, {versions}."


def report(result: Mapping[str, Any], out: Path | None) -> None:
    """Print a result, and write it to a file if there is one."""
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
