"""The result of a run and the advice on it, as sentences for the terminal and as a section of its page."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from alignment_core.advice import advise
from alignment_core.execution.build import StageResult
from alignment_core.markdown import code, message, plain
from alignment_core.outcome.result import Result, result_of
from alignment_core.outcome.sentences import advised, lines, next_steps
from alignment_core.plugin_api import Advice
from alignment_core.registry import load_registry


def result_of_run(built: Mapping[str, StageResult]) -> Result:
    """Return the result of a run from its stages, by their names in the plan."""
    return result_of({name: stage.artifact for name, stage in built.items()})


def advice_on_run(built: Mapping[str, StageResult]) -> list[Advice]:
    """Return the advice on a run from its stages, by their names in the plan."""
    optimizer = load_registry().optimizer(built["optimize"].artifact.manifest().config["optimizer"])
    return advise({name: stage.metrics for name, stage in built.items()}, optimizer)


def advice_on_runs(runs: Mapping[str, Mapping[str, StageResult]]) -> dict[Advice, list[str]]:
    """Return the advice on several runs, each with the names of the runs that it is for.

    Args:
        runs: the stages of each run by its name.
    """
    found: dict[Advice, list[str]] = {}
    for name, built in runs.items():
        for one in advice_on_run(built):
            found.setdefault(one, []).append(name)
    return found


def steps_after(result: Result, built: Mapping[str, StageResult], config: str) -> list[str]:
    """Return what to do with the model of a run, as commands."""
    store: Path = built["optimize"].artifact.path.parents[1]
    return list(next_steps(result, store, config))


def result_section(built: Mapping[str, StageResult]) -> Iterator[str]:
    """Yield the result, the advice and the next steps as paragraphs of markdown."""
    result = result_of_run(built)
    first, *others = lines(result)
    yield f"**{message(first)}**"
    if others:
        yield "\n".join(f"- {message(line)}" for line in others)
    steps = [step.strip("`") for step in steps_after(result, built, "CONFIG")]
    yield f"Next: {', '.join(map(code, steps))}"
    if advice := advice_on_run(built):
        yield "## Advice"
        yield "\n".join(map(advice_line, advice))


def advice_line(advice: Advice, runs: str = "") -> str:
    """Return an advice with its source as a line of a list in markdown, with the names of the runs that it is for."""
    (line,) = advised([advice])
    return f"- {f'**{plain(runs)}:** ' if runs else ''}{message(line)} *Source: {message(advice.source)}.*"


def best_of(runs: Mapping[str, Mapping[str, StageResult]]) -> str | None:
    """Return the name of the run with the highest win rate over the model that all started from, if it has one.

    Args:
        runs: the stages of each run by the name of its optimizer.
    """
    rates: dict[str, float] = {}
    for name, built in runs.items():
        result = result_of_run(built)
        if result.win_rates and result.win_rates[0].opponent == result.start:
            rates[name] = result.win_rates[0].rate
    return max(rates, key=lambda name: rates[name], default=None)
