"""Charts of models that answered the same prompts: win rates and their differences, scores, KL, length."""

import math
from collections.abc import Mapping, Sequence

from alignment_core.evaluation.over_seeds import SeedMean
from alignment_core.reporting.intervals import Interval, Point, interval_chart, point_chart
from alignment_core.reporting.svg import BASELINE, Chart
from alignment_core.texts import percent
from alignment_flows.reports.comparison import NORMAL_95, Estimate, Row, start_in
from alignment_flows.reports.seed_results import OverSeeds, interval

JUDGES = {"reward": "the reward model", "judge": "a second reward model", "endpoint": "the judging endpoint"}
"""What the judges are called that are not evaluators."""
LIKELY_EQUAL = (0.5, "as often preferred as not")


def series_of(rows: Sequence[Row]) -> dict[str, int]:
    """Return the color of each model. The one that training started from is gray."""
    others = iter(range(len(rows)))
    return {row.model: BASELINE if row.is_start else next(others) for row in rows}


def judge_name(judge: str) -> str:
    """Return who judged, as a person says it."""
    return JUDGES.get(judge, judge)


def win_rate_text(rate: Mapping[str, float]) -> str:
    """Return a win rate with its interval."""
    return f"{percent(rate['rate'])} ({100 * rate['low']:.0f} to {100 * rate['high']:.0f})"


def win_rate_chart(title: str, rates: Mapping[str, Mapping[str, float]], series: Mapping[str, int]) -> Chart:
    """Return how often each model is preferred, with intervals.

    Args:
        title: to what it is preferred, and by whom.
        rates: `rate`, `low` and `high` by model, at least one.
        series: the color of each model.
    """
    found = [
        Interval(model, rate["rate"], rate["low"], rate["high"], series[model], win_rate_text(rate))
        for model, rate in rates.items()
    ]
    asked = max(
        sum(rate[name] for name in ("wins", "ties", "losses")) / rate.get("seeds", 1) for rate in rates.values()
    )
    seeds = max(rate.get("seeds", 1) for rate in rates.values())
    more = f" × {seeds:.0f} seeds" if seeds > 1 else ""
    return interval_chart(
        title, found, across=(0, 1), equal=LIKELY_EQUAL,
        label=lambda values: [*map(percent, values)],
        note=f"{asked:,.0f} {'prompt' if asked == 1 else 'prompts'}{more}, 95 % intervals, a tie counts half",
    )  # fmt: skip


def estimate_text(found: Estimate) -> str:
    """Return a mean with its interval."""
    if not math.isfinite(found.low):
        return f"{found.mean:.3g} (one response: no interval)"
    return f"{found.mean:.3g} ({found.low:.3g} to {found.high:.3g})"


def estimate_chart(title: str, found: Mapping[str, Estimate], series: Mapping[str, int]) -> Chart:
    """Return the mean of a measure for each model, with intervals."""
    rows = [
        Interval(model, one.mean, one.low, one.high, series[model], estimate_text(one)) for model, one in found.items()
    ]
    return interval_chart(title, rows, note="95 % intervals")


def score_charts(rows: Sequence[Row], series: Mapping[str, int]) -> list[Chart]:
    """Return a chart of each score: against KL where KL is known, otherwise the means alone."""
    charts = []
    for name in dict.fromkeys(name for row in rows for name in row.scores):
        scored = [row for row in rows if name in row.scores]
        if all(_kl(row) is not None for row in scored):
            points = [_point(row, name, series[row.model]) for row in scored]
            below = f"KL from {start_in(rows)}, nats per response"
            charts.append(point_chart(f"Mean {name} against KL", below, points))
        else:
            charts.append(estimate_chart(f"Mean {name}", {row.model: row.scores[name] for row in scored}, series))
    return charts


def length_charts(rows: Sequence[Row], series: Mapping[str, int]) -> list[Chart]:
    """Return the mean length of the responses."""
    found = {row.model: row.characters for row in rows if row.characters is not None}
    return [estimate_chart("Length of a response, characters", found, series)] if found else []


def _kl(row: Row) -> float | None:
    kl = row.metrics.get("kl")
    return kl if kl is not None and math.isfinite(kl) else None


def _point(row: Row, name: str, series: int) -> Point:
    score, error, kl = row.scores[name], row.metrics.get("kl_standard_error"), _kl(row)
    assert kl is not None
    wide = NORMAL_95 * error if error is not None and math.isfinite(error) else 0.0
    return Point(row.model, kl, score.mean, wide, score.low, score.high, series)


def seed_charts(found: OverSeeds, series: Mapping[str, int]) -> list[Chart]:
    """Return the chart of the differences to the best contender, if there is another one."""
    if not found.differences:
        return []
    rows = [_apart(model, one, series[model]) for model, one in found.differences.items()]
    return [
        interval_chart(
            f"Win rate minus that of {found.best}, points", rows, equal=(0.0, f"as good as {found.best}"),
            note="The same prompts and seeds, 95 % intervals",
        )
    ]  # fmt: skip


def _apart(model: str, one: SeedMean, series: int) -> Interval:
    return Interval(model, 100 * one.mean, 100 * one.low, 100 * one.high, series, interval(one))
