"""Start a module of this package in a process of its own, which loads torch and returns all its memory when it ends.

On Linux, the process is forked from a fork server, which has already imported the libraries. Otherwise it is a new
Python process. Both have the same environment and give the same results.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Protocol

from alignment_core.processes.fork_client import fork_module

ENVIRONMENT = {
    # Makes glibc merge every free block with its neighbors immediately. Otherwise it keeps the slivers between aligned
    # tensors for small objects, and a freed block can no longer hold the next tensor of the same size.
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    # By default, oneDNN caches up to 1024 programs with their memory, one per shape of a bf16 matrix product, and
    # micro-batches have that many shapes. With half the capacity set here, a PPO update takes a third longer because
    # most programs are compiled again.
    "LRU_CACHE_CAPACITY": "64",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    # By default, OpenMP threads spin 300,000 times before they sleep. If another process shares a core, the spinning
    # blocks the work: a tiny model that trains in 20 s on two free cores takes 17 minutes next to one busy process.
    # With this value it takes 22 s in both cases.
    "GOMP_SPINCOUNT": "2000",
    # By default, numpy starts its threads on import, and a process with threads cannot be forked safely. The large
    # products are torch's.
    "OPENBLAS_NUM_THREADS": "1",
    # On a GPU, PyTorch asks for memory in blocks of fixed sizes, and rows of ever new lengths leave gaps between them.
    # A segment that grows has none.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
"""Defaults for the environment of the process. The user's environment overrides them."""
OLD_NAMES = {"PYTORCH_ALLOC_CONF": "PYTORCH_CUDA_ALLOC_CONF"}
"""Another name by which a user may have set one of them."""


class Child(Protocol):
    """A started process. `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Return the exit code if the process has ended: negative if a signal killed it."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises `subprocess.TimeoutExpired`."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


def start_module(
    module: str, *, stdin: int, stdout: int, stderr: int, passed: tuple[int, ...] = (), light: bool = False
) -> Child:
    """Start `module.main()` in a process of its own.

    Args:
        module: a module of this package. Run as a script, it calls its `main` as well.
        stdin, stdout, stderr: file descriptors of the process's streams. The caller closes its own copies.
        passed: more file descriptors. Their numbers in the new process are its command-line arguments.
        light: the module uses none of the libraries, so it does not wait until the fork server has imported them.
    """
    if sys.platform == "linux":
        forked = fork_module(module, (stdin, stdout, stderr), passed, environment(), wait=not light)
        if forked is not None:
            return forked
    # -P: a folder called `datasets` in the working directory must not shadow the package.
    command = [sys.executable, "-P", "-m", module, *map(str, passed)]
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=passed, env=environment())


def environment() -> dict[str, str]:
    """Return the environment of a process that computes."""
    defaults = {name: value for name, value in ENVIRONMENT.items() if OLD_NAMES.get(name, name) not in os.environ}
    return defaults | dict(os.environ)
