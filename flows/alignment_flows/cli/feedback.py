"""The commands that collect, show and use feedback: `sample`, `rank`, `chat`, `retrain` and `align feedback`."""

from pathlib import Path
from typing import Annotated

import typer

from alignment_core.addresses import hide_secrets
from alignment_core.config import PipelineConfig
from alignment_flows.cli.command import AsJson, Changes, Columns, ConfigFile, Desirable, command, named_columns

FEEDBACK: str = PipelineConfig.model_fields["feedback"].default
Place = Annotated[
    str, typer.Option("--store", metavar="PLACE", help="Feedback store: an SQLite file or a database URL.")
]

Host = Annotated[
    str, typer.Option(help="Address to listen on. Other machines can connect only if ALIGN_PASSWORD is set.")
]
Port = Annotated[int, typer.Option(help="Port to listen on. 0 picks a free port.", min=0, max=65535)]

feedback_app = typer.Typer(help="Show, export and import votes.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands to `align`."""
    app.command("sample")(sample)
    app.command("rank")(rank)
    app.command("chat")(chat)
    app.command("retrain")(retrain)
    app.add_typer(feedback_app, name="feedback")


@command
def sample(
    config: ConfigFile,
    model: Annotated[
        str | None,
        typer.Option(help="Model to sample from, as for `align chat`. Default: the SFT model."),
    ] = None,
    changes: Changes = None,
) -> None:
    """Sample several responses to each prompt and add them to the feedback store for `align rank`."""
    from alignment_flows import api
    from alignment_flows.cli.show.run import command_line, show_next

    settings = api.load_settings(config, changes or ())
    kept = api.sample(settings, model)
    prompts = "1 prompt is" if kept == 1 else f"{kept} prompts are"
    typer.echo(f"{prompts} ready to rank in {hide_secrets(settings.feedback)}.")
    show_next([command_line("rank", config, changes or ())])


@command
def rank(
    config: ConfigFile,
    by: Annotated[
        str,
        typer.Option(
            help="Who ranks. `people`: the ranking page. The others are recorded as AI votes. `endpoint`: "
            "evaluation.endpoint. `reward`: reward.model. Otherwise a trained reward model: its key, or the alias or "
            "key of a model that was trained with it."
        ),
    ] = "people",
    host: Host = "127.0.0.1",
    port: Port = 7861,
    changes: Changes = None,
) -> None:
    """Serve a page for ranking sampled responses, or let a model rank them. Votes go to the feedback store."""
    from alignment_core.config_file import load_config
    from alignment_flows.serve.local.settings import prepared, resolved
    from alignment_flows.serve.pages import rank_by_ai, serve_rank

    settings = load_config(config, changes or ())
    if by == "people":
        serve_rank(resolved(settings), host, port)
    else:
        count = rank_by_ai(prepared(settings), by)
        typer.echo(f"Added {count} AI {'ranking' if count == 1 else 'rankings'} to {hide_secrets(settings.feedback)}.")


@command
def chat(
    config: ConfigFile,
    model: Annotated[
        str,
        typer.Option(
            help="An alias, the name of a run, a key, a key prefix, `latest` for the newest aligned model of this run, "
            "or `base` for the base model of the settings."
        ),
    ] = "production",
    beside: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A second model, which also answers each message.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    changes: Changes = None,
) -> None:
    """Serve a page for chatting with a model, or with two side by side, and rating the answers."""
    from alignment_core.config_file import load_config
    from alignment_flows.serve.local.settings import resolved
    from alignment_flows.serve.pages import serve_chat

    models = [model] if beside is None else [model, beside]
    serve_chat(resolved(load_config(config, changes or ())), models, host, port)


@command
def retrain(config: ConfigFile, changes: Changes = None, as_json: AsJson = False) -> None:
    """Retrain the production model on new votes, and promote the result if it passes the gate."""
    from alignment_core.planning.retrain import TooFewVotes
    from alignment_flows import api
    from alignment_flows.cli.show.run import show_run, show_skipped

    done = api.retrain(api.load_settings(config, changes or ()))
    if isinstance(done, TooFewVotes):
        show_skipped(str(done), as_json=as_json)
    else:
        show_run(done, config, as_json=as_json)


@feedback_app.command("show")
@command
def show(place: Place = FEEDBACK, as_json: AsJson = False) -> None:
    """Show the votes of each rater and how often raters agree."""
    from alignment_flows.cli.show.feedback import show_feedback

    show_feedback(place, as_json=as_json)


@feedback_app.command("export")
@command
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to create.")],
    history: Annotated[bool, typer.Option("--history", help="Include superseded votes.")] = False,
    place: Place = FEEDBACK,
) -> None:
    """Export the votes to files that `data.sources` and `align data check` can read."""
    from alignment_core.feedback import open_feedback
    from alignment_core.feedback.data_source import check_exists
    from alignment_core.feedback.import_export import export

    check_exists(place)
    with open_feedback(place) as store:
        counts = export(store, folder, history=history)
    found = [f"{count} {'row' if count == 1 else 'rows'} in {name}" for name, count in counts.items() if count]
    typer.echo(f"{folder}: {', '.join(found)}")


@feedback_app.command("import")
@command
def import_(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders, globs or URLs.")],
    format: Annotated[str | None, typer.Option(help="Record format. Default: detected.")] = None,
    columns: Columns = None,
    threshold: Annotated[float | None, typer.Option(help="Ratings at or above this count as a thumbs up.")] = None,
    desirable: Desirable = None,
    ai: Annotated[bool, typer.Option("--ai", help="Record the votes as AI votes.")] = False,
    place: Place = FEEDBACK,
) -> None:
    """Import votes from files in any supported format. Votes that are already in the store are skipped."""
    from alignment_core.config import SourceConfig
    from alignment_core.feedback import open_feedback
    from alignment_core.feedback.import_export import import_votes
    from alignment_core.registry import load_registry
    from alignment_flows.cli.show.feedback import show_imported

    given = {"format": format, "columns": named_columns(columns or ()), "threshold": threshold}
    sources = [SourceConfig(path=path, desirable=desirable or [], **given) for path in paths]
    plugged = load_registry().formats()
    with open_feedback(place) as store:
        counts = import_votes(store, sources, kind="ai" if ai else "human", plugged=plugged)
    show_imported(hide_secrets(place), counts)
