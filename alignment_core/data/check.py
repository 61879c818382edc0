"""Look at data before training on it: the ingestion's report, without a pipeline and, if need be, without a model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.formats import NO_PLUGINS, Plugged
from alignment_core.data.ingest import ingest
from alignment_core.data.rendering import Renderer, generation_stops, load_tokenizer, resolve_chat_template
from alignment_core.data.report import NO_LIMIT
from alignment_core.data.report_page import page
from alignment_core.errors import DataError
from alignment_core.progress import Progress, Silent


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
    """Ingest sources and return the report; nothing is trained, and any number of bad rows is allowed.

    Args:
        paths: files, folders, globs, URLs or hub data sets, as in `data.sources[].path`.
        model: folder or hub id whose tokenizer counts the tokens; None: bytes are counted.
        chat_template: as in `model.chat_template`.
        max_length: as in `model.max_length`; None: no limit.
        held_out_fraction: as in `data.held_out_fraction`; None: its default.
        out: new folder for the data set and the report (`report.html`); None: they are thrown away.
        progress: where to report.
        plugged: record formats that plugins bring, beside ours.
        source: the other settings of every source, as in `data.sources[]`.

    Raises:
        DataError: a source is not there, or its settings do not fit it.
        ModelError: the tokenizer or the template does not load.
    """
    sources = [SourceConfig(path=path, **(source or {})) for path in paths]
    template = resolve_chat_template(chat_template)
    renderer = _renderer(model, template, NO_LIMIT if max_length is None else max_length)
    split = {} if held_out_fraction is None else {"held_out_fraction": held_out_fraction}
    data = DataConfig(sources=sources, **split)
    unit, progress = "bytes" if model is None else "tokens", progress or Silent()
    if out is not None:
        out.mkdir(parents=True)
        return ingest(data, renderer, out, progress, unit=unit, strict=False, plugged=plugged)
    with tempfile.TemporaryDirectory(prefix="align-check-") as folder:
        return ingest(data, renderer, Path(folder), progress, unit=unit, strict=False, plugged=plugged)


def unusable(report: Mapping[str, Any]) -> DataError | None:
    """What `align data check` ends with where no row can be used."""
    if any(count for counts in report["rows"].values() for count in counts.values()):
        return None
    reasons = ", ".join(f"{reason} {count}" for reason, count in (report["quarantined"] | report["dropped"]).items())
    return DataError(
        "no row can be used",
        where=", ".join(file["name"] for file in report["files"]),
        got=f"{sum(file['rows'] for file in report['files'])} rows" + (f" ({reasons})" if reasons else ""),
        do=next((file["why"] for file in report["files"] if file["format"] == "unknown"), "The report says why"),
    )


def as_text(report: Mapping[str, Any]) -> str:
    """The report for a terminal, as markdown without its picture."""
    return page(report, "markdown")


def _renderer(model: str | None, template: str | None, max_length: int) -> Renderer:
    if model is None:
        return Renderer(byte_tokenizer(), chat_template=template, max_length=max_length)
    stops = generation_stops(model)
    return Renderer(load_tokenizer(model), chat_template=template, max_length=max_length, generation_stops=stops)


def byte_tokenizer() -> Any:
    """One token per byte of UTF-8, for lengths that mean something without a model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
