"""What a training stage needs to go on after a kill, written atomically; the newest two are kept.

checkpoint-<n>/tensors.safetensors   weights, moments, the objective's tensors
checkpoint-<n>/snapshot.json         everything else
checkpoint-<n>/digests.json          SHA-256 of both: a checkpoint that the disk has damaged is not gone on from
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from alignment_core.artifacts.digest import hash_file
from alignment_core.artifacts.files import fsync
from alignment_core.errors import PluginError
from alignment_core.models.saving import save_tensors
from alignment_core.training.adamw import restore_state, state_of

KEEP = 2
TENSORS, SNAPSHOT, DIGESTS = "tensors.safetensors", "snapshot.json", "digests.json"


@dataclass
class Snapshot:
    """Everything but the weights that a checkpoint holds.

    Attributes:
        step: optimizer steps done.
        budget: token budget in force (out-of-memory may have halved it).
        state: the objective's own state: tensors and JSON.
        metrics: metrics of the last step; empty before the first.
        history: one mapping of metrics per step, and the reports of larger units.
        warnings: warnings so far.
        kept: the copy of the weights that `run.keep()` made; empty without one.
    """

    step: int
    budget: int
    state: dict[str, Any]
    metrics: Mapping[str, float]
    history: list[dict[str, Any]]
    warnings: list[str]
    kept: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, snapshot: Snapshot, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Write a numbered folder completely, then give it its name, then drop the older ones.

    Raises:
        PluginError: the objective's state is more than tensors and JSON.
    """
    present = _checkpoints(folder)
    # Numbered by themselves: a stop may save the same step twice, and no complete checkpoint is ever written over.
    target = folder / f"checkpoint-{_number(present[-1]) + 1 if present else 1:08d}"
    partial = folder / f".{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {f"state.{name}": value.clone() for name, value in snapshot.state.items() if isinstance(value, Tensor)}
    tensors |= {f"kept.{name}": value for name, value in snapshot.kept.items()}
    tensors |= {f"weights.{name}": parameter.detach() for name, parameter in weights.items()}
    for name, parameter in weights.items():
        for moment, value in state_of(optimizer, parameter).items():
            tensors[f"optimizer.{moment}.{name}"] = value
    save_tensors(tensors, partial / TENSORS)
    (partial / SNAPSHOT).write_text(_to_json(snapshot))
    (partial / DIGESTS).write_text(json.dumps({name: hash_file(partial / name) for name in (TENSORS, SNAPSHOT)}))
    for path in [*partial.iterdir(), partial]:
        fsync(path)
    partial.rename(target)
    fsync(folder)
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)


def saved_budget(folder: Path, warn: Callable[[str], None]) -> int | None:
    """Token budget of the newest sound checkpoint; None where there is none."""
    found = _newest(folder, warn)
    if found is None:
        return None
    budget: int = json.loads((found / SNAPSHOT).read_text())["budget"]
    return budget


def _newest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is as it was written; damaged ones that are newer are told of and removed."""
    for checkpoint in reversed(_checkpoints(folder)):
        fault = _fault(checkpoint)
        if fault is None:
            return checkpoint
        warn(f"{checkpoint.name} is damaged ({fault}): going on from the one before it, or from the start")
        # It would count as one of the two that are kept, and push a sound one out.
        shutil.rmtree(checkpoint)
    return None


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if its files are what was written."""
    try:
        digests = json.loads((checkpoint / DIGESTS).read_text())
        changed = [name for name in (TENSORS, SNAPSHOT) if hash_file(checkpoint / name) != digests[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{changed[0]} is not what was written" if changed else None


def _checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*"))


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _to_json(snapshot: Snapshot) -> str:
    plain = {name: value for name, value in snapshot.state.items() if not isinstance(value, Tensor)}
    try:
        return json.dumps(
            {
                "step": snapshot.step,
                "budget": snapshot.budget,
                "state": plain,
                "metrics": dict(snapshot.metrics),
                "history": snapshot.history,
                "warnings": snapshot.warnings,
            }
        )
    except TypeError as error:
        raise PluginError(
            "the optimizer's state cannot be saved",
            where="run.state",
            got=error,
            expected="tensors at its top level, and plain JSON",
        ) from error


def load_checkpoint(
    folder: Path, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, warn: Callable[[str], None]
) -> Snapshot | None:
    """Put the newest sound checkpoint's weights and moments back; None where there is none."""
    found = _newest(folder, warn)
    if found is None:
        return None
    tensors = load_file(found / TENSORS)
    plain = json.loads((found / SNAPSHOT).read_text())
    state = plain["state"]
    for name, parameter in weights.items():
        with torch.no_grad():
            parameter.copy_(tensors.pop(f"weights.{name}"))
    moments, kept = dict[str, dict[str, Tensor]](), dict[str, Tensor]()
    for full_name, value in tensors.items():
        group, name = full_name.split(".", 1)
        if group == "state":
            state[name] = value
        elif group == "kept":
            kept[name] = value
        else:
            moment, name = name.split(".", 1)
            moments.setdefault(name, {})[moment] = value
    for name, saved in moments.items():
        restore_state(optimizer, weights[name], saved)
    return Snapshot(plain["step"], plain["budget"], state, plain["metrics"], plain["history"], plain["warnings"], kept)
