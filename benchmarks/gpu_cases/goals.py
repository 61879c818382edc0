"""What the project wants to reach on a card, and whether the results reach it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignment_core.texts import percent

Lines = Mapping[str, Mapping[str, Any]]
"""The lines of one device by case."""

BESIDE = [("8B", 24), ("1.5B", 8)]
"""Sizes and caps at which the other libraries are measured."""
WITHIN, ROOFLINE, TIMES_TRL, TIMES_UNSLOTH = 0.05, 0.6, 2.0, 1.0


@dataclass(frozen=True)
class Goal:
    """A target and what was measured. `met` is None if it was not measured."""

    target: str
    measured: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "missed", None: "not measured"}[self.met]


def goals(lines: Lines) -> list[Goal]:
    """Return all goals. Results of a CPU say nothing about them."""
    lines = {name: line for name, line in lines.items() if line["device"] != "cpu"}
    return [
        _fits(lines, "PPO 8B under 24 GB", "train/ppo/8B/24"),
        _fits(lines, "PPO 8B under 16 GB", "train/ppo/8B/16"),
        _fits(lines, "DPO 8B at 2,048 tokens under 12 GB", "train/dpo/8B/12"),
        *(_faster(lines, task, "unsloth", TIMES_UNSLOTH, size, cap) for task in ("sft", "dpo") for size, cap in BESIDE),
        *(_faster(lines, task, "trl", TIMES_TRL, size, cap) for task in ("sft", "dpo") for size, cap in BESIDE),
        _share(lines),
        _predictions(lines.values()),
    ]


def used_bytes(line: Mapping[str, Any]) -> int | None:
    """Return what a case took from the card: the allocator's peak, and what the driver holds."""
    reserved: int | None = line["peak_reserved"]
    return None if reserved is None else reserved + (line["details"].get("context") or 0)


def effective_speed(line: Mapping[str, Any]) -> float | None:
    """Return tokens per second including the reference model's pass, which the other libraries make as well."""
    if not line["seconds"] or line["tokens"] is None:
        return None
    return float(line["tokens"] / (line["seconds"] + line["details"].get("seconds_reference", 0.0)))


def prediction_error(line: Mapping[str, Any]) -> float | None:
    """Return by which share the prediction is above the peak of allocated memory, which only a card counts."""
    if line["device"] == "cpu" or line["predicted"] is None or not line["peak_allocated"]:
        return None
    return float(line["predicted"] / line["peak_allocated"] - 1)


def _fits(lines: Lines, target: str, case: str) -> Goal:
    if (line := lines.get(case)) is None:
        return Goal(target)
    used = used_bytes(line)
    return Goal(target, line["error"] or ("" if used is None else f"{used / 2**30:.1f} GiB"), line["ok"])


def _faster(lines: Lines, task: str, library: str, times: float, size: str, cap: int) -> Goal:
    target = f"{task.upper()} {size} under {cap} GB at least {times:g}× as fast as {library}"
    ours, theirs = lines.get(f"train/{task}/{size}/{cap}"), lines.get(f"peer/{library}/{task}/{size}/{cap}")
    if ours is None or theirs is None or theirs["ok"] is None:
        return Goal(target, (theirs or {}).get("error") or "")
    one, other = effective_speed(ours), effective_speed(theirs)
    if other is None:
        return Goal(target, f"{library}: {theirs['error'] or theirs['details']}")
    if one is None:
        return Goal(target, str(ours["error"]), False)
    return Goal(target, f"{one / other:.2f}×", one >= times * other)


def _share(lines: Lines) -> Goal:
    target = f"SFT 8B at {percent(ROOFLINE)} of the roofline"
    line = lines.get("train/sft/8B/24")
    if line is None or "roofline_share" not in line["details"]:
        return Goal(target)
    share = line["details"]["roofline_share"]
    return Goal(target, percent(share), share >= ROOFLINE)


def _predictions(lines: Iterable[Mapping[str, Any]]) -> Goal:
    target = f"every predicted peak within {percent(WITHIN)} of the allocated one"
    errors = {line["case"]: error for line in lines if (error := prediction_error(line)) is not None}
    errors = {case: error for case, error in errors.items() if "/tiny" not in case}
    if not errors:
        return Goal(target)
    worst = max(errors, key=lambda case: abs(errors[case]))
    return Goal(target, f"{percent(errors[worst], 1, sign='+')} at most ({worst})", abs(errors[worst]) <= WITHIN)
