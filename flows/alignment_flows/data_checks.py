"""Check data as a run would read them, without training: part of the Python API.

Importing this module loads neither torch nor Prefect.
"""

from pathlib import Path
from typing import Any

from alignment_core.config import ModelConfig, PipelineConfig
from alignment_core.execution.stage import Runtime
from alignment_core.export.atomic_folder import check_absent
from alignment_core.models.base.gguf_file import names_gguf
from alignment_core.planning.stage_calls import StageCalls
from alignment_core.planning.unpacked_base import unpacked_base
from alignment_core.registry import load_registry
from alignment_core.temporary import temporary_folder
from alignment_flows.serve.local.settings import prepared, unpack_base

STORE: Path = PipelineConfig.model_fields["store"].default


def check_data(
    *paths: str | Path,
    model: str | None = None,
    chat_template: str | None = None,
    max_length: int | None = None,
    held_out_fraction: float | None = None,
    out: Path | None = None,
    **source: Any,
) -> dict[str, Any]:
    """Read feedback as a run would, without training, and return the data report.

    Args:
        paths: files, folders, globs, URLs, Hub data sets (`hf://owner/name`) or feedback stores.
        model: folder, Hub id or GGUF file of the model whose tokenizer measures lengths, as in `model.base`. None:
            lengths are in bytes. A GGUF file is unpacked into the store `./artifacts`.
        chat_template: as in `model.chat_template`.
        max_length: as in `model.max_length`. None: no limit.
        held_out_fraction: as in `data.held_out_fraction`.
        out: new file that ends in `.html` for the report, or new folder for `report.html`, the data set and the
            quarantined rows. None: they are discarded.
        source: other settings of a source, such as `format`, `columns` or `threshold`.

    Raises:
        ConfigError: a setting of a source is misspelled or out of range, or `out` exists.
        DataError: a source is missing, or its settings do not fit it.
        ModelError: the tokenizer or the chat template does not load.
    """
    from alignment_core.data.ingestion.check import check, is_page
    from alignment_core.feedback.data_source import stores_as_files

    if out is not None:
        check_absent(out, "file" if is_page(out) else "folder")
    unpacked = None
    if model is not None and names_gguf(model):
        runtime = Runtime(store=STORE.absolute())
        unpack_base(ModelConfig(base=model), runtime)
        unpacked = unpacked_base(ModelConfig(base=model), runtime.store)
    with stores_as_files([str(path) for path in paths]) as files:
        return check(
            files,
            model=model if unpacked is None else str(unpacked.folder),
            chat_template=chat_template,
            max_length=max_length,
            held_out_fraction=held_out_fraction,
            out=out,
            plugged=load_registry().formats(),
            source=source,
        )


def check_data_of(settings: PipelineConfig, out: Path | None = None) -> dict[str, Any]:
    """Read the data of a run as the run would, without training, and return the data report.

    Args:
        settings: the settings of the run.
        out: as for `check_data`.

    Raises:
        ConfigError: a setting is wrong, or `out` exists.
        DataError: a source is missing, or its settings do not fit it.
        FeedbackError: a feedback store cannot be read.
        ModelError: the tokenizer or the chat template does not load.
    """
    from alignment_core.data.ingestion.check import is_page, report_on
    from alignment_core.data.rendering.renderer import Renderer
    from alignment_core.feedback.data_source import pin_data, write_stores_as_files

    if out is not None:
        check_absent(out, "file" if is_page(out) else "folder")
    settings, registry = prepared(settings), load_registry()
    data = pin_data(settings.data)
    call = StageCalls.from_config(settings, registry).ingest(data)
    renderer = Renderer.of_stage(call.inputs["model"], call.config)
    with temporary_folder("votes") as folder:
        data = data.model_copy(update={"sources": write_stores_as_files(data.sources, folder)})
        return report_on(data, renderer, "tokens", out, plugged=registry.formats())
