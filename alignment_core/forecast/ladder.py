"""The changes that make a run need less memory, in the order in which they are tried: least loss first."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from alignment_core.config import PipelineConfig

SHORTEST, LEAST_RANK = 256, 4
"""Maximum length and LoRA rank below which a run is not worth its time."""
SECTIONS = {"sft": "sft", "reward": "reward", "judge": "reward", "optimize": "optimizer"}
"""For each stage that trains: the name of its settings."""


@dataclass(frozen=True)
class Step:
    """One change.

    Attributes:
        changes: settings by dotted name.
        costs: what they cost.
    """

    changes: dict[str, Any]
    costs: str


def ladder(settings: PipelineConfig, stages: Collection[str]) -> Iterator[Step]:
    """Yield the changes, each to be made in addition to those before it.

    Args:
        settings: the settings of the run.
        stages: names of its stages.
    """
    forced = [name for name in ("token_budget", "gradient_checkpointing") if getattr(settings, name) != "auto"]
    if forced:
        yield Step(dict.fromkeys(forced, "auto"), "time: passes are smaller, or layers are computed twice")
    sections = dict.fromkeys(section for stage, section in SECTIONS.items() if stage in stages)
    moments = [name for name in sections if _adamw(settings, name) != "paged_8bit"]
    if moments:
        yield Step({f"{name}.adamw": "paged_8bit" for name in moments}, "slightly different optimizer steps")
    model = settings.model
    if model.load_in != "nf4":
        yield Step({"model.load_in": "nf4"}, "a small rounding error, and slower passes")
    length, rank, alpha = model.max_length, model.lora.rank, model.lora.alpha
    while (length := length // 2) >= SHORTEST:
        yield Step({"model.max_length": length}, "longer records are shortened or left out")
    if model.adapter is not None:
        return  # its shape is given
    while (rank := rank // 2) >= LEAST_RANK:
        alpha /= 2  # the scale alpha / rank stays
        yield Step({"model.lora.rank": rank, "model.lora.alpha": alpha}, "less capacity to learn")


def _adamw(settings: PipelineConfig, section: str) -> str:
    if section == "optimizer":
        return str(settings.optimizer.get("adamw", "32bit"))
    return str(getattr(settings, section).adamw)
