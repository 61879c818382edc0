"""Loss functions on tensors: pure functions that return one number per row or token, which `loss` sums.

`from alignment_core import losses` does not import torch until a function is used, so that `losses.dpo(...)` in a
plugin's `loss` costs nothing before a run. `help(losses)` shows every function, and `dir(losses)` their names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignment_core.losses.likelihood import fused_token_logps as fused_token_logps
    from alignment_core.losses.policy_gradient import clipped_policy as clipped_policy
    from alignment_core.losses.policy_gradient import clipped_value as clipped_value
    from alignment_core.losses.policy_gradient import explained_variance as explained_variance
    from alignment_core.losses.policy_gradient import gae as gae
    from alignment_core.losses.policy_gradient import group_advantages as group_advantages
    from alignment_core.losses.policy_gradient import k3 as k3
    from alignment_core.losses.policy_gradient import leave_one_out as leave_one_out
    from alignment_core.losses.policy_gradient import token_rewards as token_rewards
    from alignment_core.losses.policy_gradient import whiten as whiten
    from alignment_core.losses.preference import bradley_terry as bradley_terry
    from alignment_core.losses.preference import dpo as dpo
    from alignment_core.losses.preference import kto as kto

_HOME = {
    "fused_token_logps": "likelihood",
    "bradley_terry": "preference",
    "dpo": "preference",
    "kto": "preference",
    "clipped_policy": "policy_gradient",
    "clipped_value": "policy_gradient",
    "explained_variance": "policy_gradient",
    "gae": "policy_gradient",
    "group_advantages": "policy_gradient",
    "k3": "policy_gradient",
    "leave_one_out": "policy_gradient",
    "token_rewards": "policy_gradient",
    "whiten": "policy_gradient",
}

__all__ = sorted(_HOME)  # `help` lists these, although none is loaded yet


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
