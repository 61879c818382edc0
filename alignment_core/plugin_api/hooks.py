"""The hooks that register the classes of a plugin."""

from __future__ import annotations

from typing import Protocol

import pluggy

from alignment_core.plugin_api.evaluator import Evaluator, PairEvaluator
from alignment_core.plugin_api.listener import Listener
from alignment_core.plugin_api.optimizer import AlignmentOptimizer
from alignment_core.records.format import RecordFormat

PROJECT = "alignment_core"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks(Protocol):
    """The hooks that a plugin module may implement. Each one returns a list of classes."""

    @hookspec
    def alignment_optimizers(self) -> list[type[AlignmentOptimizer]]:
        """Return optimizers. Users select one with `optimizer.name`."""

    @hookspec
    def alignment_formats(self) -> list[type[RecordFormat]]:
        """Return record formats of raw feedback. They are detected by `matches` or set in `data.sources[].format`."""

    @hookspec
    def alignment_evaluators(self) -> list[type[Evaluator]]:
        """Return evaluators. Users select them by `name` in `reward.by`, `rank.by` and `evaluation.evaluators`."""

    @hookspec
    def alignment_pair_evaluators(self) -> list[type[PairEvaluator]]:
        """Return pair evaluators. Users select them by `name` in the settings of optimizers that compare responses."""

    @hookspec
    def alignment_listeners(self) -> list[type[Listener]]:
        """Return listeners. Users select them by `name` in `listeners`."""
