"""The command `align`. Every import beyond the bare minimum waits until its command runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from alignment_core.errors import ConfigError
from alignment_flows import cli_compare, cli_export, cli_feedback, cli_store
from alignment_flows.command import AsJson, Changes, ConfigFile, command

app = typer.Typer(
    help="From raw human feedback to an aligned adapter, on one GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
plugins_app = typer.Typer(help="Installed optimizers, formats, evaluators and listeners.", no_args_is_help=True)
data_app = typer.Typer(help="Look at feedback before anything is trained.", no_args_is_help=True)
app.add_typer(plugins_app, name="plugins")
app.add_typer(data_app, name="data")
cli_compare.add_to(app)
cli_export.add_to(app)
cli_store.add_to(app)
cli_feedback.add_to(app)


@app.command()
@command
def run(config: ConfigFile, changes: Changes = None, as_json: AsJson = False) -> None:
    """Run the pipeline: whatever is not in the artifact store already is built."""
    from alignment_core.config_file import load_config
    from alignment_flows.local import run_pipeline
    from alignment_flows.show import show_run

    show_run(run_pipeline(load_config(config, changes or ())), as_json=as_json)


@app.command()
@command
def plan(
    config: ConfigFile,
    changes: Changes = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="What `align retrain` would build.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would build, with the memory and time it will take; refuse what cannot fit."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.config_file import load_config
    from alignment_core.registry import load_registry
    from alignment_core.stages.plan import make_plan
    from alignment_core.stages.plan_retrain import TooFew, plan_retrain
    from alignment_core.stages.prediction import predict, refuse_what_does_not_fit
    from alignment_flows.show import show_plan, show_skipped

    settings = load_config(config, changes or ())
    made = (plan_retrain if retrain else make_plan)(settings, load_registry())
    if isinstance(made, TooFew):
        show_skipped(str(made), as_json=as_json)
        return
    calls = made.calls()
    store = ArtifactStore(settings.store)
    found = {name: store.find(call.key) for name, call in calls.items()}
    forecast = predict(calls, [name for name, artifact in found.items() if artifact is None])
    show_plan(settings, calls, found, forecast, as_json=as_json)
    refuse_what_does_not_fit(forecast, calls)


@app.command()
@command
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for the artifacts and the report.")] = Path("align-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the demo's world and of everything in it.")] = 0,
) -> None:
    """Make a small world, align a tiny model in it with DPO, KTO and PPO, and measure them by its true rule."""
    from alignment_flows.demo_report import run_demo

    run_demo(folder, seed)


@app.command()
@command
def up(
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the Prefect server, unless PREFECT_API_URL names one.")
    ] = 4200,
) -> None:
    """Start a Prefect server and its workers in the background, with every deployment ready to run by a click."""
    from alignment_flows.background import start

    start(port)


@app.command()
@command
def down() -> None:
    """End what `align up` started, and nothing else; runs in progress write a checkpoint first."""
    from alignment_flows.background import stop

    stop()


@app.command()
@command
def deploy(
    configs: Annotated[
        list[Path] | None, typer.Argument(metavar="CONFIG...", help="Your own settings; none: what is always there.")
    ] = None,
) -> None:
    """Register the deployments, or refresh them after a plugin was installed; schedules stay as they were set."""
    from alignment_flows.background import refresh

    refresh(configs or ())


@plugins_app.command("list")
@command
def list_plugins(as_json: AsJson = False) -> None:
    """Show every installed plugin with its settings, and those that do not work."""
    from alignment_core.registry import load_registry
    from alignment_flows.show import show_plugins

    show_plugins(load_registry(), as_json=as_json)


@plugins_app.command("check")
@command
def check_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of an installed optimizer.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="A=VALUE", help="One of its settings; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try an optimizer on a tiny model: does it keep the contract? Exit code 1 if it does not."""
    from alignment_core.config_file import parse_changes
    from alignment_core.registry import load_registry
    from alignment_flows.show import show_check

    optimizer = load_registry().optimizer_class(name)
    from alignment_core.testing import check  # torch: only this command waits for it

    report = check(optimizer, **parse_changes(changes or ()))
    show_check(report, as_json=as_json)
    if not report.passed:
        raise typer.Exit(1)


@plugins_app.command("new")
@command
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the optimizer is chosen by, e.g. my-loss.")],
    kind: Annotated[
        Literal["offline", "on-policy"], typer.Option(help="Learns from recorded feedback, or from what it samples.")
    ] = "offline",
    folder: Annotated[Path, typer.Option(help="Where the folder alignment-NAME is made.")] = Path(),
) -> None:
    """Write a working optimizer plugin of your own: its module, its packaging and its tests."""
    from alignment_core.registry import load_registry
    from alignment_flows.scaffold import new_plugin

    made = new_plugin(name, kind, folder, load_registry())
    typer.echo(f"{made} holds a plugin that works: `cd {made}`, `python -m pytest`, then make it yours.")


@data_app.command()
@command
def check(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Files, folders, globs, URLs, hf://owner/name.")
    ],
    format: Annotated[str | None, typer.Option(help="Name of the record format; else it is detected.")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="A column under another name, e.g. prompt=question."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer counts the tokens; else bytes count.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="File or built-in name, as in model.chat_template; else the model's own.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=16, help="Longest sequence in tokens, as in model.max_length.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Ratings from here on are a thumbs up.")] = None,
    desirable: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="A label that means thumbs up, all others down.")
    ] = None,
    max_pairs: Annotated[int | None, typer.Option(min=1, help="At most this many pairs of one ranking.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub data set.")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a hub data set that has several.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set; else train.")] = None,
    held_out: Annotated[
        float | None, typer.Option(min=0.001, max=0.999, help="Share of conversations kept away from training.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for report.html, the data set and the bad rows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read feedback as a run would, and report what is in it, without training."""
    from alignment_core.data.check import check, unusable
    from alignment_core.feedback.source import stores_as_files
    from alignment_core.registry import load_registry
    from alignment_flows.show import show_data

    settings = {"format": format, "threshold": threshold, "max_pairs": max_pairs}
    settings |= {"revision": revision, "subset": subset, "split": split}
    given = {name: value for name, value in settings.items() if value is not None}
    with stores_as_files(paths) as files:
        report = check(
            files,
            model=model,
            chat_template=chat_template,
            max_length=max_length,
            held_out_fraction=held_out,
            out=_new(out),
            plugged=load_registry().formats(),
            source={**given, "columns": _named(columns or ()), "desirable": desirable or []},
        )
    show_data(report, as_json=as_json)
    if problem := unusable(report):
        raise problem


def _named(columns: Iterable[str]) -> dict[str, str]:
    pairs = [column.partition("=") for column in columns]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            raise ConfigError("a column is not named", where="--column", got=ours, expected="OURS=THEIRS")
    return {ours: theirs for ours, _, theirs in pairs}


def _new(folder: Path | None) -> Path | None:
    if folder is not None and folder.exists():
        raise ConfigError("the folder exists already", where="--out", got=folder, do="Name a new one")
    return folder


def main() -> None:
    """Entry point of the command."""
    app()
