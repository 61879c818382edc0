"""What the training core needs in a checkout that is not installed: packages, and the entry points of plugins."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "torch": "torch", "transformers": "transformers", "peft": "peft", "accelerate": "accelerate",
    "bitsandbytes": "bitsandbytes", "pydantic": "pydantic", "pydantic_core": "pydantic-core",
    "annotated_types": "annotated-types", "typing_inspection": "typing-inspection", "pluggy": "pluggy",
    "safetensors": "safetensors", "tokenizers": "tokenizers", "huggingface_hub": "huggingface-hub", "numpy": "numpy",
    "scipy": "scipy", "jinja2": "jinja2", "yaml": "pyyaml", "httpx": "httpx",
}  # fmt: skip
"""The third-party modules that the training core imports, and the package that provides each of them."""
REPORTED = ("torch", "transformers", "peft", "bitsandbytes", "trl", "unsloth", "liger-kernel")


def missing_packages() -> list[str]:
    """Return the packages that are not installed."""
    return [package for module, package in PACKAGES.items() if find_spec(module) is None]


def how_to_carry(missing: list[str]) -> str:
    """Return what to do about missing packages on a machine without a network."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    platforms = " ".join(f"--platform {name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_24", "manylinux2014"))
    return (
        f"missing packages: {', '.join(missing)}. On a machine without a network, carry them there as wheels. In this "
        "repository on a machine with one, run `pip download --constraint constraints.txt --no-deps "
        f"--only-binary=:all: --python-version {python} {platforms} --dest wheels {' '.join(missing)}`. On the machine "
        "without one, run `pip install --no-index --no-deps --target site wheels/*.whl` and set PYTHONPATH=site"
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the results, where they are installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in REPORTED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def register_plugins(folder: Path) -> None:
    """Make the built-in plugins known to `load_registry` if the checkout is not installed.

    Args:
        folder: an empty folder for the entry points, which are read from `pyproject.toml`.
    """
    if entry_points(group="alignment_core"):
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["alignment_core"]
    lines = ["[alignment_core]", *(f"{name} = {module}" for name, module in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    sys.path.append(str(folder))
