"""Run lm-eval tasks on one model: the aligned policy, or the SFT model that it started from."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from typing import Any

from alignment_core.config import LmEvalConfig
from alignment_core.data.rendering.renderer import load_tokenizer
from alignment_core.execution.stage import Job, Stage
from alignment_core.own_code import OWN_CODE
from alignment_core.planning.lm_eval import refuse_tasks
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.progress import Progress, Stopped, Work
from alignment_core.stages.shared.context import StageContext

RESULTS = "lm_eval.json"
BOOTSTRAPS = 1000
"""Number of bootstrap resamples for standard errors of metrics without a formula."""


def run(job: Job) -> dict[str, Any]:
    """Write `lm_eval.json` with the results of lm-eval. The metrics are its numbers by task."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars in the stage's log
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    settings = LmEvalConfig.model_validate(job.call.config["lm_eval"] | job.call.inputs["lm_eval"])
    context, model, seed = StageContext.open(job), job.call.inputs["model"], job.call.config["seed"]
    if "policy" in job.parents:
        context.roles.add_saved("policy", job.parents["policy"])
    else:
        context.add_sft("policy")
    own = settings.include_path
    tasks = TaskManager(include_path=None if own is None else str(own))
    refuse_tasks([name for name in settings.tasks if name not in tasks.all_tasks])
    with context.roles.use("policy"), context.roles.autocast():
        found = simple_evaluate(
            model=_counting(HFLM, job.progress)(
                pretrained=context.roles.model,
                tokenizer=load_tokenizer(model["path"], model["revision"], model.get(OWN_CODE)),
                batch_size=settings.batch_size,
                max_length=job.call.config["max_length"],
            ),
            tasks=list(settings.tasks),
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            task_manager=tasks,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=False,
            **dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed),
        )
    kept = {name: found[name] for name in ("results", "n-samples", "versions", "higher_is_better") if name in found}
    (job.out / RESULTS).write_text(json.dumps(kept, indent=2, default=str) + "\n", encoding="utf-8")
    return {task: _numbers(measured) for task, measured in found["results"].items()}


def _counting(model: Any, progress: Progress) -> Any:
    """Return lm-eval's model as a class that reports how many of its requests it has answered, and can be stopped."""

    class Counting(model):  # type: ignore[misc]
        work = Work(progress, 0)

        def loglikelihood(self, requests: list[Any], *rest: Any, **more: Any) -> Any:
            return self._answering(super().loglikelihood, requests, *rest, **more)

        def loglikelihood_rolling(self, requests: list[Any], *rest: Any, **more: Any) -> Any:
            return self._answering(super().loglikelihood_rolling, requests, *rest, **more)

        def generate_until(self, requests: list[Any], *rest: Any, **more: Any) -> Any:
            return self._answering(super().generate_until, requests, *rest, **more)

        def _answering(self, answer: Callable[..., Any], requests: list[Any], *rest: Any, **more: Any) -> Any:
            self.work.expect(len(requests))
            found = answer(requests, *rest, **more)
            self.work.end()  # requests with the same text are computed once
            return found

        def _model_call(self, inps: Any, *rest: Any, **more: Any) -> Any:
            self._begin(len(inps))
            return super()._model_call(inps, *rest, **more)

        def _model_generate(self, context: Any, *rest: Any, **more: Any) -> Any:
            self._begin(len(context))
            return super()._model_generate(context, *rest, **more)

        def _begin(self, requests: int) -> None:
            if progress.stopping:
                raise Stopped("stopped while lm-eval was running")
            self.work.begin(requests)

    return Counting


def _numbers(measured: dict[str, Any]) -> dict[str, float]:
    """Return the numeric metrics, with `acc,none` renamed to `acc`. Unknown values (`N/A`) are left out."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in measured.items()
        if isinstance(value, int | float) and "," in name
    }


STAGE = Stage("lm_eval", VERSIONS["lm_eval"], run)
