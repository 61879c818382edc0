"""The trained weights of an optimizer that belong to no role, such as a learned temperature or a small head."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment_core.errors import PluginError
from alignment_core.plugin_api import AlignmentOptimizer
from alignment_core.seeds import seed_of

FILE = "parameters.safetensors"


def initial_parameters(optimizer: AlignmentOptimizer, width: int, seed: int) -> dict[str, Tensor]:
    """Return the initial values of the optimizer's own weights by name, in float32.

    Args:
        optimizer: the optimizer.
        width: size of a hidden state of the base model.
        seed: seed of the run.

    Raises:
        PluginError: a name contains a dot, which separates the parts of names of weights.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed_of(seed, "parameters"))
        given = optimizer.parameters(width)
    if wrong := [name for name in given if not name.isidentifier()]:
        raise PluginError(
            "an optimizer's own weight has a name that cannot be used",
            where=f"{type(optimizer).__name__}.parameters",
            got=wrong[0],
            expected="letters, digits and underscores",
        )
    return {name: torch.as_tensor(value, dtype=torch.float32).detach().clone() for name, value in given.items()}
