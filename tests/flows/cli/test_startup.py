"""Commands import only what they need, because imports take most of the time of a small one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignment_flows import data_checks

UNNEEDED = ("torch", "prefect", "scipy", "matplotlib", "pandas", "sqlalchemy", "datasketch", "datasets", "httpx")
CHECK = (
    "import json, sys\nfrom alignment_flows.cli.app import main\n"
    "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
    "print(json.dumps(sorted(name for name in sys.modules if '.' not in name)), file=sys.stderr)"
)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"What is {i} + {i}?", "chosen": f"It is {2 * i}.", "rejected": "No idea."} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check(*arguments: str | Path) -> tuple[dict[str, Any], set[str]]:
    """Return the report, and the names of the packages that the command imported."""
    command = [sys.executable, "-c", CHECK, "data", "check", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (names,) = done.stderr.splitlines()  # and no warning of a library
    return json.loads(done.stdout), set(json.loads(names))


def test_a_check_of_data_imports_little(pairs: Path) -> None:
    report, imported = check(pairs)
    assert imported.isdisjoint((*UNNEEDED, "transformers"))
    assert report == data_checks.check_data(pairs)


def test_a_check_with_a_model_imports_no_torch(pairs: Path, tiny_model: Path) -> None:
    report, imported = check(pairs, "--model", tiny_model)
    assert "transformers" in imported
    assert imported.isdisjoint(UNNEEDED)
    # In this process, transformers knows of torch.
    assert report == data_checks.check_data(pairs, model=str(tiny_model))
