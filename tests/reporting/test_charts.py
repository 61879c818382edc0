"""Charts: places worked out by hand, and markup that is well formed whatever the names and values are."""

from __future__ import annotations

import base64
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_core.reporting.bars import Distribution, Part, distribution, histogram_chart, share_chart
from alignment_core.reporting.intervals import Interval, Point, interval_chart, point_chart
from alignment_core.reporting.lines import groups, line_chart
from alignment_core.reporting.scales import labels, limits, ticks, titled
from alignment_core.reporting.svg import BASELINE, Chart, marker, picture, style

NAMES = st.text(max_size=30)
VALUES = st.floats(-1e12, 1e12) | st.sampled_from([math.nan, math.inf, -math.inf])


def found(chart: Chart, kind: str) -> list[dict[str, str]]:
    """Return the attributes of the elements of a class, in their order."""
    return [one.attrib for one in ElementTree.fromstring(chart.svg).iter() if kind in one.get("class", "").split()]


def test_ticks_are_round_and_their_labels_have_the_digits_they_need() -> None:
    # a fifth of 94 is 18.8, so the distance is 20; a fifth of 0.7 is 0.14, so it is 0.2
    assert ticks(3, 97) == [20, 40, 60, 80]
    assert ticks(0, 0.7) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert ticks(1, 3, whole=True) == [1, 2, 3]
    assert labels([0, 0.2, 0.4]) == ["0.0", "0.2", "0.4"]
    assert labels([0, 5000, 10000]) == ["0", "5,000", "10,000"]
    assert labels([0, 2e7]) == ["0", "2e+07"]
    assert limits([math.nan, 2, 4, math.inf]) == (1.9, 4.1)
    assert limits([3.0]) == (1.5, 4.5)
    assert limits([0.0]) == (-0.5, 0.5)
    assert titled("kl_to_reference") == "KL to reference"


def test_interval_is_where_its_numbers_are() -> None:
    # 0 to 1 is 8 to 352: 344 units. A quarter is 94, a half 180, three quarters 266.
    rows = [Interval("dpo", 0.5, 0.25, 0.75, 0, "50 %"), Interval("one", 1.0, -math.inf, math.inf, 1, "no interval")]
    chart = interval_chart("win rate", rows, across=(0, 1), equal=(0.5, "as often as not"))
    (span,) = found(chart, "range")
    assert (span["x1"], span["x2"]) == ("94", "266")
    first, second = found(chart, "mark")
    assert first["cx"] == "180"
    # The second series is a square of 9 units in the second row, around (352, 68).
    assert second["points"].split()[0] == "347.5,63.5"
    assert {line["x1"] for line in found(chart, "equal")} == {"180"}
    assert chart.rows == (("dpo", "50 %"), ("one", "no interval"))
    assert chart.summary == "dpo 50 %; one no interval. The line is as often as not"


def test_shares_are_widths() -> None:
    # 360 units for four: three are 270, less one unit between the parts
    chart = share_chart("labels", [Part("up", 3, 2), Part("none", 0, 0), Part("down", 1, 1)], "responses")
    bars = [bar for bar in found(chart, "bar") if bar["y"] == "2"]
    assert [(bar["x"], bar["width"]) for bar in bars] == [("0", "269"), ("270", "89")]
    assert chart.rows == (("up", "3", "75 %"), ("none", "0", "0 %"), ("down", "1", "25 %"))


def test_histogram_has_the_area_of_its_counts() -> None:
    # One of four values in the first half, three in the second: a third of the height. The scale is 4 to 356.
    chart = histogram_chart("lengths", [Distribution("prompts", [1, 3], [0, 5, 10], 7.5, 10, 0)], "tokens")
    (area,) = found(chart, "area")
    base, top = 19 + 6 + 96, 19 + 6 + 2
    third = base - (base - top) / 3
    assert area["points"].split() == [
        f"{x:.1f},{y:.1f}"
        for x, y in ((4, base), (4, third), (180, third), (180, top), (356, top), (356, base))
    ]  # fmt: skip
    assert found(chart, "median")[0]["x1"] == "268"
    # Three bins of 4/3: 1, 1 and 2 are in the first one, 5 in the last.
    made = distribution("x", [1, 1, 2, 5], 0)
    assert (list(made.counts), made.edges, made.median) == ([3, 0, 1], pytest.approx([1, 7 / 3, 11 / 3, 5]), 1.5)


def test_curve_has_a_gap_where_a_value_is_no_number() -> None:
    curve = [(1, 1.0), (2, 3.0), (3, math.nan), (4, math.inf), (5, 2.0), (6, 2.0)]
    chart = line_chart("loss", {"dpo": curve}, {"dpo": 0})
    assert [len(line["points"].split()) for line in found(chart, "line")] == [2, 2]
    assert chart.note == "1 → 2. 2 values are not numbers: a gap"
    assert chart.rows == (("dpo", "1", "1", "3", "2", "6"),)
    # Groups of two: their means, and the lowest and highest value of each.
    made = groups([(1, 10.0), (2, 20.0), (3, math.nan), (4, 50.0), (5, 5.0)], points=3)
    assert [(one.step, one.mean, one.band) for one in made] == [
        (1.5, 15, (10, 20)), (3.5, 50, (50, 50)), (5, 5, (5, 5)),
    ]  # fmt: skip


def test_name_of_a_point_covers_no_other_point_or_name() -> None:
    points = [Point(f"model {n}", n / 100, n / 100, 0, math.nan, math.nan, n) for n in range(12)]
    chart = point_chart("score", "KL", points)
    names = [one for one in found(chart, "name") if "text-anchor" not in one]
    assert 0 < len(names) <= 12
    places = [(float(one["x"]), float(one["y"])) for one in names]
    for i, (x, y) in enumerate(places):
        assert all(abs(x - a) >= 7 * 6.6 or abs(y - b) >= 14 for a, b in places[:i])
    assert len(chart.rows) == 12


def test_two_dozen_series_look_different() -> None:
    looks = [
        (style(n), re.sub(r"[\d.,]+", "", marker(n, 0, 0).partition("class")[0]), marker(n, 0, 0)) for n in range(24)
    ]
    assert len({(color, drawn) for color, _, drawn in looks}) == 24
    assert style(BASELINE) == "s0"
    assert "hollow" in marker(BASELINE, 0, 0)


@settings(max_examples=25, deadline=None)
@given(name=NAMES, title=NAMES, mean=VALUES, low=VALUES, high=VALUES, curve=st.lists(VALUES, min_size=1, max_size=9))
def test_markup_is_well_formed_and_finite(
    name: str, title: str, mean: float, low: float, high: float, curve: list[float]
) -> None:
    finite = mean if math.isfinite(mean) else 0.0
    charts = [
        interval_chart(title, [Interval(name, finite, low, high, 3, name)]),
        point_chart(title, name, [Point(name, finite, finite, abs(finite), low, high, 1)]),
        line_chart(title, {name: list(enumerate(curve))}, {name: 0}, named=True),
        share_chart(title, [Part(name, 5, 1), Part(name, 0, 2)], name),
        histogram_chart(title, [distribution(name, [finite, finite, 0.0], 0)], name),
    ]
    for chart in charts:
        drawn = ElementTree.fromstring(chart.svg)
        numbers = [
            value for one in drawn.iter() for key, value in one.attrib.items() if key not in ("class", "aria-label")
        ]
        assert not re.search(r"\b(nan|inf)\b", " ".join(numbers))
    uri = picture(charts)
    image = base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()
    assert ElementTree.fromstring(image).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme" not in image
    for variable in set(re.findall(r"var\((--[\w-]+)\)", image)) - {"--own"}:
        assert f"{variable}:" in image, "an image cannot use the colors of its page"


def test_names_that_are_cut_are_told_apart() -> None:
    """Two settings of one optimizer differ at the end of their names, where a long name is cut."""
    names = ["sft", *(f"online_dpo learning_rate={rate} label_smoothing=0.05 beta={beta}" for rate in ("1e-05", "5e-05")
                      for beta in ("0.05", "0.1"))]  # fmt: skip
    chart = interval_chart("Rate", [Interval(name, 0.5, 0.4, 0.6, 0, "50 % (40 to 60)") for name in names])
    shown = re.findall(r'class="name">([^<]*)<', chart.marks)
    assert shown == [
        "sft",
        *(f"learning_rate={rate} beta={beta}" for rate in ("1e-05", "5e-05") for beta in ("0.05", "0.1")),
    ]
    assert [row[0] for row in chart.rows] == names
    short = interval_chart("Rate", [Interval(f"dpo beta={beta}", 0.5, 0.4, 0.6, 0, "50 %") for beta in (1, 2)])
    assert re.findall(r'class="name">([^<]*)<', short.marks) == ["dpo beta=1", "dpo beta=2"]
