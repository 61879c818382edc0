"""A file in a stage's checkpoints that grows by lines: what a killed one that trains nothing goes on from."""

from __future__ import annotations

from pathlib import Path


def whole_lines(kept: Path) -> list[bytes]:
    """The lines that an interrupted build has left; one that a kill cut short is taken away."""
    if not kept.exists():
        return []
    content = kept.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        kept.write_bytes(whole)
    return whole.splitlines()
