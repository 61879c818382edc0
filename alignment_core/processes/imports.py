"""What a fork server imports, and what its children have in common with new processes."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path

LIBRARIES = ("torch._inductor.compile_fx", "torch.distributed.tensor", "transformers.models.llama.modeling_llama")
"""What the server imports. Most architectures import what Llama's imports."""

WITHOUT_CUDA = (
    "alignment_core.execution.stage_process",
    "alignment_core.forecast.process",
    "alignment_core.stages.evaluate",
    "alignment_core.stages.optimize",
    "alignment_core.stages.reference",
    "alignment_core.stages.reward",
    "alignment_core.stages.sample",
    "alignment_core.stages.sft",
)
"""What it imports in addition if torch has no CUDA. These import bitsandbytes, which initializes CUDA if there is one,
and a process that has done so cannot be forked."""

CUSTOMIZE = ("sitecustomize", "usercustomize")
"""Modules that every new Python process imports if it finds them."""

METADATA = (".dist-info", ".egg-info", ".egg-link")


class Imports:
    """The libraries in this process, and what they depend on.

    Attributes:
        changed: environment variables that the libraries have set.
        threads: whether an import has started a thread. It would not exist in a forked child.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._packages: list[str] = []
        self.changed: dict[str, str] = {}
        self.threads = False

    @property
    def loaded(self) -> bool:
        return bool(self._files)

    def load(self) -> None:
        """Import the libraries, and note what a new process would have to have in common with this one."""
        before = dict(os.environ)
        # Otherwise torch would initialize CUDA to find out whether there is one.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        for module in LIBRARIES:
            importlib.import_module(module)
        if sys.modules["torch"].version.cuda is None:
            for module in WITHOUT_CUDA:
                importlib.import_module(module)
        del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
        self.changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
        self._files, self._packages = _times_of_files(), installed_packages()
        self.threads = len(os.listdir("/proc/self/task")) > 1
        # The collector would write to every object, and so copy the memory that children share.
        gc.collect()
        gc.freeze()

    def import_the_same(self, pythonpath: str) -> bool:
        """Return whether a new process with this PYTHONPATH would find the same modules as this one did."""
        ours, theirs = _entries(os.environ.get("PYTHONPATH", "")), _entries(pythonpath)
        tops = {name: module for name, module in sys.modules.items() if "." not in name}
        for entry in (path for path in theirs if path not in ours and os.path.isdir(path)):
            for name in (file.partition(".")[0] for file in os.listdir(entry)):
                place = str(getattr(tops.get(name), "__file__", None) or "")
                if name in CUSTOMIZE or (name in tops and not place.startswith(os.path.join(entry, ""))):
                    return False
        return {*ours} <= {*theirs}

    def outdated(self) -> bool:
        """Return whether a new process would import something else, because a package was installed or changed."""
        return _times_of_files() != self._files or installed_packages() != self._packages


def extend_path(pythonpath: str) -> None:
    """Make this process search the folders of another PYTHONPATH than the one it was started with."""
    ours = _entries(os.environ.get("PYTHONPATH", ""))
    sys.path[: len(ours)] = _entries(pythonpath)
    importlib.invalidate_caches()


def _entries(pythonpath: str) -> list[str]:
    return [entry for entry in pythonpath.split(os.pathsep) if entry]


def _times_of_files() -> dict[str, int]:
    """Return the modification times of the files of all modules."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return {path: _time_of(path) for path in files if path}


def installed_packages() -> list[str]:
    """Return the names and versions of the installed packages, which libraries look up on import."""
    folders = [Path(path) for path in sys.path if Path(path).is_dir()]
    return [name for folder in folders for name in sorted(os.listdir(folder)) if name.endswith(METADATA)]


def _time_of(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
