"""Check on the machine of another work pool that a stage call means the same there as where it was planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignment_core.artifacts import key_of
from alignment_core.config import SourceConfig
from alignment_core.errors import ConfigError, DataError, ModelError, PluginError
from alignment_core.execution.stage import StageCall
from alignment_core.feedback.data_source import source_key
from alignment_core.models.base.adapter_identity import adapter_identity
from alignment_core.models.base.identity import model_identity
from alignment_core.own_code import OWN_CODE
from alignment_core.planning.stage_calls import VERSIONS
from alignment_core.registry import Registry


def check_moved(call: StageCall, registry: Registry) -> None:
    """Check that this machine has the inputs, the plugins and the version of the stage that are in the call's key.

    The artifacts that the stage reads must be in the store: a base model may be one of them.

    Raises:
        ConfigError: this machine has another version of Alignment Flows.
        PluginError: it has another version of a plugin, or does not have it.
        DataError, ModelError: a file or model differs, or does not exist here.
    """
    key = key_of(stage=call.stage, version=VERSIONS[call.stage], config=call.config, parents=call.reads())
    if key != call.key:
        raise ConfigError(
            "this machine and the one that planned the stage have different versions of Alignment Flows",
            where=call.label,
            do="Install the same version on both",
        )
    for name, here, planned in _plugins(call, registry):
        if here != planned:
            raise PluginError(
                "this machine has another version of a plugin than the one that planned the stage",
                where=name,
                got=here,
                expected=planned,
                do="Install the same version on both",
            )
    _refuse_code(call)
    _check_models(call)
    _check_data(call)


def _refuse_code(call: StageCall) -> None:
    """Refuse a call that names code to run: it came through Prefect, where anybody who sees the pages may write one."""
    if any(OWN_CODE in call.inputs.get(name, {}) for name in ("model", "reward_model")):
        raise ConfigError("the code of a model is not run for another machine", where=call.label, do="Remove `where`")


def _plugins(call: StageCall, registry: Registry) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each plugin of the stage, its identity on this machine and that in the call."""
    config = call.config
    if call.stage == "optimize":
        yield config["optimizer"]["name"], registry.identity(registry.optimizer(config["optimizer"])), config["plugin"]
    elif call.stage == "rank":
        yield config["by"]["name"], registry.identity(registry.evaluator(config["by"], where="by")), config["plugin"]
    elif call.stage == "evaluate":
        for raw, planned in zip(config["evaluators"], config["plugins"], strict=True):
            yield raw["name"], registry.identity(registry.evaluator(raw, where="evaluators")), planned


def _check_models(call: StageCall) -> None:
    config, place = call.config, call.inputs["model"]
    planned = {name: config[part] for name, part in (("weights", "base"), ("tokenizer", "tokenizer")) if part in config}
    if planned:
        _check_model("model.base", place, planned)
    if "reward_model" in call.inputs:
        planned = {part: config["reward_model"][part] for part in ("weights", "tokenizer")}
        _check_model("reward.model", call.inputs["reward_model"], planned)
    if call.stage == "adapter":
        at = call.inputs["adapter"]
        if adapter_identity(at["path"], at["revision"]).content != config["adapter"]:
            raise _other_model("model.adapter", at["path"])


def _check_model(where: str, place: dict[str, Any], planned: dict[str, str]) -> None:
    here = model_identity(place["path"], place["revision"], where)
    if any(getattr(here, part) != digest for part, digest in planned.items()):
        raise _other_model(where, place["path"])


def _other_model(where: str, path: str) -> ModelError:
    return ModelError(
        "the model on this machine differs from the one that the stage was planned with",
        where=where,
        got=path,
        do="Copy it to the same path on both machines, or name a model on the Hub",
    )


def _check_data(call: StageCall) -> None:
    if call.stage != "ingest":
        return
    for raw, planned in zip(call.inputs["sources"], call.config["sources"], strict=True):
        if source_key(SourceConfig(**raw)) != planned:
            raise DataError(
                "the data on this machine differ from those that the stage was planned with",
                where=str(raw["path"]),
                do="Copy them to the same path on both machines, or keep them at an address that both can read",
            )
