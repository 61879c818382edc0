"""The module of losses lists its functions before any of them is loaded."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from alignment_core import losses

FOLDER = Path(losses.__file__).parent


def test_help_lists_every_function() -> None:
    """Most functions of `likelihood` are for the models. The other files are public, and `help` shows them."""
    files = [import_module(f"alignment_core.losses.{path.stem}") for path in FOLDER.glob("[a-km-z]*.py")]
    functions = {
        name: value
        for file in files
        for name, value in inspect.getmembers(file, inspect.isfunction)
        if value.__module__ == file.__name__ and not name.startswith("_")
    }
    functions["fused_token_logps"] = losses.fused_token_logps
    assert dir(losses) == sorted(functions)
    shown = subprocess.run(
        [sys.executable, "-c", "from alignment_core import losses; help(losses)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name, function in functions.items():
        assert f"{name}(" in shown
        assert (inspect.getdoc(function) or "").splitlines()[0] in shown


def test_names_load_no_torch() -> None:
    code = "import sys; from alignment_core import losses; print('dpo' in dir(losses), 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True False\n"
