"""Target `adapter`: the PEFT folder with the tokenizer and chat template of the training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from alignment_core.errors import ModelError
from alignment_core.export.tokenizer_files import open_renderer, write_tokenizer_files
from alignment_core.inference.trained_model import TrainedModel
from alignment_core.models.roles.adapters import ADAPTER


def write(origin: TrainedModel, folder: Path) -> dict[str, Any]:
    """Write the adapter, tokenizer, chat template and stop tokens.

    Raises:
        ModelError: the adapter was trained on an embedding with added rows, which are not in it.
    """
    if (rows := origin.manifest.config.get("embedding_rows")) is not None:
        raise ModelError(
            f"the adapter needs the base model's embedding with {rows} rows, and holds no rows itself",
            where=str(origin.folder),
            do="Export with `--to merged`, which writes the model with these rows",
        )
    write_tokenizer_files(origin, open_renderer(origin), folder)
    for name in (ADAPTER, "adapter_config.json"):
        shutil.copyfile(origin.folder / name, folder / name)
    return {"bytes": (folder / ADAPTER).stat().st_size}
