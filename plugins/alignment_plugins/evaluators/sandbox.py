"""Run a Python program that nobody has read: in a process of its own, with limits.

This protects from mistakes, not from an attacker. The program runs as the same user: it can read what this user can
read, and write where this user can write. Without namespaces (see `Limits`) it can also reach the network and leave
processes behind. Put a container or a virtual machine around the run for more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass

from alignment_core.plugin_api import temporary_folder

OUTPUT = 64 * 1024
"""Bytes of output that are read."""
FILES = 16 * 2**20
"""Largest file that a program may write, in bytes."""
PROCESSES = 64
"""Processes and threads at a time, if the program has namespaces of its own."""

# Runs in the child. It is passed on the command line, so that no file of ours is in the folder of the program. The
# limits are set here, not before the start: a process with threads must not run Python between fork and exec.
_CHILD = """
import ctypes, json, os, resource, sys
limits = json.loads(sys.argv[1])
def cap(what, value):
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))
cap(resource.RLIMIT_CPU, limits["cpu"])
cap(resource.RLIMIT_AS, limits["memory"])
cap(resource.RLIMIT_FSIZE, limits["files"])
cap(resource.RLIMIT_CORE, 0)
NEWUSER, NEWPID, NEWNET, DEATH_SIGNAL, KILL = 0x10000000, 0x20000000, 0x40000000, 1, 9
try:  # no network, and no process outlives the first one: where the system allows it
    library = ctypes.CDLL(None)
    alone = library.unshare(NEWUSER | NEWPID | NEWNET) == 0
except (AttributeError, OSError):
    alone = False
if alone:
    cap(resource.RLIMIT_NPROC, limits["processes"])
    first = os.fork()
    if first:
        os._exit(min(1, os.waitpid(first, 0)[1]))
    library.prctl(DEATH_SIGNAL, KILL)
os.environ.clear()
secret = sys.stdin.buffer.readline() if limits["secret"] else b""
del sys.argv[1:]
source = open("program.py", encoding="utf-8", errors="surrogatepass").read()
exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
if secret:
    sys.stdout.flush()
    os.write(1, secret)
"""


@dataclass(frozen=True)
class Limits:
    """Limits of a program.

    Besides them it gets an empty folder of its own, no environment and no packages of the user. Where the system allows
    it, it also gets namespaces of its own: it has no network, and its processes end with it.

    Attributes:
        seconds: wall time and CPU time.
        memory_mb: address space in MiB.
    """

    seconds: float
    memory_mb: int


def run_program(source: str, given: str, limits: Limits) -> str | None:
    """Return what a program prints when it reads `given`, or None if it fails or exceeds a limit."""
    return _run(source, given.encode("utf-8", "replace"), limits, secret=False)


def ends_well(source: str, limits: Limits) -> bool:
    """Return whether a program runs to its end without an error. One that ends itself before does not."""
    secret = os.urandom(16).hex()
    printed = _run(source, f"{secret}\n".encode(), limits, secret=True)
    return printed is not None and printed.endswith(f"{secret}\n")


def _run(source: str, given: bytes, limits: Limits, *, secret: bool) -> str | None:
    settings = json.dumps(
        {
            "cpu": max(1, round(limits.seconds) + 1),
            "memory": limits.memory_mb * 2**20,
            "files": FILES,
            "processes": PROCESSES,
            "secret": secret,
        }
    )
    with temporary_folder("sandbox") as folder:
        (folder / "program.py").write_text(source, encoding="utf-8", errors="surrogatepass")
        with (folder / ".output").open("w+b") as output:
            # -I: no user packages, no PYTHON* variables, and not the folder of the program on the path.
            child = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", _CHILD, settings],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                start_new_session=True,
            )
            try:
                child.communicate(given, timeout=limits.seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:
                # What the program has started must not outlive it.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            if child.returncode:
                return None
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - OUTPUT) if secret else 0)
            return output.read(OUTPUT).decode("utf-8", "replace")
