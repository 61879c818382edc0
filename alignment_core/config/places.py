"""Settings that name a file, a folder or an address: what can be told of them before anything is opened."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

HUB = "hf://"
STORE_ENDINGS = (".db", ".sqlite", ".sqlite3")
STORE_SCHEMES = ("sqlite://", "postgres://", "postgresql://", "postgresql+psycopg://")
HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^:/?#@\[\]\s]*)(?::(\d{0,9}))?(?=[/?]|$)")
"""Host and port, either of which may be missing."""
LARGEST_PORT = 65535
LONGEST_PLACE = 3000
"""Length of the longest path or address in characters. A file system allows 4096 bytes, with what the run adds."""
LONGEST_NAME = 255
"""Length of the longest name of a file or folder in bytes."""


def is_reference(text: str) -> bool:
    """Return whether a setting refers to a block or variable of Prefect, whose value is not known yet."""
    return "{{" in text


def check_place(place: str) -> str:
    """Return the path or address.

    Raises:
        ValueError: it is blank, or no file system could hold it.
    """
    if not place.strip():
        raise ValueError("the path is empty")
    if len(place) > LONGEST_PLACE:
        raise ValueError(f"the path has more than {LONGEST_PLACE} characters")
    if "://" not in place and any(len(os.fsencode(name)) > LONGEST_NAME for name in place.split("/")):
        raise ValueError(f"the path has a name of more than {LONGEST_NAME} bytes")
    if place.startswith("~") and expanded(place) == Path(place):
        raise ValueError(f"nobody on this machine has the home folder {place.partition('/')[0]}")
    return place


def expanded(place: str | Path) -> Path:
    """Return the path with the home folder in place of `~`. It is unchanged if there is no such user, as in a shell."""
    try:
        return Path(place).expanduser()
    except RuntimeError:
        return Path(place)


def names_feedback_store(place: str) -> bool:
    """Return whether a path or address names a feedback store, by its ending or scheme."""
    return place.startswith(STORE_SCHEMES) or ("://" not in place and place.lower().endswith(STORE_ENDINGS))


def check_feedback_store(place: str) -> str:
    """Return the path or address.

    Raises:
        ValueError: it names no feedback store, or one that would be gone when the process ends.
    """
    if is_reference(place):
        return place
    if not names_feedback_store(place):
        raise ValueError(f"expected a file with the ending {', '.join(STORE_ENDINGS)}, or postgresql://user@host/name")
    if place.startswith("sqlite://") and (":memory:" in place or "mode=memory" in place or not place[9:].strip("/")):
        raise ValueError("a feedback store in memory would lose its votes, expected a file")
    scheme, is_address, address = place.partition("://")
    if is_address and scheme != "sqlite":
        _check_host(address)
    return place


def _check_host(address: str) -> None:
    """Check host and port in the address of a database without its scheme.

    Raises:
        ValueError: they cannot be read. The message does not show them, as it does not know where a password ends.
    """
    found = HOST.match(address.rpartition("@")[2])
    if found is None or int(found.group(1) or 0) > LARGEST_PORT:
        raise ValueError(
            f"host and port cannot be read, expected postgresql://user@host:port/name with a port up to {LARGEST_PORT}"
        )


def check_web_address(address: str) -> str:
    """Return the address.

    Raises:
        ValueError: it is no complete `http://` or `https://` address.
    """
    if is_reference(address):
        return address
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an end, or a port that is too large
        usable = False
    if not usable:
        raise ValueError(f"{address} is no web address, expected one such as http://localhost:8000/v1")
    return address


Place = Annotated[str, Field(min_length=1), AfterValidator(check_place)]
"""A path, or an address."""
FeedbackPlace = Annotated[Place, AfterValidator(check_feedback_store)]
"""The path or address of a feedback store."""
WebAddress = Annotated[str, Field(max_length=LONGEST_PLACE), AfterValidator(check_web_address)]
"""The address of a server that is asked with HTTP."""
