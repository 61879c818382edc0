"""Output of the commands: tables, or one JSON object."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignment_core.addresses import hide_secrets
from alignment_core.config import PipelineConfig
from alignment_core.data.dataset.kinds import IN_WORDS
from alignment_core.data.ingestion.report.used import used_line
from alignment_core.execution.stage import ON_ONE_CARD, StageCall
from alignment_core.forecast.predictions import Prediction
from alignment_core.markdown import unmarked
from alignment_core.outcome.sentences import advised, lines
from alignment_core.plugin_api import Advice
from alignment_core.registry import Registry
from alignment_flows.planned_run import PlannedRun
from alignment_flows.reports.places import page_of
from alignment_flows.reports.result import advice_on_run, result_of_run, steps_after
from alignment_flows.serve.local.runs import FinishedRun

if TYPE_CHECKING:
    from alignment_core.testing import Report

KEY_DIGITS, SHORT_KEY = 12, 8
PLAN_COLUMNS = 80
NEEDS = ("rows", "tokens", "budget", "GiB", "time")
LEFT_OUT_IF_NARROW = ("key", "budget")
NEW_SECONDS = 60.0
"""A forecast of this age was made for this plan. An older one was remembered."""


def show_run(run: FinishedRun, config: Path, *, as_json: bool) -> None:
    """Print the stages of a finished run, its result, advice, and what to do with the model of the config file."""
    policy, page = run.stages["optimize"].artifact, page_of(run.name, run.stages)
    result = result_of_run(run.stages)
    if as_json:
        stages = [
            {
                "name": name,
                "key": built.artifact.key,
                "uri": built.artifact.uri,
                "cached": built.cached,
                "seconds": round(built.seconds, 3),
                "metrics": built.metrics,
            }
            for name, built in run.stages.items()
        ]
        facts = {"run": run.name, "flow_run_id": run.flow_run_id, "policy": policy.uri, "aliases": run.aliases}
        facts |= {"report": str(page) if page.is_file() else None}
        advice = [asdict(one) for one in advice_on_run(run.stages)]
        print_json({**facts, "stages": stages, "result": result.to_json(), "advice": advice})
        return
    table = Table("stage", "", "seconds", "artifact", title=run.name, title_justify="left")
    for name, built in run.stages.items():
        state = "cached" if built.cached else "built"
        table.add_row(name, state, f"{built.seconds:.1f}", f"{built.artifact.kind}/{built.artifact.key[:KEY_DIGITS]}…")
    Console().print(table)
    if all(built.cached for built in run.stages.values()):
        print("Nothing to do: every stage is already in the store.")
    for line in lines(result):
        show_sentence(line)
    show_advice(advice_on_run(run.stages))
    print(f"Aligned adapter: {policy.uri}")
    if page.is_file():
        print(f"Report: {page}")
    show_next(steps_after(result, run.stages, shlex.quote(str(config))))


def show_advice(advice: Sequence[Advice], runs: str = "") -> None:
    """Print the advice on a run, if there is any, with the names of the runs of a comparison that it is for."""
    for line in advised(advice):
        show_sentence(f"Advice for {runs}: {line}" if runs else f"Advice: {line}")


def command_line(name: str, config: Path, changes: Sequence[str]) -> str:
    """Return the line that runs a command on a config file with changed settings, without their secrets."""
    options = (f"--set {shlex.quote(hide_secrets(change))}" for change in changes)
    return " ".join(("align", name, shlex.quote(str(config)), *options))


def show_next(steps: Sequence[str], model: str = "") -> None:
    """Print the commands that come next, for a model if it is named: each on a line of its own that can be copied."""
    print(f"Next, for {model}:" if model else "Next:")
    for step in steps:
        print(f"  {step.strip('`')}")


def show_sentence(text: str) -> None:
    """Print a message of any length, its names without backticks. A terminal gets lines that end between words."""
    text = unmarked(text)
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    print(text)


def show_skipped(why: str, *, as_json: bool) -> None:
    """Print why the retrain was skipped."""
    if as_json:
        print_json({"skipped": why})
    else:
        print(f"Skipped: {why}")


def show_plan(planned: PlannedRun, *, as_json: bool) -> None:
    """Print the stages of a planned run: which are cached, and the memory and time that the others need."""
    config, calls, found, forecast = planned.settings, planned.calls, planned.found, planned.forecast
    if as_json:
        stages = [
            {
                "name": name,
                "key": call.key,
                "parents": call.reads(),
                "cached": found[name] is not None,
                "gpus": call.cards,
                "pulled_bytes": planned.pulled.get(name),
                "pool": None if call.runtime.pool is None else call.runtime.pool.name,
                "uri": artifact.uri if (artifact := found[name]) else None,
                "prediction": _prediction(forecast.stages.get(name)),
            }
            for name, call in calls.items()
        ]
        shared = {"device", "parameters", "trainable", "notes", "rows", "used", "sampled", "requests", "made"}
        model = forecast.model_dump(include=shared)
        advice = [asdict(one) for one in planned.advice()]
        shown = {"run": config.name, "store": str(config.store.absolute()), **model, "stages": stages, "advice": advice}
        print_json(shown)
        return
    console = Console()
    narrow = console.width < PLAN_COLUMNS
    console.print(_plan_table(planned, narrow=narrow))
    for pool in dict.fromkeys(config.where.values()):
        there = [name for name, call in calls.items() if call.runtime.pool and call.runtime.pool.name == pool]
        print(f"In the work pool {pool}: {', '.join(there) or 'no stage'}.")
    if planned.pulled:
        artifacts = "1 artifact" if len(planned.pulled) == 1 else f"{len(planned.pulled)} artifacts"
        print(f"To pull from the remote: {artifacts}, {readable_size(sum(planned.pulled.values()))}.")
    predictions = forecast.stages.values()
    if predictions:
        print("GiB = peak memory." if narrow else "budget = most tokens in one micro-batch; GiB = peak memory.")
        print(f"Available memory: {min(stage.available for stage in predictions) / 2**30:.2f} GiB.")
        times = [stage.seconds for stage in predictions if stage.seconds is not None]
        if len(times) == len(predictions):
            age = time.time() - forecast.made
            measured = f", at the speed measured {_duration(age)} ago" if age > NEW_SECONDS else ""
            print(f"Time: about {_duration(sum(times))} in all{measured}.")
    show_cards(config, calls)
    if any(stage.gradient_checkpointing for stage in predictions):
        print("↻ = gradient checkpointing: activations are recomputed to save memory.")
    if any(stage.gradient_checkpointing > 1 for stage in predictions):
        print("↻2, ↻4 = only in every second or fourth layer.")
    rows = ", ".join(f"{count:,} {IN_WORDS[kind]}" for kind, count in forecast.rows.items())
    print(f"Training data: {rows}.")
    print(f"Sources: {used_line(forecast.used)}.")
    if (sampled := forecast.sampled) is not None:
        print(f"Rows, tokens and times are estimated from {sampled['records']:,} of {sampled['of']:,} records.")
    if forecast.requests:
        counts = ", ".join(f"{count:,} by {name}" for name, count in forecast.requests.items())
        print(f"Requests to {config.evaluation.endpoint.url if config.evaluation.endpoint else ''}: {counts}.")
    print(f"Model: {forecast.parameters:,} parameters, {forecast.trainable:,} in the adapter, on {forecast.device}.")
    for note in forecast.notes:
        print(f"{note[0].upper()}{note[1:]}.")
    show_advice(planned.advice())


def _plan_table(planned: PlannedRun, *, narrow: bool) -> Table:
    """Return the stages and what they need in 80 columns, or in 60 without key and token budget."""
    config, forecast = planned.settings, planned.forecast
    heads = ("stage", "", "key", *NEEDS)
    shown = [place for place, head in enumerate(heads) if not (narrow and head in LEFT_OUT_IF_NARROW)]
    title = f"{config.name} · {config.store.absolute()}"
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    for place in shown:
        table.add_column(heads[place], justify="right" if heads[place] in NEEDS else "left", no_wrap=True)
    for name, call in planned.calls.items():
        state = "cached" if planned.found[name] is not None else "to pull" if name in planned.pulled else "to run"
        cells = (name, state, call.key[:SHORT_KEY], *_predicted(forecast.stages.get(name)))
        table.add_row(*(cells[place] for place in shown))
    return table


def show_cards(settings: PipelineConfig, calls: Mapping[str, StageCall]) -> None:
    """Print which stages several cards share, if the settings ask for several."""
    if settings.gpus == 1:
        return
    unit = "processes on the CPU" if settings.device == "cpu" else "cards"
    shared = ", ".join(name for name, call in calls.items() if call.cards > 1)
    show_sentence(f"{settings.gpus} {unit} share {shared}. Memory is for each of them. Times are those of one.")
    alone = [name for name, call in calls.items() if call.stage in ON_ONE_CARD]
    if alone:
        show_sentence(f"Not shared: {', '.join(alone)}.")


def _prediction(stage: Prediction | None) -> dict[str, Any] | None:
    return None if stage is None else {**stage.model_dump(), "peak": stage.peak, "fits": stage.fits}


def _predicted(stage: Prediction | None) -> tuple[str, ...]:
    if stage is None:
        return ("",) * 5
    budget = f"{stage.token_budget}" + _recomputed(stage.gradient_checkpointing)
    memory = f"{stage.peak / 2**30:.2f}"
    return f"{stage.rows:,}", f"{stage.tokens:,}", budget, memory, _duration(stage.seconds)


def _recomputed(every: int) -> str:
    return "" if not every else " ↻" if every == 1 else f" ↻{every}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def readable_size(size: float) -> str:
    """Format a number of bytes with a unit."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def show_plugins(registry: Registry, *, as_json: bool) -> None:
    """Print every plugin with its settings, and the plugins that failed to load."""
    plugins = [plugin.to_json() for plugin in registry.plugins]
    if as_json:
        print_json({"plugins": plugins, "problems": [str(problem) for problem in registry.problems]})
        return
    console = Console()
    for plugin in plugins:
        console.print(f"[bold]{plugin['name']}[/] · {plugin['kind']} of {plugin['package']} {plugin['version']}")
        console.print(f"  {plugin['description']}", markup=False, highlight=False)
        if plugin["needs"]:
            console.print(f"  needs: {', '.join(plugin['needs'])}")
        table = Table("setting", "type", "default", "", box=None, padding=(0, 2), pad_edge=True)
        for setting in plugin["settings"]:
            default = "required" if setting["required"] else json.dumps(setting["default"], ensure_ascii=False)
            cells = (setting["name"], setting["type"], default, setting["description"])
            table.add_row(*map(escape, cells))
        console.print(table)
        console.print()
    for problem in registry.problems:
        trace = f"\n{problem.trace}" if problem.trace else ""
        print(f"not usable: {problem}{trace}", file=sys.stderr)


def print_json(value: Mapping[str, Any]) -> None:
    """Print a JSON object on one line."""
    print(json.dumps(value, ensure_ascii=False))


def show_check(report: "Report", *, as_json: bool) -> None:
    """Print the results of the conformance kit."""
    if as_json:
        results = [asdict(result) for result in report.results]
        print_json({"plugin": report.plugin, "passed": report.passed, "results": results})
        return
    table = Table("check", "", "", title=report.plugin, title_justify="left")
    colours = {"passed": "green", "warning": "yellow", "failed": "red", "not run": "red"}
    for result in report.results:
        table.add_row(result.check, f"[{colours[result.outcome]}]{result.outcome}[/]", escape(result.detail))
    Console().print(table)
