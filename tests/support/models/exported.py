"""Adapters in a store as a stage publishes them, for tests of the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import disturb, open_roles

from alignment_core.artifacts import ArtifactStore, Manifest, key_of
from alignment_core.config import LoraConfig
from alignment_core.data.rendering.renderer import Renderer, load_tokenizer
from alignment_core.inference.trained_model import TrainedModel, open_trained_model
from alignment_core.models.base.identity import model_identity
from alignment_core.progress import Silent

Make = Callable[..., TrainedModel]


def put_adapter(
    store: Path,
    base: Path,
    *,
    template: str | None = None,
    load_in: str = "fp32",
    scale: float = 0.1,
    parents: dict[str, str] | None = None,
    **lora: Any,
) -> TrainedModel:
    """Publish an `optimize` artifact: an adapter with random changes on a base, with its chat template."""
    settings = LoraConfig.model_validate({"rank": 4, "alpha": 8, **lora})
    identity = model_identity(str(base), None)
    config = {
        "base": identity.weights, "tokenizer": identity.tokenizer, "chat_template": template, "load_in": load_in,
        "max_length": 128, "lora": settings.model_dump(mode="json"), "seed": 0,
        "optimizer": {"name": "dpo", "beta": 0.1}, "scale": scale,
    }  # fmt: skip
    roles = open_roles(base)
    roles.add_new("policy", settings, 1)
    disturb(roles, "policy", 1, scale)
    key = key_of(stage="optimize", version=2, config=config, parents=parents or {})
    with ArtifactStore(store).building("optimize", key, Silent()) as building:
        if building.found is None:
            roles.save("policy", building.out)
            renderer = Renderer(load_tokenizer(str(base)), chat_template=template, max_length=128)
            (building.out / "chat_template.jinja").write_text(renderer.template)
            building.publish(
                Manifest(
                    kind="optimize", key=key, version=2, config=config, parents=parents or {}, metrics={"loss": 0.5},
                    inputs={"model": {"path": str(base), "revision": None}},
                )
            )  # fmt: skip
    return open_trained_model(store, key)
