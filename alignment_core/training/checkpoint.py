"""Checkpoints from which a killed training stage resumes, written atomically. The newest two are kept.

checkpoint-<n>/tensors.safetensors   weights, moments, the objective's tensors
checkpoint-<n>/state.json            everything else
checkpoint-<n>/digests.json          SHA-256 of both: training does not resume from a damaged checkpoint
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from alignment_core.artifacts.digest import hash_file
from alignment_core.artifacts.files import fsync
from alignment_core.errors import PluginError
from alignment_core.models.base.saving import save_tensors
from alignment_core.ranks import ALONE, Ranks
from alignment_core.training.step.adamw import moments_of, restore_moments

KEEP = 2
TENSORS, STATE, DIGESTS = "tensors.safetensors", "state.json", "digests.json"


@dataclass
class TrainingState:
    """Everything in a checkpoint except the weights and moments.

    Attributes:
        step: completed optimizer steps.
        budget: current token budget (out of memory may have halved it).
        state: the objective's own state: tensors and JSON.
        metrics: metrics of the last step; empty before the first.
        history: one mapping of metrics per step, and the entries of `run.report()`.
        warnings: warnings so far.
        loss_scale: the state of the factor on the loss.
        reward_units: the numbers of the normalization of rewards; empty before there are any.
        kept: the copy of the weights from `run.keep()`; empty without one.
        snapshots: the weights of the snapshots of the policy.
        moved: the number of steps before the last move of each snapshot.
    """

    step: int
    budget: int
    state: dict[str, Any]
    metrics: Mapping[str, float]
    history: list[dict[str, Any]]
    warnings: list[str]
    loss_scale: dict[str, float]
    reward_units: dict[str, float]
    kept: dict[str, Tensor] = field(default_factory=dict)
    snapshots: dict[str, Tensor] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, saved: TrainingState, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Write a complete numbered folder under a temporary name, rename it, then remove the older ones.

    Raises:
        PluginError: the objective's state contains something other than tensors and JSON.
    """
    present = _checkpoints(folder)
    # Not numbered by step: a stop may save the same step twice, and a complete checkpoint is never overwritten.
    target = folder / f"checkpoint-{_number(present[-1]) + 1 if present else 1:08d}"
    partial = folder / f".{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {f"state.{name}": value.clone() for name, value in saved.state.items() if isinstance(value, Tensor)}
    tensors |= {f"kept.{name}": value for name, value in saved.kept.items()}
    tensors |= {f"snapshots.{name}": value for name, value in saved.snapshots.items()}
    tensors |= {f"weights.{name}": parameter.detach() for name, parameter in weights.items()}
    for name, parameter in weights.items():
        for moment, value in moments_of(optimizer, parameter).items():
            tensors[f"optimizer.{moment}.{name}"] = value
    save_tensors(tensors, partial / TENSORS)
    (partial / STATE).write_text(_to_json(saved))
    (partial / DIGESTS).write_text(json.dumps({name: hash_file(partial / name) for name in (TENSORS, STATE)}))
    for path in [*partial.iterdir(), partial]:
        fsync(path)
    partial.rename(target)
    fsync(folder)
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)


def saved_budget(folder: Path, warn: Callable[[str], None], ranks: Ranks = ALONE) -> int | None:
    """Return the token budget of the newest intact checkpoint, or None if there is none."""
    found = ranks.from_first("checkpoint", lambda: _newest(folder, warn))
    if found is None:
        return None
    budget: int = json.loads((found / STATE).read_text())["budget"]
    return budget


def _newest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint. Newer ones that are damaged are reported to `warn` and removed."""
    for checkpoint in reversed(_checkpoints(folder)):
        fault = _fault(checkpoint)
        if fault is None:
            return checkpoint
        warn(f"{checkpoint.name} is damaged ({fault}): resuming from an earlier one, or from the start")
        # Otherwise it would count as one of the two that are kept and displace an intact one.
        shutil.rmtree(checkpoint)
    return None


def _fault(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if its files are as they were written."""
    try:
        digests = json.loads((checkpoint / DIGESTS).read_text())
        changed = [name for name in (TENSORS, STATE) if hash_file(checkpoint / name) != digests[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{changed[0]} has changed since it was written" if changed else None


def _checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*"))


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _to_json(saved: TrainingState) -> str:
    plain = {name: value for name, value in saved.state.items() if not isinstance(value, Tensor)}
    _check_plain(plain)
    return json.dumps(
        {
            "step": saved.step,
            "budget": saved.budget,
            "state": plain,
            "metrics": dict(saved.metrics),
            "history": saved.history,
            "warnings": saved.warnings,
            "loss_scale": saved.loss_scale,
            "reward_units": saved.reward_units,
            "moved": saved.moved,
        }
    )


def _check_plain(state: Mapping[Any, object]) -> None:
    """Check that each entry of the state is JSON, and the same when it is read again.

    Raises:
        PluginError: one is not.
    """
    for name, value in state.items():
        try:
            json.dumps(value)
            fault = _key_that_changes({name: value})
        except (TypeError, ValueError) as error:
            fault = str(error)
        if fault is not None:
            raise PluginError(
                "the optimizer's state cannot be saved",
                where=f"run.state[{name!r}]",
                got=fault,
                expected="tensors at the top level, and otherwise plain JSON",
            )


def _key_that_changes(value: object) -> str | None:
    """Return the first key of a mapping in `value` that is not text, because it would be read as text."""
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        inner: Iterable[object] = value.values()
    else:
        wrong, inner = None, value if isinstance(value, list | tuple) else ()
    if wrong is not None:
        return f"the key {wrong!r}, which is not text"
    return next((fault for one in inner if (fault := _key_that_changes(one)) is not None), None)


def load_checkpoint(
    folder: Path,
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    warn: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> TrainingState | None:
    """Restore weights and moments from the newest intact checkpoint. Returns None if there is none.

    All ranks read the one that rank 0 finds in its folder.
    """
    found = ranks.from_first("checkpoint", lambda: _newest(folder, warn))
    if found is None:
        return None
    tensors = load_file(found / TENSORS)
    plain = json.loads((found / STATE).read_text())
    state = plain["state"]
    for name, parameter in weights.items():
        with torch.no_grad():
            parameter.copy_(tensors.pop(f"weights.{name}"))
    moments = dict[str, dict[str, Tensor]]()
    copies: dict[str, dict[str, Tensor]] = {"kept": {}, "snapshots": {}}
    for full_name, value in tensors.items():
        group, name = full_name.split(".", 1)
        if group == "state":
            state[name] = value
        elif group in copies:
            copies[group][name] = value
        else:
            moment, name = name.split(".", 1)
            moments.setdefault(name, {})[moment] = value
    for name, saved in moments.items():
        restore_moments(optimizer, weights[name], saved)
    return TrainingState(
        plain["step"],
        plain["budget"],
        state,
        plain["metrics"],
        plain["history"],
        plain["warnings"],
        plain["loss_scale"],
        plain["reward_units"],
        **copies,
        moved=plain["moved"],
    )
