"""Target `vllm`: an adapter folder with a script that serves it on its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignment_core.errors import ModelError
from alignment_core.export.targets import adapter
from alignment_core.export.targets.serve_commands import vllm_adapter_command, vllm_refusal
from alignment_core.inference.trained_model import TrainedModel

SCRIPT = "serve.sh"


def write(origin: TrainedModel, folder: Path, place: Path) -> dict[str, Any]:
    """Write the adapter and `serve.sh`, which refers to the final folder `place`.

    Raises:
        ModelError: vLLM cannot serve the adapter.
    """
    if refusal := vllm_refusal(origin.adapter):
        raise ModelError(
            refusal,
            where=str(origin.folder),
            do="Export with `--to merged`. `vllm serve` can load that folder directly",
        )
    found = adapter.write(origin, folder)
    command = vllm_adapter_command(origin.base, origin.revision, place.name, place, origin.adapter["r"])
    script = folder / SCRIPT
    script.write_text(f"#!/bin/sh\nexec {command}\n", encoding="utf-8")
    script.chmod(0o755)
    return found
