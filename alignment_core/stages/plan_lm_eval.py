"""The calls that give a model tasks of lm-eval, which is asked for here only whether it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from alignment_core.artifacts.digest import tree_digest
from alignment_core.errors import ConfigError
from alignment_core.stages.base import StageCall
from alignment_core.stages.calls import Calls

WHERE = "evaluation.lm_eval"
DECIDES = {"tasks", "limit", "num_fewshot"}
"""Settings that decide the result; the folder of own tasks does by its content."""


def lm_eval_call(calls: Calls, name: str, parents: Mapping[str, StageCall | None]) -> StageCall | None:
    """The call for one model; None where the settings ask for no task.

    Raises:
        ConfigError: lm-eval is not installed, or the folder of tasks is not there.
    """
    settings = calls.config.evaluation.lm_eval
    if settings is None:
        return None
    own = settings.include_path
    if own is not None and not own.is_dir():
        raise ConfigError(
            "there is no such folder of tasks",
            where=f"{WHERE}.include_path",
            got=str(own),
            do=f"Check the path, relative to {Path.cwd()}",
        )
    config = calls.loads(
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
            "the settings name tasks of lm-eval, which is not installed",
            where=WHERE,
            do='`pip install "alignment-flows[lm-eval]"`, or leave them out',
        ) from None
