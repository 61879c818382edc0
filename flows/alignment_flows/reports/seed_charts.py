"""Charts and the table of a sweep: differences to the best contender, and win rates seed by seed."""

from collections.abc import Mapping

from alignment_core.evaluation.over_seeds import SeedMean
from alignment_core.reporting.intervals import Interval, interval_chart
from alignment_core.reporting.page import Cell, Figures
from alignment_core.reporting.svg import Chart
from alignment_flows.reports.comparison import START
from alignment_flows.reports.seed_results import OverSeeds, interval


def seed_charts(found: OverSeeds, series: Mapping[str, int]) -> list[Chart]:
    """Return the chart of the differences to the best contender, if there is another one."""
    if not found.differences:
        return []
    rows = [_interval(model, one, series[model]) for model, one in found.differences.items()]
    return [
        interval_chart(
            f"Win rate minus that of {found.best}, points", rows, equal=(0.0, f"as good as {found.best}"),
            note="on the same prompts and seeds, 95 % intervals",
        )
    ]  # fmt: skip


def _interval(model: str, one: SeedMean, series: int) -> Interval:
    return Interval(model, 100 * one.mean, 100 * one.low, 100 * one.high, series, interval(one))


def seed_table(found: OverSeeds) -> Figures:
    """Return the win rate of each contender with each seed, and why it has no more of them."""
    stopped = {one.model for one in found.stopped}
    rows: list[list[Cell]] = []
    for model, rates in found.rates.items():
        missing = "stopped" if model in stopped else "–"
        cells = [f"{100 * rates[seed]:.0f} %" if seed in rates else missing for seed in found.seeds]
        rows.append([model, *cells])
    return Figures(f"Preferred to {START}, by seed", ["model", *(f"seed {seed}" for seed in found.seeds)], rows)
