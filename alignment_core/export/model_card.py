"""The model card of an export, in the format of the Hugging Face Hub: data, settings, metrics and lineage."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import ModelCard, ModelCardData

from alignment_core.export import provenance
from alignment_core.inference.trained_model import TrainedModel
from alignment_core.markdown import plain
from alignment_core.models.base.gguf_file import ORIGIN

CARD = "README.md"
MERGED = ("merged", "ollama", "gguf")
SETTINGS = ("load_in", "max_length", "seed", "lora", "sft", "optimizer")


def write(origin: TrainedModel, folder: Path, target: str, name: str | None = None) -> None:
    """Write `README.md`.

    Args:
        origin: the exported model.
        folder: the target folder.
        target: the export target.
        name: the Hub repository to load the model from; None for the current folder.
    """
    parents = provenance.ancestors(origin)
    evaluations = provenance.evaluations_of(origin)
    earlier = provenance.evaluation_before(origin, evaluations[0]) if evaluations else None
    manifest = origin.manifest
    data = parents.get("data")
    text = _template().render(
        name=name or ".",
        base=_base_link(origin),
        method=f"with {_method(origin)}",
        merged=target in MERGED,
        lora=origin.adapter,
        data=data.metrics if data else None,
        sources=list(provenance.sources(data)) if data else [],
        after=provenance.numbers(evaluations[0].metrics) if evaluations else {},
        before=provenance.numbers(earlier.metrics) if earlier else {},
        settings=yaml.safe_dump({name: manifest.config[name] for name in SETTINGS if name in manifest.config}),
        stages=[*parents.values(), manifest],
        packages=manifest.packages,
        python=manifest.python,
    )  # fmt: skip
    ModelCard(f"---\n{_facts(origin, target, data).to_yaml()}\n---\n\n{text}").save(folder / CARD)


def _base_link(origin: TrainedModel) -> str:
    if (unpacked := origin.manifest.inputs["model"].get(ORIGIN)) is not None:
        return f"{unpacked['file']} ({unpacked['quantization']}, unpacked to 16 bits)"
    name = Path(origin.base).name
    return plain(name) if origin.base_is_local else f"[{plain(name)}](https://huggingface.co/{origin.base})"


def _method(origin: TrainedModel) -> str:
    name: str = origin.manifest.config.get("optimizer", {}).get("name", "sft")
    return name


def _facts(origin: TrainedModel, target: str, data: Any) -> ModelCardData:
    hub_data = [source["name"] for source in provenance.sources(data) if source["on_hub"]] if data else []
    return ModelCardData(
        base_model=None if origin.base_is_local else origin.base,
        base_model_relation="finetune" if target in MERGED else "adapter",
        library_name="transformers" if target in MERGED else "peft",
        pipeline_tag="text-generation",
        datasets=hub_data or None,
        tags=["alignment-flows", _method(origin)] + ([] if target in MERGED else ["lora"]),
    )


def _template() -> jinja2.Template:
    text = (files(__package__) / "templates" / "model_card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["plain"] = plain
    environment.filters["number"] = lambda value: f"{value:.4g}"
    return environment.from_string(text)
