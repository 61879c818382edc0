"""`align chat` and `align rank` in a separate process, as users start them."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from served import ALIGN, PATIENCE


@contextmanager
def served_page(
    folder: Path, *arguments: str | Path, port: int = 0, program: Sequence[str] = ALIGN, **variables: str
) -> Iterator[str]:
    """Serve a page until the block ends. Yield its address. Its log is `page.log` in the folder."""
    env = {**os.environ, **variables}
    command = [*program, *map(str, arguments), "--port", str(port)]
    with (folder / "page.log").open("ab") as log:
        page = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    assert page.stdout is not None
    try:
        with page.stdout:
            ready, _, _ = select.select([page.stdout], [], [], PATIENCE)
            line = page.stdout.readline() if ready else ""
            assert "http://" in line, (folder / "page.log").read_text()
            yield line.split(": ", 1)[1].strip()
    finally:
        page.terminate()
        deadline = time.monotonic() + PATIENCE
        while page.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        page.kill()
        page.wait()
