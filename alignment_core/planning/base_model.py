"""Find the base model of the settings and the adapter that the run goes on from, and check that they can be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alignment_core.config import LoraConfig, ModelConfig
from alignment_core.data.rendering.builtin_templates import resolve_chat_template
from alignment_core.errors import ConfigError
from alignment_core.models.base.adapter_identity import AdapterIdentity, adapter_identity
from alignment_core.models.base.base_checks import (
    check_files,
    check_no_adapter,
    check_precision,
    rows_to_add,
)
from alignment_core.models.base.identity import ModelIdentity, model_file, model_identity, read_json
from alignment_core.models.base.target_names import check_target_names
from alignment_core.own_code import refuse_unknown
from alignment_core.planning.unpacked_base import WHERE, UnpackedBase, unpacked_base


@dataclass(frozen=True)
class Base:
    """The base model of a run.

    Attributes:
        model: its identity.
        start: the adapter that the run goes on from, or None.
        lora: the shape of the adapters that are trained.
        chat_template: text of the chat template, or None for the template of the tokenizer.
        rows: number of rows that the embedding is extended to, or None.
        unpacked: what it was unpacked from, if `model.base` is a GGUF file, or None.
    """

    model: ModelIdentity
    start: AdapterIdentity | None
    lora: LoraConfig
    chat_template: str | None
    rows: int | None
    unpacked: UnpackedBase | None


def find_base(settings: ModelConfig, store: Path) -> Base:
    """Return the base model of the settings.

    Args:
        settings: the settings of the model.
        store: the artifact store, where a GGUF file is unpacked.

    Raises:
        ConfigError: a setting contradicts the adapter, or needs one.
        ModelError: the model or the adapter does not exist or cannot be used as the settings ask.
    """
    template = resolve_chat_template(settings.chat_template)
    unpacked = unpacked_base(settings, store)
    place = settings.base if unpacked is None else str(unpacked.folder)
    model = model_identity(place, settings.revision, WHERE, trusted=settings.trust_remote_code)
    if not settings.trust_remote_code:
        refuse_unknown(read_json(model_file(model, "config.json")), model.path, WHERE)
    check_no_adapter(model, WHERE, settings.adapter)
    check_files(model, WHERE)
    check_precision(model, settings.load_in, WHERE)
    start, lora = None, settings.lora
    if settings.adapter is not None:
        start = adapter_identity(settings.adapter, settings.adapter_revision)
        template = start.chat_template if template is None else template
        lora = _shape_of(start, settings.lora)
    elif settings.adapter_revision is not None:
        raise ConfigError("this setting needs `model.adapter`, which is not set", where="model.adapter_revision")
    else:
        check_target_names(model, lora.target_modules)
    rows = rows_to_add(model, template, WHERE, resize=settings.resize_embeddings)
    return Base(model, start, lora, template, rows, unpacked)


def _shape_of(start: AdapterIdentity, asked: LoraConfig) -> LoraConfig:
    """Return the shape of an adapter, with the dropout of the settings.

    Raises:
        ConfigError: the settings ask for another shape. A default value asks for nothing.
    """
    default = LoraConfig()
    for name in LoraConfig.model_fields:
        wanted, present = getattr(asked, name), getattr(start.lora, name)
        if name != "dropout" and wanted not in (present, getattr(default, name)):
            raise ConfigError(
                "an adapter that training goes on from keeps its shape",
                where=f"model.lora.{name}",
                got=wanted,
                expected=f"{present}, as in {start.path}",
                do=f"Remove `model.lora.{name}`",
            )
    return start.lora.model_copy(update={"dropout": asked.dropout})
