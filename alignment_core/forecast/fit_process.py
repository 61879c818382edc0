"""The process behind `fit`: plans and predicts one attempt after another, until one fits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment_core.config import ANOTHER_BASE, PipelineConfig
from alignment_core.config_file import check_config
from alignment_core.errors import AlignmentError
from alignment_core.forecast.fit import Attempt, Fit
from alignment_core.forecast.ladder import Step, ladder
from alignment_core.forecast.process import Predictor
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.processes.module_call import answer_call
from alignment_core.registry import load_registry
from alignment_core.temporary import temporary_folder

ANOTHER_MODEL = "another model, which may know less"


def main() -> None:
    answer_call(_fit)


def _fit(request: dict[str, Any]) -> dict[str, Any]:
    settings = PipelineConfig.model_validate(request["settings"])
    with temporary_folder("fit") as folder:
        return _Search(settings, request["card"], folder).run(request["models"]).model_dump(mode="json")


class _Search:
    def __init__(self, settings: PipelineConfig, card: float | None, scratch: Path) -> None:
        self.settings, self.card, self.scratch = settings, card, scratch
        self.registry = load_registry()
        self.attempts: list[Attempt] = []
        self.changes: dict[str, Any] = {}
        self.device = ""
        self.tightest: str | None = None

    def run(self, models: Sequence[str]) -> Fit:
        found = self._with_model(Step({}, ""))
        for base in models:
            if found:
                break
            self.changes = {}
            found = self._with_model(Step(self._with_base(base), ANOTHER_MODEL))
        return Fit(device=self.device, card=self.card, attempts=self.attempts, changes=self.changes)

    def _with_base(self, base: str) -> dict[str, Any]:
        """Return the changes with which another base model takes the place of the settings' own."""
        own = {name: value for name, value in ANOTHER_BASE.items() if getattr(self.settings.model, name) != value}
        return {"model.base": base, **{f"model.{name}": value for name, value in {"revision": None, **own}.items()}}

    def _with_model(self, first: Step) -> bool:
        """Try a model with everything that makes it need less memory. Return whether it fits."""
        if self._try(first):
            return True
        if self.attempts[-1].refused is not None:
            return False
        stages = plan_pipeline(self._settings(self.changes), self.registry).calls()
        for step in ladder(self.settings, stages):
            if self._try(step):
                return True
            if self._too_large():
                return False
        return False

    def _too_large(self) -> bool:
        """Return whether the base model alone is too large in 4 bits, so that no later step helps."""
        load_in = self.changes.get("model.load_in", self.settings.model.load_in)
        stages = self.attempts[-1].stages.values()
        return load_in == "nf4" and any(stage.memory["base"] > stage.available for stage in stages)

    def _try(self, step: Step) -> bool:
        changes = {**self.changes, **step.changes}
        base = changes.get("model.base", self.settings.model.base)
        tried = {"model": base, "changes": step.changes, "costs": step.costs}
        try:
            calls = plan_pipeline(self._settings(changes), self.registry).calls()
            scratch = self.scratch / str(len(self.attempts))
            predictor = Predictor(calls, list(calls), scratch, self.card)
            stages = predictor.until_full(self.tightest)
        except AlignmentError as error:
            if not self.attempts:
                raise
            self.attempts.append(Attempt(**tried, refused=str(error)))
            return False
        attempt = Attempt(
            **tried,
            stages=stages,
            used=predictor.planned.report()["used"],
            parameters=predictor.adapter.footprint().parameters,
        )
        self.attempts.append(attempt)
        self.changes, self.device = changes, predictor.name()
        self.tightest = next((name for name, stage in stages.items() if not stage.fits), None)
        return attempt.fits

    def _settings(self, changes: dict[str, Any]) -> PipelineConfig:
        overrides = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
        return check_config(self.settings.model_dump(mode="json"), overrides)


if __name__ == "__main__":
    main()
