"""Resume a stage that does not train from a file in its checkpoints, to which it appends lines."""

from __future__ import annotations

from pathlib import Path


def complete_lines(kept: Path) -> list[bytes]:
    """Return the lines that an interrupted build has written. An incomplete last line is removed from the file."""
    if not kept.exists():
        return []
    content = kept.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        kept.write_bytes(complete)
    return complete.splitlines()
