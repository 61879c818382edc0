"""`align init`: look at the data, recommend an optimizer, and write a first config file."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment_core.addresses import hide_secrets
from alignment_core.errors import ConfigError
from alignment_flows.cli.command import Columns, Desirable, command, named_columns
from alignment_flows.starting.advice import GOALS, Contents, Goal, recommend
from alignment_flows.starting.config_text import Choices, config_text, is_instruct, model_for
from alignment_flows.terminal.spinner import at_work

CPU = "cpu"
OUT = Path("my-model.yaml")


def add_to(app: typer.Typer) -> None:
    """Add the command to `align`."""
    app.command("init")(init)


@command
def init(
    data: Annotated[
        list[str] | None, typer.Argument(metavar="DATA...", help="Files, folders, globs, URLs or hf://owner/name.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model, as in model.base. Default: one that fits.")] = None,
    card: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of the GPU, e.g. 12gb, or cpu. Default: this machine's.")
    ] = None,
    goal: Annotated[
        Goal | None,
        typer.Option(
            help="prefer: answer as people prefer. solve: give right answers. imitate: follow demonstrations."
        ),
    ] = None,
    columns: Columns = None,
    desirable: Desirable = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Config file to write.")] = OUT,
) -> None:
    """Look at your data, recommend an optimizer, and write a short config file that is ready to run.

    Asks for what is not given, if it is run in a terminal.
    """
    if out.exists():
        raise ConfigError("the file already exists", where=str(out), do="Name another one with --out")
    asks = sys.stdin.isatty()
    paths = data or ([_ask("Your feedback (file, folder, glob, URL or hf://owner/name)")] if asks else [])
    if not paths:
        raise ConfigError("no data are given", where="DATA", do="Name a file: `align init ./feedback.json`")
    settings = {"columns": named_columns(columns or ()), "desirable": desirable or []}
    with at_work("Reading the data"):
        report, thresholds, contents = _look_at(paths, settings)
    print(f"Found {contents.in_words()}.")
    _tell_what_is_left_out(report, out)
    size = _card(card, asks=asks)
    base = model or _asked("Base model", model_for(size), asks=asks)
    advice = recommend(contents, goal or _goal(contents, base, asks=asks), instruct=is_instruct(base))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", out.stem).strip("-._") or "my-model"
    longest = int(report["fit"]["longest"] or 0)
    text = config_text(Choices(name, paths, base, size, settings, thresholds, longest), contents, advice)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    _tell(out, advice.optimizer, advice.because, advice.first, thresholds, size)


def _look_at(paths: Sequence[str], settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float], Contents]:
    """Return the data report, the thresholds of sources with ratings, and what the data hold.

    Raises:
        AlignmentError: the data cannot be read, or no row can be used.
    """
    from alignment_core.data.ingestion.check import no_usable_rows
    from alignment_flows import data_checks
    from alignment_flows.starting.answers import find_answers, first_rows

    report = data_checks.check_data(*paths, **settings)
    needed = zip(paths, report["thresholds"], strict=True)
    thresholds = {path: threshold for path, threshold in needed if threshold is not None}
    if thresholds:
        report = data_checks.check_data(*paths, threshold=max(thresholds.values()), **settings)
    if problem := no_usable_rows(report):
        raise problem
    answers = find_answers([row for path in paths for row in first_rows(path)])
    return report, thresholds, Contents.of(report, answers)


def _tell_what_is_left_out(report: Mapping[str, Any], config: Path) -> None:
    """Print how many records cannot be used, and where the reasons are once the config file is written."""
    if (left := report["used"]["of"] - report["used"]["records"]) > 0:
        command = f"align data check {shlex.quote(str(config))}"
        print(f"Left out {left:,} of {report['used']['of']:,} records. Why: `{command}`")


def _card(given: str | None, *, asks: bool) -> float | None:
    """Return the memory of the card in GB, or None for the CPU."""
    from alignment_core.forecast.card import card_size

    text = given or _asked("GPU memory such as 12gb, or cpu", _here(), asks=asks)
    return None if text.strip().lower() == CPU else card_size(text)


def _here() -> str:
    """Return the memory of this machine's first NVIDIA card, or `cpu`."""
    if (program := shutil.which("nvidia-smi")) is None:
        return CPU
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return f"{round(int(found[0]) / 1024)}gb" if found and found[0].isdigit() else CPU


def _goal(contents: Contents, model: str, *, asks: bool) -> Goal | None:
    """Ask for the goal if the data leave a choice."""
    best = recommend(contents, None, instruct=is_instruct(model)).goal
    if not asks:
        return best
    words = "; ".join(f"{name}: {meaning}" for name, meaning in GOALS.items())
    answer = _ask(f"Goal ({words})", best)
    if answer not in GOALS:
        raise ConfigError("there is no such goal", where="--goal", got=answer, expected=f"one of {', '.join(GOALS)}")
    return answer


def _asked(question: str, default: str, *, asks: bool) -> str:
    return _ask(question, default) if asks else default


def _ask(question: str, default: str | None = None) -> str:
    answer: str = typer.prompt(question, default=default)
    return answer


def _tell(
    out: Path, optimizer: str, because: str, first: str, thresholds: dict[str, float], card: float | None
) -> None:
    print(f"Recommended: {optimizer}, because {because}.")
    for path, threshold in thresholds.items():
        print(f"In {hide_secrets(path)}, ratings from {threshold:g} on are a thumbs up. Otherwise change `threshold`.")
    if first:
        print(f"First: {first}.")
    size = "" if card is None else f" --card {card:g}gb"
    print(f"Wrote {out}.")
    from alignment_flows.cli.show.run import command_line, show_next

    show_next([command_line("plan", out, ()) + size, command_line("run", out, ())])
