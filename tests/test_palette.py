"""The colors of all pages have the contrast that WCAG 2.2 AA asks for, in light and in dark."""

from __future__ import annotations

import re

import pytest

from alignment_core.palette import palette

BACKGROUNDS = ("page", "surface", "raised")
READABLE = [(text, behind) for text in ("text", "muted", "accent", "good", "bad", "warn") for behind in BACKGROUNDS]
READABLE += [("on-accent", "accent"), ("text", "mark"), ("text", "note")]
VISIBLE = [(f"series-{number}", behind) for number in range(1, 7) for behind in ("page", "surface")]
VISIBLE += [("edge", behind) for behind in BACKGROUNDS]


def colors(scheme: str) -> dict[str, str]:
    light, dark = palette().split("@media (prefers-color-scheme: dark)")
    return dict(re.findall(r"--([\w-]+): (#\w{6});", light if scheme == "light" else dark))


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the known gray that just fails


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_have_enough_contrast(scheme: str) -> None:
    found = colors(scheme)
    assert found.keys() == colors("light").keys()
    for pairs, least in ((READABLE, 4.5), (VISIBLE, 3.0)):
        weak = {pair: round(contrast(found[pair[0]], found[pair[1]]), 2) for pair in pairs}
        assert {pair: ratio for pair, ratio in weak.items() if ratio < least} == {}
