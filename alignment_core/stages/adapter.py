"""Take the adapter that a run goes on from into the store, after checking that it fits the base model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from alignment_core.errors import ModelError, loading_failure
from alignment_core.execution.stage import Job, Stage
from alignment_core.models.base.adapter_identity import WEIGHTS
from alignment_core.models.base.loading import bare_model, read_config
from alignment_core.models.base.unusable import ADAPTER_CONFIG
from alignment_core.models.roles.adapters import Adapters
from alignment_core.own_code import OWN_CODE
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.texts import read_json_of_model


def run(job: Job) -> dict[str, Any]:
    """Write the adapter as a PEFT folder that names the run's base model and has its dropout."""
    place, model = job.call.inputs["adapter"], job.call.inputs["model"]
    folder = check_fit(place, model)
    shutil.copyfile(folder / WEIGHTS, job.out / WEIGHTS)
    config = read_json_of_model(folder / ADAPTER_CONFIG)
    config |= {
        "base_model_name_or_path": model["path"],
        "revision": model["revision"],
        "lora_dropout": job.call.config["dropout"],
    }
    (job.out / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    named = place["base"]
    if named is not None and Path(named).name.lower() != Path(model["path"]).name.lower():
        job.progress.warn(
            f"the adapter says that it was trained on {named}, and `model.base` is {model['path']}. "
            "It fits, but it is only right on the weights that it was trained on"
        )
    return {"bytes": (job.out / WEIGHTS).stat().st_size}


def check_fit(place: Mapping[str, Any], model: Mapping[str, Any]) -> Path:
    """Check that an adapter fits a base model, whose weights are not loaded. Return the adapter's folder.

    Args:
        place: `path` and `revision` of the adapter.
        model: the base model, as in the inputs of a stage.

    Raises:
        ModelError: it does not fit, or the configuration of the base model does not load.
    """
    folder = _folder(place)
    try:
        config = read_config(model["path"], model["revision"], model.get(OWN_CODE))
        with torch.device("meta"):
            bare = bare_model(AutoModelForCausalLM, config, model.get(OWN_CODE))
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = loading_failure(error)
        raise ModelError("the base model does not load", where=f"model.base {model['path']}", got=reason) from error
    Adapters(bare, model["path"], model["revision"]).check_saved(folder)
    return folder


def _folder(place: Mapping[str, Any]) -> Path:
    if place["revision"] is None:
        return Path(place["path"])
    from huggingface_hub import hf_hub_download

    files = [hf_hub_download(place["path"], name, revision=place["revision"]) for name in (ADAPTER_CONFIG, WEIGHTS)]
    return Path(files[0]).parent


STAGE = Stage("adapter", VERSIONS["adapter"], run)
