"""`align feedback`: what is in the feedback store, out of it and into it."""

from pathlib import Path
from typing import Annotated

import typer

from alignment_core.config import PipelineConfig
from alignment_flows.command import AsJson, Changes, ConfigFile, command

FEEDBACK: str = PipelineConfig.model_fields["feedback"].default
Place = Annotated[str, typer.Option("--store", metavar="PLACE", help="The feedback store: an SQLite file or a URL.")]

Host = Annotated[str, typer.Option(help="Address to listen on; beyond this machine only with ALIGN_PASSWORD set.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)]

feedback_app = typer.Typer(help="The feedback store: what people and other raters said.", no_args_is_help=True)


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
        str | None, typer.Option(help="Who answers: an alias such as production, or a key; else the SFT model.")
    ] = None,
    changes: Changes = None,
) -> None:
    """Sample several responses to each prompt, and put them into the feedback store for `align rank`."""
    from alignment_core.config_file import load_config
    from alignment_flows.local import sample_responses

    settings = load_config(config, changes or ())
    kept = sample_responses(settings, model)
    typer.echo(f"{kept} prompts can be ranked, in {settings.feedback}: `align rank {config}`")


@command
def rank(
    config: ConfigFile,
    by: Annotated[
        str,
        typer.Option(
            help="Who ranks: people; or, marked as AI, endpoint (of evaluation), reward (the reward.model of the "
            "settings), or a trained reward model: its key, or the alias or key of a model that learned from it."
        ),
    ] = "people",
    host: Host = "127.0.0.1",
    port: Port = 7861,
    changes: Changes = None,
) -> None:
    """Serve a page on which people rank sampled responses, or let a model rank them; the settings' store keeps it."""
    from alignment_core.config_file import load_config
    from alignment_flows.pages import rank_by_ai, serve_rank

    settings = load_config(config, changes or ())
    if by == "people":
        serve_rank(settings, host, port)
    else:
        typer.echo(f"{rank_by_ai(settings, by)} rankings by a model, marked as such, in {settings.feedback}")


@command
def chat(
    config: ConfigFile,
    model: Annotated[str, typer.Option(help="A key, the beginning of one, an alias, or `latest`.")] = "production",
    host: Host = "127.0.0.1",
    port: Port = 7860,
    changes: Changes = None,
) -> None:
    """Serve a page on which people talk to the model in production and judge its answers."""
    from alignment_core.config_file import load_config
    from alignment_flows.pages import serve_chat

    serve_chat(load_config(config, changes or ()), model, host, port)


@command
def retrain(config: ConfigFile, changes: Changes = None, as_json: AsJson = False) -> None:
    """Retrain the model in production on the votes that came in since, and promote the new one if the gate says so."""
    from alignment_core.config_file import load_config
    from alignment_flows.local import run_retrain
    from alignment_flows.show import show_run, show_skipped

    done = run_retrain(load_config(config, changes or ()))
    if isinstance(done, str):
        show_skipped(done, as_json=as_json)
    else:
        show_run(done, as_json=as_json)


@feedback_app.command("show")
@command
def show(place: Place = FEEDBACK, as_json: AsJson = False) -> None:
    """Show how many votes there are, whose they are, and how far raters agree."""
    from alignment_flows.show_feedback import show_feedback

    show_feedback(place, as_json=as_json)


@feedback_app.command("export")
@command
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    history: Annotated[bool, typer.Option("--history", help="Superseded votes, too.")] = False,
    place: Place = FEEDBACK,
) -> None:
    """Write the votes as files that `data.sources` and `align data check` read."""
    from alignment_core.feedback import open_feedback
    from alignment_core.feedback.exchange import export
    from alignment_core.feedback.source import check_is_there

    check_is_there(place)
    with open_feedback(place) as store:
        counts = export(store, folder, history=history)
    typer.echo(f"{folder}: " + ", ".join(f"{count} votes in {name}" for name, count in counts.items() if count))


@feedback_app.command("import")
@command
def import_(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders, globs, URLs.")],
    format: Annotated[str | None, typer.Option(help="Name of the record format; else it is detected.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Ratings from here on are a thumbs up.")] = None,
    ai: Annotated[bool, typer.Option("--ai", help="The judgements are a model's: mark them so.")] = False,
    place: Place = FEEDBACK,
) -> None:
    """Add the judgements of files in any format that is read; what is there already is not added again."""
    from alignment_core.config import SourceConfig
    from alignment_core.feedback import open_feedback
    from alignment_core.feedback.exchange import import_votes
    from alignment_core.registry import load_registry

    sources = [SourceConfig(path=path, format=format, threshold=threshold) for path in paths]
    plugged = load_registry().formats()
    with open_feedback(place) as store:
        counts = import_votes(store, sources, kind="ai" if ai else "human", plugged=plugged)
    typer.echo(", ".join(f"{name} {count}" for name, count in counts.items()) or "there was nothing to add")
