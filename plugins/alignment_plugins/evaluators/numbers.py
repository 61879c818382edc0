"""Numbers in text: how answers to arithmetic problems are written."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 60
"""Characters of a number. Longer runs of digits are no answer."""
MOST_ZEROS = 300
"""Largest exponent of ten."""

_SIGN = r"(?<![^\W_])(?<!\))[-+\u2212]\s?"
_MONEY = r"[$€£¥]\s?"
_GROUPED = r"[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}|[0-9]{1,3}(?:[\u00a0\u202f\u2009][0-9]{3})+"
_DIGITS = rf"(?:(?:{_GROUPED}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN}(?:{_MONEY})?|(?:{_MONEY})[-+\u2212]?)?"
    # Neither inside a word, nor a part of a date or of a number with two points.
    r"(?<![^\W_])(?<![0-9a-zA-Z_][.,/:])(?<!\.)"
    rf"(?:\\[dt]?frac\{{(?P<above>[0-9]+)\}}\{{(?P<below>[0-9]+)\}}"
    rf"|(?:(?P<whole>[0-9]+)\s)?(?P<part>[0-9]+)\s?/\s?(?P<of>[0-9]+)(?![0-9]*[./][0-9])"
    rf"|(?P<number>{_DIGITS})(?:[eE](?P<power>[-+]?[0-9]+)(?![^\W_]))?(?!\.[0-9]|[0-9]|\s?/\s?[0-9]|:[0-9]|,[0-9]))"
    r"(?P<percent>\s?\\?%)?"
)


@dataclass(frozen=True)
class Number:
    """A number in text, exactly. `percent` says whether a percent sign follows it."""

    value: Fraction
    percent: bool

    def equals(self, other: Number, tolerance: float = 0.0) -> bool:
        """Return whether both are the same number.

        A percent sign on one of them only may be read as a unit or as a hundredth: 50 % equals 50 and 0.5.

        Args:
            other: the right number.
            tolerance: largest difference, as a share of the right number.
        """
        values = [self.value]
        if self.percent != other.percent:
            values.append(self.value / 100 if self.percent else self.value * 100)
        return any(abs(value - other.value) <= abs(other.value) * Fraction(tolerance) for value in values)


def answer_in(text: str, marker: str) -> Number | None:
    r"""Return the number that a text gives as its answer, or None if there is none.

    It is the first number after the last `marker`, else the last one in the last `\boxed{…}`, else the last one of all.
    """
    _, found, after = text.rpartition(marker) if marker else ("", "", text)
    if found:
        line = after.strip().split("\n", 1)[0]
        first = _NUMBER.search(line)
        return None if first is None else _number(first)
    _, found, boxed = text.rpartition("\\boxed{")
    last = deque(_NUMBER.finditer(_to_closing_brace(boxed) if found else text), maxlen=1)
    return _number(last[0]) if last else None


def _to_closing_brace(text: str) -> str:
    """Return the text before the brace that closes one that was opened before it."""
    depth = 1
    for match in re.finditer("[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return text[: match.start()]
    return text


def _number(match: re.Match[str]) -> Number | None:
    """Return the number, or None if the digits stand for no usable number, such as 1/0."""
    if len(match[0]) > LONGEST:
        return None
    percent = match["percent"] is not None
    negative = bool(set(match["sign"] or "") & {"-", "\u2212"})
    if match["number"] is not None:
        value = Fraction(re.sub(r"[,\u00a0\u202f\u2009]", "", match["number"]))
        power = int(match["power"] or 0)
        if abs(power) > MOST_ZEROS:
            return None
        value *= Fraction(10) ** power
    else:
        above, below = match["above"] or match["part"], int(match["below"] or match["of"])
        if not below:
            return None
        value = int(match["whole"] or 0) + Fraction(int(above), below)
    return Number(-value if negative else value, percent)
