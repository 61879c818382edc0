"""Plan the stage calls that run lm-eval tasks. This module only checks whether lm-eval is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from alignment_core.artifacts.digest import tree_digest
from alignment_core.errors import ConfigError
from alignment_core.execution.stage import StageCall
from alignment_core.planning.stage_calls import StageCalls

WHERE = "evaluation.lm_eval"
DECIDES = {"tasks", "limit", "num_fewshot"}
"""Settings that determine the result. For the folder of custom tasks, a digest of its content does so."""


def lm_eval_call(calls: StageCalls, name: str, parents: Mapping[str, StageCall | None]) -> StageCall | None:
    """Return the lm-eval call for one model, or None if the settings have no lm-eval tasks.

    Raises:
        ConfigError: lm-eval is not installed, or the folder of custom tasks does not exist.
    """
    settings = calls.config.evaluation.lm_eval
    if settings is None:
        return None
    own = settings.include_path
    if own is not None and not own.is_dir():
        raise ConfigError(
            "the folder of custom tasks does not exist",
            where=f"{WHERE}.include_path",
            got=str(own),
            do=f"Check the path. It is relative to {Path.cwd()}",
        )
    config = calls.model_settings(
        seed=calls.config.seed,
        lm_eval=settings.model_dump(mode="json", include=DECIDES),
        own_tasks=None if own is None else tree_digest(own),
        lm_eval_version=_installed(),
    )
    how = {"include_path": None if own is None else str(own.absolute()), "batch_size": settings.batch_size}
    return calls.call("lm_eval", config, parents, name=f"lm-eval {name}", inputs={"lm_eval": how})


def _installed() -> str:
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise ConfigError(
            "the settings contain lm-eval tasks, but lm-eval is not installed",
            where=WHERE,
            do='Run `pip install "alignment-flows[lm-eval]"`, or remove the tasks',
        ) from None
