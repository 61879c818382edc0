"""Limits of what a chat template may do. They count work, not seconds, so that a slow machine refuses nothing more."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import wraps
from typing import Any

from jinja2.exceptions import SecurityError

WORK = 3_000_000
"""Steps of loops that one rendering may take, which is seconds. Sixteen characters of a new text count as a step."""
CHARACTERS = 64_000_000
"""Length of the longest text or list that a template may make."""
CHARACTERS_PER_STEP = 16
READ_PER_STEP = 256
"""Characters that count as a step when a text is only searched, compared or copied."""
SLOW = frozenset({"title", "striptags", "urlencode", "urlize", "wordcount", "wordwrap"})
"""Filters that take as long for two characters as others for hundreds."""
SLOWLY_READ = 2
SMALL = 1000
"""Length of a sum that costs no more than the loop it is in."""
WIDE = re.compile(r"\d{6}|%[^%A-Za-z]*\*")
"""Matches a width in a format string that no template needs, or that is not in it."""
BITS = 4096
"""Length of the largest product of whole numbers."""


class Limits(threading.local):
    """Counts the work of a rendering, and refuses operations with huge results before they are computed."""

    def __init__(self) -> None:
        self._left = WORK

    def start(self) -> None:
        """Begin to count for a new rendering."""
        self._left = WORK

    def spend(self, amount: int) -> None:
        """Count work.

        Raises:
            SecurityError: there was too much.
        """
        self._left -= amount
        if self._left < 0:
            raise SecurityError(f"the template does not end after {WORK} steps")

    def steps(self, values: Any) -> Any:
        """Return `values` such that each step of a loop over them counts."""
        return _Counted(values, self) if hasattr(values, "__len__") else self._each(values)

    def _each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.spend(1)
            yield value

    def concat(self, parts: Iterable[str]) -> str:
        """Join texts, if the result is not too long."""
        texts = list(parts)
        self._check_size(sum(map(len, texts)))
        return "".join(texts)

    def joined(self, *values: Any) -> str:
        """Join values as text."""
        return self.concat([str(self.shown(value)) for value in values])

    def added(self, value: Any) -> Any:
        """Return a sum, if it is not too large. It is at most twice as large as the largest value allowed."""
        if isinstance(value, str | list) and len(value) > SMALL:
            self._check_size(len(value))
        return value

    def shown(self, value: Any) -> Any:
        """Return a value that is about to become text, if it is not too large."""
        if type(value) is str:
            return value
        if isinstance(value, list | tuple | dict):
            self._check_depth(value)
        return value

    def weighed(self, value: Any, per_step: int = READ_PER_STEP) -> Any:
        """Return a value that is about to be read. Its length counts."""
        if isinstance(value, str | bytes):
            self.spend(len(value) // per_step)
        elif isinstance(value, list | tuple | dict):
            self._check_depth(value)
        elif isinstance(value, range | set | frozenset):
            self.spend(len(value))
        return value

    def guarded(self, name: str, function: Callable[..., Any], *, growing: bool) -> Callable[..., Any]:
        """Return a filter or test whose arguments and result count.

        Args:
            name: its name in templates.
            function: the filter or test.
            growing: whether its result can be much larger than what it is given.
        """
        per_step = SLOWLY_READ if name in SLOW else READ_PER_STEP

        @wraps(function)
        def guarded(*arguments: Any, **named: Any) -> Any:
            self.spend(1)
            for value in (*arguments, *named.values()):
                self.weighed(value, per_step)
            if growing:
                self.check_call(function, arguments, named)
            elif name in ("batch", "slice"):  # of as many items as the number says
                for value in (*arguments, *named.values()):
                    self._check_size(abs(value) if isinstance(value, int) else 0)
            result = function(*arguments, **named)
            if isinstance(result, str):
                self.spend(len(result) // CHARACTERS_PER_STEP)
            elif isinstance(result, list):
                self.spend(len(result))
            return self._each(result) if isinstance(result, Iterator) else result

        return guarded

    def check_operation(self, operator: str, left: Any, right: Any) -> None:
        """Raise `SecurityError` if the result of an operation would be too large."""
        if operator == "*":
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > BITS:
                raise SecurityError("a product of large numbers")
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
                    self._check_size(len(sequence) * times)
        elif operator == "**":
            if not all(isinstance(value, int | float) and abs(value) < 1000 for value in (left, right)):
                raise SecurityError("a power of large numbers")
        elif isinstance(left, str | bytes) and WIDE.search(left if isinstance(left, str) else left.decode("latin-1")):
            raise SecurityError("a format with a huge width")

    def check_call(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Raise `SecurityError` if the result of a call would be too large."""
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # jinja2 wraps `format`
        values = [value for value in (owner, *arguments, *named.values()) if isinstance(value, str | int | list | dict)]
        for value in values:
            if isinstance(value, int) and abs(value) > CHARACTERS:
                raise SecurityError(f"a call with the number {value}, expected at most {CHARACTERS}")
            self.shown(value)
        texts = [value for value in values if isinstance(value, str)]
        name = str(getattr(function, "__name__", ""))
        if "replace" in name and len(texts) == 3:
            self._check_size(len(texts[0]) + texts[0].count(texts[1]) * len(texts[2]))
        elif "expandtabs" in name and texts:
            widths = [value for value in values if isinstance(value, int)]
            self._check_size(len(texts[0]) + texts[0].count("\t") * max(widths, default=8))
        elif "format" in name and texts and WIDE.search(texts[0]):
            raise SecurityError("a format with a huge width")
        elif "join" in name:
            parts = [part for value in values if isinstance(value, list) for part in value if isinstance(part, str)]
            self._check_size(sum(map(len, parts)) + len(parts) * sum(map(len, texts)))

    def _check_depth(self, value: Any) -> None:
        """Count the values inside lists and objects. A list that contains itself many times over grows without end."""
        waiting = [value]
        while waiting:
            found = waiting.pop()
            self.spend(1)
            if isinstance(found, dict):
                waiting += found.values()
            elif isinstance(found, list | tuple):
                waiting += found

    def _check_size(self, size: int) -> None:
        if size > CHARACTERS:
            raise SecurityError(f"a text or list of {size} elements, expected at most {CHARACTERS}")
        self.spend(size // CHARACTERS_PER_STEP)


class _Counted(Sized):
    """A sequence whose iterations count."""

    def __init__(self, values: Any, limits: Limits) -> None:
        self._values, self._limits = values, limits

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return self._limits._each(self._values)
