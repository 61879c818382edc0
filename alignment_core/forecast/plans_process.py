"""The process behind `check_memory_of`: predicts the memory of one plan after another, until a stage does not fit.

A plan whose prediction fails is left out: the stage that cannot be predicted will fail in the run, alone.
"""

from __future__ import annotations

from typing import Any

from alignment_core.errors import AlignmentError
from alignment_core.execution.stage import StageCall
from alignment_core.forecast.predictions import Prediction
from alignment_core.forecast.process import Predictor
from alignment_core.processes.module_call import answer_call
from alignment_core.temporary import temporary_folder


def main() -> None:
    answer_call(_predict)


def _predict(request: dict[str, Any]) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    device = ""
    for plan in request["plans"]:
        calls = {name: StageCall.model_validate(call) for name, call in plan["calls"].items()}
        try:
            with temporary_folder("plan") as folder:
                predictor = Predictor(calls, plan["names"], folder, None)
                stages: dict[str, Prediction] = predictor.until_full(None)
        except AlignmentError as error:
            found.append({"stages": {}, "failed": str(error)})
            continue
        device = predictor.name()
        dumped = {name: stage.model_dump(mode="json") for name, stage in stages.items()}
        found.append({"stages": dumped, "failed": None})
        if not all(stage.fits for stage in stages.values()):
            break
    return {"device": device, "plans": found}


if __name__ == "__main__":
    main()
