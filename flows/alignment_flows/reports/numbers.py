"""The numbers of metrics and settings by name."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

DIGEST = re.compile(r"^([0-9a-f]{12})[0-9a-f]{28,}$")


def numbers(values: Mapping[str, Any], prefix: str = "", *, digits: int = 6) -> Iterator[tuple[str, str]]:
    """Yield the numbers, with so many significant digits, and short texts of nested JSON by dotted name.

    Lists are left out.
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}.", digits=digits)
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.{digits}g}"
        elif isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= 80):
            # A full digest is wider than the page. It is in the manifest.
            yield f"{prefix}{name}", DIGEST.sub(r"\1…", str(value))
