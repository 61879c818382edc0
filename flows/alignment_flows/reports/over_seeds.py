"""Compare contenders over several seeds: rows with intervals over seeds, differences to the best, and losers."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignment_core.evaluation.over_seeds import SeedMean, mean_over_seeds
from alignment_core.evaluation.win_rate import win_rate
from alignment_core.execution.build import StageResult
from alignment_flows.reports.comparison import Comparison, Estimate, OptimizerRun, Row, compare_results, responses_of
from alignment_flows.reports.seed_results import OverSeeds, Stopped

SHARES, DIFFERENCES = (0.0, 1.0), (-1.0, 1.0)
VERDICTS = "verdicts.jsonl"

Cells = Mapping[tuple[str, int], float]
"""A value for each prompt. A prompt that occurs several times is told apart by how often it came before."""
Tables = Mapping[int, Cells]
"""Values by seed."""


@dataclass(frozen=True)
class Round:
    """The runs of the contenders with one seed."""

    seed: int
    runs: Sequence[OptimizerRun]


def over_seeds(rounds: Sequence[Round], *, stop_losers: bool) -> Comparison:
    """Return the comparison of contenders over all seeds.

    The best is chosen among the contenders with the most seeds.
    """
    by_seed = [compare_results(found.runs) for found in rounds]
    names = dict.fromkeys(row.model for found in by_seed for row in found.rows)
    rows = [_pooled([row for found in by_seed for row in found.rows if row.model == name], rounds) for name in names]
    judge = next(iter(_judges(rounds)), None)
    rates = _rates(rounds, judge)
    best = _best({model: tables for model, tables in rates.items() if len(tables) == max(map(len, rates.values()))})
    found = OverSeeds(
        seeds=[one.seed for one in rounds],
        judge=judge,
        rates={model: {seed: _mean(cells) for seed, cells in tables.items()} for model, tables in rates.items()},
        means={model: rate_over_seeds(tables) for model, tables in rates.items()},
        best=best,
        differences=_differences(rates, best),
        stopped=_stopped(rounds) if stop_losers else [],
        stops=stop_losers,
    )
    failed = {run.name: run for one in rounds for run in one.runs if run.error}
    runs = [replace(run, error=failed[run.name].error) if run.name in failed else run for run in rounds[0].runs]
    return replace(by_seed[0], runs=runs, rows=rows, over_seeds=found)


def losers(rounds: Sequence[Round]) -> dict[str, Stopped]:
    """Return the contenders of the last round that are clearly worse than the best one.

    Clearly: the 95 % interval of the difference of the win rates, over all seeds until now and by the first judge, lies
    wholly below 0. After a single seed it covers other prompts only.
    """
    running = {run.name for run in rounds[-1].runs if not run.error}
    judge = next(iter(_judges(rounds)), None)
    rates = {model: tables for model, tables in _rates(rounds, judge).items() if model in running}
    best = _best(rates)
    found = _differences(rates, best)
    return {model: Stopped(model, str(best), one) for model, one in found.items() if one.high < 0}


def _stopped(rounds: Sequence[Round]) -> list[Stopped]:
    """Return who got no more seeds. Nobody is stopped after the last one."""
    found = (losers(rounds[:count]) for count in range(1, len(rounds)))
    return [one for stopped in found for one in stopped.values()]


def _judges(rounds: Sequence[Round]) -> list[str]:
    found = (run.built["over_sft"].metrics["win_rate"] for one in rounds for run in one.runs if "over_sft" in run.built)
    return list(dict.fromkeys(judge for rates in found for judge in rates))


# --- tables of seeds × prompts ------------------------------------------------------------------------------------


def rate_over_seeds(tables: Tables) -> SeedMean:
    """Return the win rate over all seeds. That of one seed is the win rate of its run, with the same interval."""
    if len(tables) > 1:
        return mean_over_seeds(_table(tables.values()), SHARES)
    (values,) = (list(cells.values()) for cells in tables.values())
    found = win_rate([round(2 * value - 1) for value in values])
    return SeedMean(found.rate, found.low, found.high, 1, len(values))


def _rates(rounds: Sequence[Round], judge: str | None) -> dict[str, Tables]:
    """Return, for each contender and seed, 1 for each prompt on which it was preferred, 1/2 for a tie, and 0.

    Contenders that have no prompt in common to all of their seeds are left out.
    """
    found: dict[str, dict[int, Cells]] = {}
    for one in rounds:
        for run in one.runs:
            if judge is not None and "over_sft" in run.built:
                found.setdefault(run.name, {})[one.seed] = _verdicts(run.built["over_sft"], judge)
    return {model: tables for model, tables in found.items() if _table(tables.values())[0]}


def _verdicts(versus: StageResult, judge: str) -> Cells:
    with (versus.artifact.path / VERDICTS).open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    cells = _cells((line["prompt"], line["verdicts"][judge]) for line in lines)
    return {key: (verdict + 1) / 2 for key, verdict in cells.items()}


def _cells(values: Iterable[tuple[Any, Any]]) -> Cells:
    """Return the values by prompt, without those that are missing."""
    before: dict[str, int] = {}
    found: dict[tuple[str, int], float] = {}
    for prompt, value in values:
        text = json.dumps(prompt, sort_keys=True)
        before[text] = before.get(text, -1) + 1
        if isinstance(value, int | float):
            found[text, before[text]] = float(value)
    return found


def _table(tables: Iterable[Cells]) -> list[list[float]]:
    """Return the values of the prompts that all seeds have, a list for each seed."""
    tables = list(tables)
    common = [key for key in tables[0] if all(key in cells for cells in tables)]
    return [[cells[key] for key in common] for cells in tables]


def _mean(cells: Cells) -> float:
    return sum(cells.values()) / len(cells)


def _best(rates: Mapping[str, Tables]) -> str | None:
    means = {model: rate_over_seeds(tables).mean for model, tables in rates.items()}
    return max(means, key=lambda model: means[model], default=None)


def _differences(rates: Mapping[str, Tables], best: str | None) -> dict[str, SeedMean]:
    """Return each contender's mean difference to the best, at the seeds and prompts that both have."""
    found: dict[str, SeedMean] = {}
    for model, ours in rates.items():
        if best is None or model == best:
            continue
        both = [(ours[seed], rates[best][seed]) for seed in ours if seed in rates[best]]
        cells = [{key: one[key] - other[key] for key in one if key in other} for one, other in both]
        if cells and (table := _table(cells))[0]:
            found[model] = mean_over_seeds(table, DIFFERENCES)
    return found


# --- rows ---------------------------------------------------------------------------------------------------------


def _pooled(rows: Sequence[Row], rounds: Sequence[Round]) -> Row:
    """Return one row for the rows of a model with several seeds. Times are added up, and the peaks are the highest."""
    first = rows[0]
    error = next((row.error for row in rows if row.error), None)
    if len(rows) == 1:
        return first
    lines = [responses_of(one) for one in _evaluations(first, rounds)]
    return replace(
        first,
        error=error,
        cached=all(row.cached for row in rows),
        scores=_estimates(lines, {name: _score(name) for name in first.scores}),
        characters=_estimates(lines, {"": lambda line: len(line["response"])}).get(""),
        win_rate={judge: found for judge in first.win_rate if (found := _win_rate(first.model, judge, rows, rounds))},
        metrics=_means([row.metrics for row in rows]),
        seconds=_total(row.seconds for row in rows),
        seconds_before=sum(row.seconds_before for row in rows),
        peak_memory=_most(row.peak_memory for row in rows),
        peak_device_memory=_most(row.peak_device_memory for row in rows),
    )


def _evaluations(of: Row, rounds: Sequence[Round]) -> list[StageResult]:
    """Return the evaluation of a model with each seed that it has."""
    name = "evaluate_sft" if of.is_start else "evaluate"
    found = (
        [run.built[name] for run in one.runs if name in run.built and (of.is_start or of.model == run.name)]
        for one in rounds
    )
    return [of_seed[0] for of_seed in found if of_seed]


def _score(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda line: line.get(name)


def _estimates(
    lines: Sequence[Sequence[Mapping[str, Any]]], measures: Mapping[str, Callable[[Mapping[str, Any]], Any]]
) -> dict[str, Estimate]:
    """Return the mean of each measure over seeds and prompts, from the responses of each seed."""
    found: dict[str, Estimate] = {}
    for name, value in measures.items():
        tables = [_cells((line["prompt"], value(line)) for line in of_seed) for of_seed in lines]
        if tables and (table := _table(tables))[0]:
            mean = mean_over_seeds(table)
            found[name] = Estimate(mean.mean, mean.low, mean.high)
    return found


def _win_rate(model: str, judge: str, rows: Sequence[Row], rounds: Sequence[Round]) -> dict[str, float]:
    tables = _rates(rounds, judge).get(model)
    if tables is None:
        return {}
    mean, rates = rate_over_seeds(tables), [row.win_rate[judge] for row in rows if judge in row.win_rate]
    counts = {name: sum(rate[name] for rate in rates) for name in ("wins", "ties", "losses")}
    return {"rate": mean.mean, "low": mean.low, "high": mean.high, "seeds": mean.seeds, **counts}


def _means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the seeds. A standard error over prompts is none over seeds."""
    names = dict.fromkeys(name for found in metrics for name in found if not name.endswith("standard_error"))
    values = {name: [found[name] for found in metrics if name in found] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def _total(seconds: Iterable[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return sum(known) if known else None


def _most(sizes: Iterable[int | None]) -> int | None:
    return max((one for one in sizes if one is not None), default=None)
