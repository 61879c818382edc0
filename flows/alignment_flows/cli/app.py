"""The `align` command. Each subcommand imports what it needs when it runs, so that `align --help` stays fast."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from alignment_flows.cli import compare, data, export, feedback, init, store
from alignment_flows.cli.command import (
    AsJson,
    Card,
    Changes,
    ConfigFile,
    command,
)
from alignment_flows.cli.groups import Commands, show_version
from alignment_flows.terminal.spinner import at_work

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
plugins_app = typer.Typer(help="List, check and create plugins.", no_args_is_help=True)
app.add_typer(plugins_app, name="plugins")
data.add_to(app)
init.add_to(app)
compare.add_to(app)
export.add_to(app)
store.add_to(app)
feedback.add_to(app)


@app.callback()
def align(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Turn raw human feedback into an aligned adapter on one GPU."""


@app.command()
@command
def run(config: ConfigFile, changes: Changes = None, as_json: AsJson = False) -> None:
    """Run the pipeline. Stages that are already in the artifact store are not built again."""
    from alignment_flows import api
    from alignment_flows.cli.show.run import show_run

    show_run(api.run(api.load_settings(config, changes or ())), config, as_json=as_json)


@app.command()
@command
def plan(
    config: ConfigFile,
    changes: Changes = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Show what `align retrain` would build.")] = False,
    card: Card = None,
    as_json: AsJson = False,
) -> None:
    """Show which stages a run would build, with their memory and time. Fail if a stage does not fit into memory."""
    from alignment_flows import api
    from alignment_flows.cli.show.run import command_line, show_next, show_plan, show_skipped
    from alignment_flows.planned_run import PlannedRun

    settings, size = api.load_settings(config, changes or ()), _size(card)
    with at_work("Reading the data and predicting memory and time"):
        planned = api.plan_retraining(settings, size) if retrain else api.plan(settings, size)
    if not isinstance(planned, PlannedRun):
        show_skipped(str(planned), as_json=as_json)
        return
    show_plan(planned, as_json=as_json)
    planned.check_memory()
    if not as_json:
        show_next([command_line("retrain" if retrain else "run", config, changes or ())])


@app.command()
@command
def fit(
    config: ConfigFile,
    changes: Changes = None,
    card: Card = None,
    models: Annotated[
        str | None,
        typer.Option(metavar="BASE,...", help="Further base models to try, in this order, if the run does not fit."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find settings with which a run fits into memory, and say what they cost. Nothing is built."""
    from alignment_core.forecast.fit import check_fit
    from alignment_flows import api
    from alignment_flows.cli.show.fit import show_fit

    settings = api.load_settings(config, changes or ())
    with at_work("Reading the data and trying settings"):
        found = api.fit(settings, _size(card), [name.strip() for name in models.split(",")] if models else ())
    show_fit(found, settings, as_json=as_json)
    check_fit(found)


def _size(card: str | None) -> float | None:
    from alignment_core.forecast.card import card_size

    return None if card is None else card_size(card)


@app.command()
@command
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for the artifacts and the report.")] = Path("align-demo"),
    seed: Annotated[int, typer.Option(help="Random seed of the demo.")] = 0,
) -> None:
    """Align a tiny model on synthetic data with DPO, KTO and PPO, and score the results by a known rule."""
    from alignment_flows.cli.demo import run_demo

    run_demo(folder, seed)


@app.command()
@command
def tour(
    folder: Annotated[Path, typer.Option(help="Folder for the artifacts and the report.")] = Path("align-tour"),
    model: Annotated[
        str | None,
        typer.Option(help="Chat model, as in model.base. Default: SmolLM2, from the Hub or a package."),
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Let a rule rank the answers instead of you.")] = False,
    words: Annotated[
        int, typer.Option(min=1, help="The rule: an answer's first sentence has at most this many words.")
    ] = 10,
    questions: Annotated[int, typer.Option(min=8, max=120, help="Number of questions.")] = 80,
    port: Annotated[int, typer.Option(help="Port of the pages. 0 picks a free port.", min=0, max=65535)] = 7861,
) -> None:
    """Talk to a small chat model, rate its answers, retrain it on them, and talk to both models. Needs no GPU."""
    from alignment_flows.cli.tour import run_tour

    run_tour(folder, model, auto=auto, words=words, questions=questions, port=port)


@app.command()
@command
def up(
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the Prefect server. Ignored if PREFECT_API_URL is set.")
    ] = 4200,
    gpus: Annotated[
        bool,
        typer.Option("--gpus", help="Start a worker for each GPU of this machine, or in CUDA_VISIBLE_DEVICES if set."),
    ] = False,
) -> None:
    """Start a Prefect server and its workers in the background, and register the deployments."""
    from alignment_flows.serve.lifecycle import up

    up(port, gpus=gpus)


@app.command()
@command
def down() -> None:
    """Stop the server and the workers that `align up` started. Runs in progress write a checkpoint first."""
    from alignment_flows.serve.lifecycle import down

    down()


@app.command()
@command
def deploy(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="CONFIG...", help="Config files to deploy. Default: the built-in deployments."),
    ] = None,
    pools: Annotated[
        list[str] | None,
        typer.Option("--pool", metavar="POOL", help="Work pool to run stages in, as in `where`. Can be repeated."),
    ] = None,
) -> None:
    """Register or update deployments, for example after installing a plugin. Changes made in the browser are kept."""
    from alignment_flows.serve.lifecycle import deploy

    deploy(configs or (), pools or ())


@plugins_app.command("list")
@command
def list_plugins(as_json: AsJson = False) -> None:
    """List the installed plugins with their settings, and the plugins that failed to load."""
    from alignment_core.registry import load_registry
    from alignment_flows.cli.show.run import show_plugins

    show_plugins(load_registry(), as_json=as_json)


@plugins_app.command("check")
@command
def check_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of an installed plugin.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A=VALUE", help="Set one setting of the plugin. Can be repeated."),
    ] = None,
    kind: Annotated[
        Literal["optimizer", "format", "evaluator", "pair_evaluator", "listener"] | None,
        typer.Option(help="Kind of the plugin, if several have this name."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a plugin keeps its contract, an optimizer on a tiny model. Exits with code 1 if a check fails."""
    from alignment_core.config_file import parse_changes
    from alignment_core.registry import load_registry
    from alignment_flows.cli.show.run import show_check

    plugin = load_registry().plugin(name, kind)
    settings = parse_changes(changes or ())
    from alignment_core.testing import check_plugin  # imports torch, which only this command needs

    report = check_plugin(plugin.cls, settings)
    show_check(report, as_json=as_json)
    if not report.passed:
        raise typer.Exit(1)


@plugins_app.command("new")
@command
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new plugin, e.g. my-loss.")],
    kind: Annotated[
        Literal["optimizer", "on-policy", "format", "evaluator", "listener"],
        typer.Option(
            help="What it adds: an optimizer that learns from recorded feedback, an optimizer that learns from sampled "
            "responses (on-policy), a record format, an evaluator or a listener."
        ),
    ] = "optimizer",
    folder: Annotated[Path, typer.Option(help="Parent of the new folder alignment-NAME.")] = Path(),
) -> None:
    """Create a working plugin with its module, packaging and tests."""
    from alignment_core.registry import load_registry
    from alignment_flows.cli.scaffold import new_plugin

    made = new_plugin(name, kind, folder, load_registry())
    typer.echo(f"Created a working plugin in {made}. Test it with `cd {made} && python -m pytest`, then edit it.")


def main() -> None:
    """Entry point of the command."""
    app()
