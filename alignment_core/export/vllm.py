"""Target `vllm`: an adapter folder with the command that serves it beside its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignment_core.errors import ModelError
from alignment_core.export import adapter
from alignment_core.export.commands import vllm_adapter_command, vllm_refusal
from alignment_core.export.origin import Origin

SCRIPT = "serve.sh"


def write(origin: Origin, folder: Path, place: Path) -> dict[str, Any]:
    """The adapter and `serve.sh`, which names it where it will lie.

    Raises:
        ModelError: vLLM cannot serve such an adapter.
    """
    if refusal := vllm_refusal(origin.adapter):
        raise ModelError(
            refusal,
            where=str(origin.folder),
            do="Export it by `--to merged`: `vllm serve` takes that folder as it is",
        )
    found = adapter.write(origin, folder)
    command = vllm_adapter_command(origin.base, origin.revision, place.name, place, origin.adapter["r"])
    script = folder / SCRIPT
    script.write_text(f"#!/bin/sh\nexec {command}\n", encoding="utf-8")
    script.chmod(0o755)
    return found
