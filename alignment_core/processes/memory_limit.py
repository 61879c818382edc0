"""Limit the memory that a piece of work may take in this process."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment_core.processes.free_memory import kilobytes

STATUS = Path("/proc/self/status")
_lock = threading.RLock()


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Do not let this process grow by more than so many bytes within the block.

    The limit is one of the process, so the blocks of several threads run one after the other. It exists on Linux only.

    Raises:
        MemoryError: the block needs more.
    """
    if not STATUS.exists():
        yield
        return
    with _lock:
        before, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = kilobytes(STATUS.read_text(), "VmData:") + more
        if before != resource.RLIM_INFINITY:
            limit = min(limit, before)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
        try:
            yield
        except MemoryError as error:
            raise MemoryError(f"it takes more than {more} bytes of memory") from error
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (before, most))
