"""How much memory this machine has left for a process on its CPU. Loads no library."""

from __future__ import annotations

import os
import resource
from pathlib import Path

SHARE = 0.9
"""Fraction of the free memory that a stage may be planned to take."""


def share_of(free: float, limit: float | None) -> int:
    """Return the bytes of the free ones that a stage may be planned to take. `limit` is in GiB."""
    return round(SHARE * free if limit is None else min(SHARE * free, limit * 2**30))


def resident_memory() -> int:
    """Return the resident bytes of this process."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes(status.read_text(), "VmRSS:")


def free_on_cpu(processes: int = 1) -> float:
    """Return the bytes that the system and the container leave free for each of so many processes."""
    return min(_free_in_system(), _free_in_container()) / processes


def _free_in_system() -> int:
    try:
        return kilobytes(Path("/proc/meminfo").read_text(), "MemAvailable:")
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def kilobytes(text: str, name: str) -> int:
    """Return the bytes behind a name such as `VmRSS:` in a file of the kernel."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _free_in_container() -> float:
    """Return the bytes that the control group leaves free, including its file cache; infinite without a limit."""
    for limit, usage, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        folder = Path("/sys/fs/cgroup")
        try:
            most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
            stats = dict(line.split() for line in (folder / stat).read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            return max(0, int(most) - used + int(stats.get("inactive_file", 0)))
    return float("inf")
