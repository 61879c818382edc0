"""Look at data before training on it: the ingestion's report, without a pipeline and, if need be, without a model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.formats import NO_PLUGINS, Plugged
from alignment_core.data.ingest import ingest
from alignment_core.data.rendering import Renderer, generation_stops, load_tokenizer
from alignment_core.data.report import NO_LIMIT
from alignment_core.data.report_page import page
from alignment_core.progress import Progress, Silent


def check(
    paths: Sequence[str],
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    model: str | None = None,
    max_length: int | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    plugged: Plugged = NO_PLUGINS,
) -> dict[str, Any]:
    """Ingest sources and return the report; nothing is trained, and any number of bad rows is allowed.

    Args:
        paths: files, folders, globs, URLs or hub data sets, as in `data.sources[].path`.
        format: name of the record format; None: detected.
        columns: as in `data.sources[].columns`.
        model: folder or hub id whose tokenizer counts the tokens; None: bytes are counted.
        max_length: as in `model.max_length`; None: no limit.
        out: new folder for the data set and the report (`report.html`); None: they are thrown away.
        progress: where to report.
        plugged: record formats that plugins bring, beside ours.

    Raises:
        DataError: a source cannot be read, or no row can be used.
        ModelError: the tokenizer does not load.
    """
    sources = [SourceConfig(path=path, format=format, columns=dict(columns or {})) for path in paths]
    renderer = _renderer(model, NO_LIMIT if max_length is None else max_length)
    data = DataConfig(sources=sources, max_bad_fraction=1.0)
    unit, progress = "bytes" if model is None else "tokens", progress or Silent()
    if out is not None:
        out.mkdir(parents=True)
        return ingest(data, renderer, out, progress, unit=unit, plugged=plugged)
    with tempfile.TemporaryDirectory(prefix="align-check-") as folder:
        return ingest(data, renderer, Path(folder), progress, unit=unit, plugged=plugged)


def as_text(report: Mapping[str, Any]) -> str:
    """The report for a terminal, as markdown without its picture."""
    return page(report, "markdown")


def _renderer(model: str | None, max_length: int) -> Renderer:
    if model is None:
        return Renderer(_byte_tokenizer(), chat_template=None, max_length=max_length)
    stops = generation_stops(model)
    return Renderer(load_tokenizer(model), chat_template=None, max_length=max_length, generation_stops=stops)


def _byte_tokenizer() -> Any:
    """One token per byte of UTF-8, for lengths that mean something without a model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
