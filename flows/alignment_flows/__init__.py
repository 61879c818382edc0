"""Alignment Flows: from raw human feedback to an aligned adapter, as Prefect flows.

    import alignment_flows as af

    run = af.run(af.load_settings("my-model.yaml"))
    print(run.adapter)

Names load their modules on first use, so that `import alignment_flows` is fast. Names that are not in `__all__` are
private.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignment_core.artifacts import Artifact
    from alignment_core.config import PipelineConfig
    from alignment_core.errors import AlignmentError
    from alignment_core.execution.build import StageResult
    from alignment_core.forecast.fit import Attempt, Fit
    from alignment_core.forecast.predictions import Prediction
    from alignment_core.inference.loaded_model import LoadedModel
    from alignment_core.planning.retrain import TooFewVotes
    from alignment_flows.api import (
        change_settings,
        compare,
        export,
        fit,
        load_model,
        load_settings,
        open_artifact,
        plan,
        plan_retraining,
        retrain,
        run,
        sample,
    )
    from alignment_flows.data_checks import check_data, check_data_of
    from alignment_flows.pipeline import align
    from alignment_flows.planned_run import PlannedRun
    from alignment_flows.reports.comparison import Comparison
    from alignment_flows.serve.alias_changes import promote, rollback
    from alignment_flows.serve.local.runs import FinishedRun

_MODULES = {
    "alignment_flows.api": (
        "load_settings", "change_settings", "plan", "plan_retraining", "fit", "run", "compare", "retrain", "sample",
        "open_artifact", "load_model", "export",
    ),
    "alignment_flows.data_checks": ("check_data", "check_data_of"),
    "alignment_flows.planned_run": ("PlannedRun",),
    "alignment_flows.serve.alias_changes": ("promote", "rollback"),
    "alignment_flows.pipeline": ("align",),
    "alignment_flows.serve.local.runs": ("FinishedRun",),
    "alignment_flows.reports.comparison": ("Comparison",),
    "alignment_core.planning.retrain": ("TooFewVotes",),
    "alignment_core.forecast.fit": ("Attempt", "Fit"),
    "alignment_core.forecast.predictions": ("Prediction",),
    "alignment_core.execution.build": ("StageResult",),
    "alignment_core.artifacts": ("Artifact",),
    "alignment_core.inference.loaded_model": ("LoadedModel",),
    "alignment_core.config": ("PipelineConfig",),
    "alignment_core.errors": ("AlignmentError",),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AlignmentError", "Artifact", "Attempt", "Comparison", "FinishedRun", "Fit", "LoadedModel", "PipelineConfig",
    "PlannedRun", "Prediction", "StageResult", "TooFewVotes", "align", "change_settings", "check_data",
    "check_data_of", "compare", "export", "fit", "load_model", "load_settings", "open_artifact", "plan",
    "plan_retraining", "promote", "retrain", "rollback", "run", "sample",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
