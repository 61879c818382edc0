"""`align data check`: what feedback contains, before anything is trained."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment_core.errors import ConfigError
from alignment_flows.cli.command import AsJson, Columns, Desirable, command, named_columns
from alignment_flows.terminal.spinner import at_work

OPTIONS = {"columns": "column", "held_out_fraction": "held-out"}
"""Options that are not called as their setting."""


def add_to(app: typer.Typer) -> None:
    """Add the command to `align`."""
    data_app = typer.Typer(help="Inspect feedback before training.", no_args_is_help=True)
    data_app.command("check")(check)
    app.add_typer(data_app, name="data")


@command
def check(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="Files, folders, globs, URLs or hf://owner/name; or the config file of a run."
        ),
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
    from alignment_flows import api, data_checks
    from alignment_flows.cli.show.data import show_data

    given: dict[str, Any] = {
        "format": format,
        "columns": named_columns(columns or ()),
        "model": model,
        "chat_template": chat_template,
        "max_length": max_length,
        "threshold": threshold,
        "desirable": desirable or [],
        "max_pairs": max_pairs,
        "max_records": max_records,
        "revision": revision,
        "subset": subset,
        "split": split,
        "held_out_fraction": held_out,
    }
    given = {name: value for name, value in given.items() if value not in (None, {}, [])}
    config = next((path for path in paths if path.lower().endswith((".yaml", ".yml"))), None)
    if model is not None or config is not None:
        import_tokenizers_only()
    with at_work("Reading the data"):
        if config is None:
            report = data_checks.check_data(*paths, out=out, **given)
        else:
            _check_alone(config, paths, given)
            report = data_checks.check_data_of(api.load_settings(config), out)
    show_data(report, out, as_json=as_json)
    if problem := no_usable_rows(report):
        raise problem


def _check_alone(config: str, paths: Sequence[str], given: Iterable[str]) -> None:
    """Check that a config file is the only path, and that no option says again what it says.

    Raises:
        ConfigError: there is more.
    """
    options = (OPTIONS.get(name, name.replace("_", "-")) for name in given)
    more = [path for path in paths if path != config] + [f"--{option}" for option in options]
    if more:
        raise ConfigError(
            "a config file names its data and their settings itself",
            where=config,
            got=f"also {', '.join(more)}",
            do="Give the config file alone, and change it there; or name the files of the data instead",
        )
