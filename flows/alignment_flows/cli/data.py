"""`align data check`: what feedback contains, before anything is trained."""

from pathlib import Path
from typing import Annotated

import typer

from alignment_flows.cli.command import AsJson, Columns, Desirable, command, named_columns
from alignment_flows.terminal.spinner import at_work


def add_to(app: typer.Typer) -> None:
    """Add the command to `align`."""
    data_app = typer.Typer(help="Inspect feedback before training.", no_args_is_help=True)
    data_app.command("check")(check)
    app.add_typer(data_app, name="data")


@command
def check(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Files, folders, globs, URLs or hf://owner/name.")
    ],
    format: Annotated[str | None, typer.Option(help="Record format. Default: detected.")] = None,
    columns: Columns = None,
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer counts tokens. Default: count bytes.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="File or built-in name, as in model.chat_template. Default: the model's.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=16, help="Maximum sequence length in tokens, as in model.max_length.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Ratings at or above this count as a thumbs up.")] = None,
    desirable: Desirable = None,
    max_pairs: Annotated[int | None, typer.Option(min=1, help="Maximum number of pairs per ranking.")] = None,
    max_records: Annotated[
        int | None, typer.Option(min=1, help="Stop reading each source after this many records.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub data set.")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a Hub data set that has several.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hub data set. Default: train.")] = None,
    held_out: Annotated[
        float | None, typer.Option(min=0.001, max=0.999, help="Fraction of conversations to hold out.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the report to this new file X.html, or report, data and bad rows to this new folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read feedback as a run would, without training, and report what it contains."""
    from alignment_core.data.ingestion.check import no_usable_rows
    from alignment_core.data.rendering.tokenizer import import_tokenizers_only
    from alignment_flows import api
    from alignment_flows.cli.show.data import show_data

    if model is not None:
        import_tokenizers_only()
    source = {"format": format, "threshold": threshold, "max_pairs": max_pairs, "max_records": max_records}
    source |= {"revision": revision, "subset": subset, "split": split}
    with at_work("Reading the data"):
        report = api.check_data(
            *paths,
            model=model,
            chat_template=chat_template,
            max_length=max_length,
            held_out_fraction=held_out,
            out=out,
            columns=named_columns(columns or ()),
            desirable=desirable or [],
            **{name: value for name, value in source.items() if value is not None},
        )
    show_data(report, out, as_json=as_json)
    if problem := no_usable_rows(report):
        raise problem
