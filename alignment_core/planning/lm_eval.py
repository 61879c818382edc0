"""Plan the stage calls that run lm-eval tasks. This module imports nothing of lm-eval, which would load torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
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
        ConfigError: lm-eval is not installed, it has no such task, or the folder of custom tasks does not exist.
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
    installed = _installed()
    refuse_tasks(unknown_tasks(settings.tasks, [*_own_tasks_of_lm_eval(), *([] if own is None else [own])]))
    config = calls.model_settings(
        seed=calls.config.seed,
        lm_eval=settings.model_dump(mode="json", include=DECIDES),
        own_tasks=None if own is None else tree_digest(own),
        lm_eval_version=installed,
    )
    how = {"include_path": None if own is None else str(own.absolute()), "batch_size": settings.batch_size}
    return calls.call("lm_eval", config, parents, name=f"lm-eval {name}", inputs={"lm_eval": how})


def refuse_tasks(unknown: Sequence[str]) -> None:
    """Refuse tasks that lm-eval does not have.

    Raises:
        ConfigError: there are any.
    """
    if unknown:
        raise ConfigError(
            "lm-eval has no such task",
            where=f"{WHERE}.tasks",
            got=", ".join(unknown),
            do="List the tasks with `lm-eval ls tasks`, or set `include_path` to a folder with custom tasks",
        )


def unknown_tasks(tasks: Sequence[str], folders: Iterable[Path]) -> list[str]:
    """Return the tasks that no task file in these folders names.

    A name that a file mentions otherwise, in a comment for example, counts as known: lm-eval itself then finds it out.
    """
    open_names = dict.fromkeys(tasks)
    for folder in folders:
        for path in folder.rglob("*.y*ml") if open_names else ():
            text = f"{path.stem} {path.read_text(encoding='utf-8', errors='replace')}"
            for name in [name for name in open_names if name in text]:
                if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text):
                    del open_names[name]
            if not open_names:
                break
    return list(open_names)


def _own_tasks_of_lm_eval() -> list[Path]:
    """Return the folder of the tasks that come with lm-eval."""
    spec = find_spec("lm_eval")
    return [Path(place) / "tasks" for place in (spec.submodule_search_locations or ())] if spec else []


def _installed() -> str:
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise ConfigError(
            "the settings contain lm-eval tasks, but lm-eval is not installed",
            where=WHERE,
            do='Run `pip install "alignment-flows[lm-eval]"`, or remove the tasks',
        ) from None
