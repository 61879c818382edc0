"""Output of `align fit`: what was tried, and the settings to paste."""

import json

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignment_core.config import PipelineConfig
from alignment_core.data.ingestion.report.used import used_line
from alignment_core.forecast.card import ASSUMPTIONS
from alignment_core.forecast.fit import Attempt, Fit
from alignment_core.forecast.predictions import Prediction
from alignment_flows.cli.show.run import print_json

RECOMPUTING = (
    "↻ = gradient checkpointing: layers are recomputed in the backward pass, for up to half as much work again."
)


def show_fit(found: Fit, settings: PipelineConfig, *, as_json: bool) -> None:
    """Print every attempt with what it costs, and the result: memory by stage, and its changes as options."""
    result = found.result
    if as_json:
        attempts = [{**one.model_dump(), "fits": one.fits} for one in found.attempts]
        facts = {"run": settings.name, "device": found.device, "fits": result.fits, "model": result.model}
        print_json({**facts, "changes": found.changes, "attempts": attempts})
        return
    table = Table(box=None, padding=(0, 2, 0, 0), title=f"{settings.name} · {found.device}", title_justify="left")
    for head in ("tried", "costs", "largest stage"):
        table.add_column(head)
    table.add_column("GiB", justify="right", no_wrap=True)
    for attempt in found.attempts:
        stage, size = ("refused", "") if attempt.refused else _largest(attempt)
        table.add_row(escape(_words(attempt)), attempt.costs, stage, size)
    Console().print(table)
    for attempt in found.attempts:
        if attempt.refused:
            print(f"Refused with {_words(attempt)}: {attempt.refused}")
    if not result.fits:
        return
    available = min(stage.available for stage in result.stages.values())
    assumed = "" if found.card is None else f", if {ASSUMPTIONS}"
    print(f"Every stage fits into {_gib(available)} GiB{assumed}.")
    for name, predicted in result.stages.items():
        print(f"  {name}: {_gib(predicted.peak)} GiB, token budget {_budget(predicted)}")
    if any(stage.gradient_checkpointing for stage in result.stages.values()):
        print(RECOMPUTING)
    print(f"Sources: {used_line(result.used)}.")
    if found.changes:
        options = " ".join(f"--set {name}={_value(value)}" for name, value in found.changes.items())
        print(f"Add to the command, or write into the config file: {options}")
    else:
        print("No setting has to change.")


def _words(attempt: Attempt) -> str:
    if not attempt.changes:
        return "the settings as they are"
    return ", ".join(f"{name}: {_value(value)}" for name, value in attempt.changes.items())


def _largest(attempt: Attempt) -> tuple[str, str]:
    name = attempt.largest
    stage = attempt.stages[name]
    return name, f"{_gib(stage.peak)} {'fits' if stage.fits else '> ' + _gib(stage.available)}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _budget(stage: Prediction) -> str:
    return f"{stage.token_budget}" + (" ↻" if stage.gradient_checkpointing else "")


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
