"""Print texts of strangers, such as names of files and responses of models, that cannot command a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OURS = r"\x1b\[[0-9;]*m|\x1b\[\?25[hl]|\x1b\[[0-9]*[AK]|\r"
"""Colors, the cursor, and what redraws lines. Only a terminal gets them."""
CONTROL = re.compile(rf"({OURS})|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@contextmanager
def printable_output() -> Iterator[None]:
    """Show control characters in the output of the block as `\\x1b`, except those that this program prints itself."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Printable(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Printable:
    """A text stream that writes what can be printed of a text to another stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        shown = CONTROL.sub(lambda found: self._shown(found), text)
        self._stream.write(shown)
        return len(text)

    def _shown(self, found: re.Match[str]) -> str:
        if found.group(1) and self._stream.isatty():
            return found.group()
        # JSON has these as they are, and must stay JSON.
        return "\N{REPLACEMENT CHARACTER}" if found.group() >= "\x7f" else repr(found.group())[1:-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
