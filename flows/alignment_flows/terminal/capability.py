"""What the terminal can show."""

import os
import shutil
import sys

LEAST_COLUMNS = 60
DUMB = ("dumb", "unknown", "linux")
"""Values of TERM of terminals that cannot move the cursor or have no braille characters."""


def can_redraw() -> bool:
    """Return whether stderr is a terminal on which a view can be redrawn in place.

    Otherwise output is plain lines: in files and pipes, in CI, with NO_COLOR, and on a terminal that is narrow, cannot
    move its cursor or shows no Unicode.
    """
    plain = os.environ.get("NO_COLOR") or os.environ.get("CI") or os.environ.get("TERM", "dumb") in DUMB
    if plain or not sys.stderr.isatty() or "utf" not in (sys.stderr.encoding or "").lower():
        return False
    return shutil.get_terminal_size().columns >= LEAST_COLUMNS
