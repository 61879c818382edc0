"""The separate process in which an export runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub.utils.tqdm import disable_progress_bars

from alignment_core.artifacts import ArtifactStore
from alignment_core.errors import ArtifactError, ModelError
from alignment_core.export import model_card
from alignment_core.export.atomic_folder import atomic_folder
from alignment_core.export.request import Exported, Request
from alignment_core.export.targets import adapter, gguf, hub, merged, ollama, vllm
from alignment_core.export.targets.serve_commands import vllm_merged_command
from alignment_core.inference.trained_model import TrainedModel, open_trained_model
from alignment_core.processes.module_call import answer_call
from alignment_core.temporary import temporary_folder

REPORT = "export.json"
OTHER_CODE = ("gguf", "ollama")
"""Targets whose programs have their own code for each architecture."""


def main() -> None:
    # Progress bars would fill the log that is shown after a failure.
    disable_progress_bars()
    answer_call(lambda request: run(Request.model_validate(request)).model_dump(mode="json"))


def run(request: Request) -> Exported:
    """Export in this process.

    Raises:
        AlignmentError: the artifact, its base model, the target or the folder is unusable.
    """
    with ArtifactStore(request.store).leases.held([request.key]):
        return _export(request, open_trained_model(request.store, request.key, trusted=request.trusted))


def _export(request: Request, origin: TrainedModel) -> Exported:
    if request.target == "hub":
        assert request.repo is not None
        with temporary_folder("hub") as folder:
            return hub.push(origin, folder, request.repo, private=request.private)
    assert request.place is not None
    try:
        with atomic_folder(request.place) as folder:
            exported = _fill(request, origin, folder, request.place)
            model_card.write(origin, folder, request.target)
            (folder / REPORT).write_text(exported.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArtifactError("the export could not be written", where=str(request.place), got=error.strerror) from error
    return exported


def _fill(request: Request, origin: TrainedModel, folder: Path, place: Path) -> Exported:
    if origin.own_code is not None and request.target in OTHER_CODE:
        raise ModelError(
            "the base model brings code of its own, which programs that read this format do not run",
            where=origin.base,
            got=f"--to {request.target}",
            do="Export with `--to merged` or `--to adapter`",
        )
    exported = Exported(target=request.target, key=request.key, place=str(place))
    found: dict[str, Any]
    match request.target:
        case "merged":
            found = merged.write(origin, folder)
            use = [vllm_merged_command(place)]
        case "adapter":
            found = adapter.write(origin, folder)
            use = [f"AutoPeftModelForCausalLM.from_pretrained({json.dumps(str(place))})"]
        case "vllm":
            found = vllm.write(origin, folder, place)
            use = [f"{place}/{vllm.SCRIPT}"]
        case "gguf":
            found = gguf.write(origin, folder, request.quantize)
            use = [f"llama-cli -m {file}" for file in sorted(place / made.name for made in folder.glob("*.gguf"))]
        case _:
            found = ollama.write(origin, folder)
            use = [f"ollama create {place.name} -f {place}/{ollama.MODELFILE}"]
    notes = [str(note) for note in found.pop("notes", [])]
    return exported.model_copy(update={"found": found, "use": use, "notes": notes})


if __name__ == "__main__":
    main()
