"""Target `adapter`: the PEFT folder, with the tokenizer and the template that it was trained with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from alignment_core.export.origin import Origin
from alignment_core.export.speech import open_renderer, write_speech
from alignment_core.models.adapters import ADAPTER


def write(origin: Origin, folder: Path) -> dict[str, Any]:
    """Copy the adapter beside its tokenizer, template and stop tokens."""
    write_speech(origin, open_renderer(origin), folder)
    for name in (ADAPTER, "adapter_config.json"):
        shutil.copyfile(origin.folder / name, folder / name)
    return {"bytes": (folder / ADAPTER).stat().st_size}
