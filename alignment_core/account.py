"""The name of the person who runs this process."""

from __future__ import annotations

import getpass


def account_name(otherwise: str = "unknown") -> str:
    """Return the name of the current account, or `otherwise` if it has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return otherwise
