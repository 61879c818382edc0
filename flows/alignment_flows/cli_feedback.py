"""`align feedback`: what is in the feedback store, out of it and into it."""

from pathlib import Path
from typing import Annotated

import typer

from alignment_core.config import PipelineConfig
from alignment_flows.command import AsJson, command

FEEDBACK: str = PipelineConfig.model_fields["feedback"].default
Place = Annotated[str, typer.Option("--store", metavar="PLACE", help="The feedback store: an SQLite file or a URL.")]

feedback_app = typer.Typer(help="The feedback store: what people and other raters said.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands to `align`."""
    app.add_typer(feedback_app, name="feedback")


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
