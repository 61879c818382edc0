"""Unpack the GGUF file that `model.base` names into a model folder, which the rest of the run uses as its base."""

from __future__ import annotations

import re
import shutil
from typing import Any

from alignment_core.execution.stage import Job, Stage
from alignment_core.models.base.gguf_file import GgufFile
from alignment_core.models.base.gguf_unpack import describe, write_folder
from alignment_core.planning.unpacked_base import BASE, VERSION

NAMELESS = re.compile(r"(sha256[-_])?[0-9a-f]{16,}|model")
"""Names of files that say nothing, such as Ollama's."""


def run(job: Job) -> dict[str, Any]:
    """Write one folder in Hugging Face format, named after the file, in bfloat16."""
    reference = job.call.inputs["reference"]
    where = f"model.base {reference}"
    source = GgufFile(**job.call.inputs["gguf"], sha256=job.call.config["gguf"])
    scratch = job.checkpoints / "unpacked"
    shutil.rmtree(scratch, ignore_errors=True)  # left by a killed process
    scratch.mkdir()
    path = source.unpack(scratch)
    facts = describe(path, where)
    weights = f"{facts['parameters']:,} weights in {facts['quantization']}"
    job.progress.log(f"unpacking {reference} once into {job.call.runtime.store}: {weights}")
    folder = job.out / folder_name(source.name, facts["name"])
    write_folder(path, facts, folder, where, job.progress)
    return {**facts, "folder": folder.name, "file": source.name}


def folder_name(file: str, title: str | None) -> str:
    """Return the name of the folder: that of the file, or the model's own if the file has none that says anything."""
    stem = file.removesuffix(".gguf")
    name = title if title and NAMELESS.fullmatch(stem) else stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


STAGE = Stage(BASE, VERSION, run)
