"""Wheels, and new environments that hold them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def run(folder: Path, *command: str | Path, **variables: str) -> str:
    """Standard output of a command that runs in `folder` and sees nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source: Path, out: Path) -> Path:
    """The wheel of a distribution, made from its source distribution as the package index gets it."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def make_environment(folder: Path, *wheels: Path) -> Path:
    """A new environment's `bin`, with the wheels in it and our dependencies behind them.

    The dependencies are those of the running environment, put on the path by a `.pth` file: downloading and unpacking
    two gigabytes again would take minutes and test nothing of ours. The new environment's own packages come first, so
    the wheel, not the checkout, is imported; the old one's own `.pth` files (editable installs) have no effect here.
    """
    venv.create(folder, with_pip=True)
    bin_folder = folder / "bin"
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    ours = [path for path in sys.path if Path(path).name == "site-packages"]
    (Path(site) / "dependencies.pth").write_text("".join(f"{path}\n" for path in ours))
    run(folder, bin_folder / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *wheels)
    return bin_folder
