"""The stages of the pipeline, one module each.

A module is imported only where its stage runs, so that the flow's process never loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignment_core.stages.base import Stage


def load_stage(name: str) -> Stage:
    """The stage that `alignment_core.stages.<name>` defines as `STAGE`."""
    stage: Stage = importlib.import_module(f"alignment_core.stages.{name}").STAGE
    return stage
