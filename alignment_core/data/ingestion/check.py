"""Check data before training on it: the report of an ingestion, without a pipeline and optionally without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.ingestion.counts import counted
from alignment_core.data.ingestion.ingest import ingest
from alignment_core.data.ingestion.remedies import remedies
from alignment_core.data.ingestion.report.contents import NO_LIMIT
from alignment_core.data.ingestion.report.page import html_report
from alignment_core.data.rendering.byte_tokenizer import ByteTokenizer
from alignment_core.data.rendering.renderer import Renderer, resolve_chat_template
from alignment_core.data.sources.formats import NO_PLUGINS, Plugged
from alignment_core.errors import DataError
from alignment_core.own_code import refuse_unknown
from alignment_core.progress import Progress, Silent
from alignment_core.temporary import temporary_folder
from alignment_core.texts import read_json_of_model


def check(
    paths: Sequence[str],
    *,
    model: str | None = None,
    chat_template: str | None = None,
    max_length: int | None = None,
    held_out_fraction: float | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    plugged: Plugged = NO_PLUGINS,
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Ingest sources and return the report. Nothing is trained, and any number of bad rows is allowed.

    Args:
        paths: files, folders, globs, URLs or Hub data sets, as in `data.sources[].path`.
        model: folder or Hub id of the model whose tokenizer counts the tokens. None: bytes are counted.
        chat_template: as in `model.chat_template`.
        max_length: as in `model.max_length`. None: no limit.
        held_out_fraction: as in `data.held_out_fraction`. None: its default.
        out: new file that ends in `.html` for the report, or new folder for the report (`report.html`), the data set
            and the quarantined rows. None: all are discarded.
        progress: receives steps, log lines and warnings.
        plugged: record formats of plugins, in addition to the built-in ones.
        source: other settings for all sources, as in `data.sources[]`.

    Raises:
        DataError: a source is missing, or its settings do not fit it.
        ModelError: the tokenizer or the chat template does not load.
    """
    sources = [SourceConfig(path=path, **(source or {})) for path in paths]
    template = resolve_chat_template(chat_template)
    renderer = _renderer(model, template, NO_LIMIT if max_length is None else max_length)
    split = {} if held_out_fraction is None else {"held_out_fraction": held_out_fraction}
    unit = "bytes" if model is None else "tokens"
    return report_on(DataConfig(sources=sources, **split), renderer, unit, out, progress, plugged)


def report_on(
    data: DataConfig,
    renderer: Renderer,
    unit: str,
    out: Path | None = None,
    progress: Progress | None = None,
    plugged: Plugged = NO_PLUGINS,
) -> dict[str, Any]:
    """Ingest data and return the report, as `check` does.

    Args:
        data: the sources, none of them a feedback store, and how they are split.
        renderer: tokenizes the records.
        unit: what the renderer counts: `tokens` or `bytes`.
        out: as for `check`.
        progress: as for `check`.
        plugged: as for `check`.

    Raises:
        DataError: a source is missing, or its settings do not fit it.
    """
    with ExitStack() as temporary:
        if out is None or is_page(out):
            folder = temporary.enter_context(temporary_folder("check"))
        else:
            (folder := out).mkdir(parents=True)
        pages, steps = folder == out, progress or Silent()
        report = ingest(data, renderer, folder, steps, unit=unit, strict=False, plugged=plugged, pages=pages)
    if out is not None and is_page(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html_report(report, files=False), encoding="utf-8")
    return report


def is_page(out: Path) -> bool:
    """Return whether the report alone goes to this path, and not a folder with everything."""
    return out.suffix.lower() in (".html", ".htm")


def no_usable_rows(report: Mapping[str, Any]) -> DataError | None:
    """Return the error with which `align data check` exits if no row can be used, otherwise None."""
    if any(count for counts in report["rows"].values() for count in counts.values()):
        return None
    reasons = ", ".join(f"{reason} {count}" for reason, count in (report["quarantined"] | report["dropped"]).items())
    rows = sum(file["rows"] for file in report["files"])
    names = [file["name"] for file in report["files"]]
    unknown = [file["why"] for file in report["files"] if file["format"] == "unknown"]
    if len(names) == 1 and unknown:
        why = unknown[0].removeprefix(f"{names[0]}: ")  # the error names the file already
        named = why.startswith(names[0])  # with a line
        unknown = [why if named else why[:1].upper() + why[1:]]
    return DataError(
        "no row can be used",
        where=", ".join(names),
        got=counted(rows, "row") + (f" ({reasons})" if reasons else ""),
        do="; ".join((*unknown, *remedies(report["quarantined"], report["thresholds"])))
        or "See the report for the reasons",
    )


def _renderer(model: str | None, template: str | None, max_length: int) -> Renderer:
    if model is None:
        return Renderer(ByteTokenizer(), chat_template=template, max_length=max_length)
    if (config := Path(model) / "config.json").is_file():
        refuse_unknown(read_json_of_model(config), model, "model.base")
    return Renderer.of_model(model, None, chat_template=template, max_length=max_length)
