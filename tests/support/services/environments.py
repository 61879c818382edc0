"""Wheels, and new environments with wheels installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def run(folder: Path, *command: str | Path, **variables: str) -> str:
    """Run a command in `folder` without PYTHONPATH. Return its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source: Path, out: Path) -> Path:
    """Build the wheel of a distribution from its source distribution, as for the package index."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def make_environment(folder: Path, *wheels: Path) -> Path:
    """Create an environment with the wheels and our dependencies. Return its `bin` folder.

    The dependencies are those of the running environment, put on the path by a `.pth` file, because downloading and
    unpacking two gigabytes again would take minutes and test nothing of ours. The new environment's own packages come
    first, so the wheel is imported and not the checkout. The `.pth` files of the running environment (editable
    installs) have no effect.
    """
    venv.create(folder, with_pip=True)
    bin_folder = folder / "bin"
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    ours = [path for path in sys.path if Path(path).name == "site-packages"]
    (Path(site) / "dependencies.pth").write_text("".join(f"{path}\n" for path in ours))
    run(folder, bin_folder / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *wheels)
    return bin_folder
