"""Snapshots of the policy: frozen copies of its adapter, which an optimizer moves towards it between steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignment_core.errors import PluginError
from alignment_core.models.roles.shared_base import Roles


def role_of(name: str) -> str:
    """Return the role of a snapshot. Alone, its name might also be that of a module in the model, such as `mlp`."""
    return f"snapshot_{name}"


class Snapshots:
    """The snapshots of a run, each of which is a role.

    Attributes:
        names: names of the snapshots.
        moved: for each snapshot that was moved, the number of steps done before its last move.
    """

    def __init__(self, roles: Roles, names: Sequence[str] = ()) -> None:
        self.roles, self.names = roles, tuple(names)
        self.moved: dict[str, int] = {}
        self._repeated: set[str] = set()

    def move(self, name: str, mix: float, step: int) -> None:
        """Set the weights of a snapshot to (1 - mix) · snapshot + mix · policy.

        A run that was stopped within a step builds that step's batch again. Its snapshots have already been moved, so
        they are not moved again.

        Raises:
            PluginError: there is no such snapshot, `mix` is not in (0, 1], the call comes from `loss`, or the snapshot
                was already moved before this step.
        """
        where = f"run.snapshot({name!r}, mix={mix:g})"
        if name not in self.names:
            raise PluginError(
                "the optimizer used a snapshot that it did not declare",
                where=where,
                do=f'Return `Needs(snapshots=("{name}",), …)` from `needs`',
            )
        if not 0 < mix <= 1:
            raise PluginError(
                "the share of the policy in a snapshot is out of range", where=where, expected="0 < mix ≤ 1"
            )
        if torch.is_grad_enabled():
            raise PluginError("a snapshot was moved within `loss`", where=where, do="Move it in `batches`")
        if self.moved.get(name) == step:
            if name in self._repeated:
                self._repeated.discard(name)
                return
            raise PluginError(
                "a snapshot was moved twice before one step",
                where=where,
                do="Call `run.snapshot` once per step and name",
            )
        policy = self.roles.adapter_weights("policy")
        for key, weight in self.roles.adapter_weights(role_of(name)).items():
            # Not always `lerp_`: with mix 1, the copy must be exact.
            weight.copy_(policy[key]) if mix == 1 else weight.lerp_(policy[key], mix)
        self.moved[name] = step

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of all snapshots by `<name>.<name in a PEFT file>`."""
        return {
            f"{name}.{key}": weight
            for name in self.names
            for key, weight in self.roles.adapter_weights(role_of(name)).items()
        }

    def restore(self, tensors: Mapping[str, Tensor], moved: Mapping[str, int], step: int) -> None:
        """Restore the snapshots of a checkpoint that was written after `step` steps."""
        with torch.no_grad():
            for name, weight in self.tensors().items():
                weight.copy_(tensors[name])
        self.moved = dict(moved)
        self._repeated = {name for name, before in moved.items() if before == step}
