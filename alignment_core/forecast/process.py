"""The process behind `predict`: dry runs on fake tensors for memory, then a short real run for time."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import nn

from alignment_core.config import LoraConfig
from alignment_core.data.rendering.renderer import load_tokenizer
from alignment_core.errors import ModelError, loading_failure, ran_out_of_memory
from alignment_core.execution.stage import StageCall
from alignment_core.forecast.card import free_memory
from alignment_core.forecast.data_preview import DataPreview
from alignment_core.forecast.predictions import Forecast, Prediction
from alignment_core.forecast.speed_probe import Speed, measure_speed
from alignment_core.forecast.workload import Work, Workload, calls_judge
from alignment_core.models.base.loading import SHOWN, base_dtype, choose_device, read_config
from alignment_core.models.memory.architecture import Architecture, Pass
from alignment_core.models.memory.dry_run import DryRun
from alignment_core.own_code import OWN_CODE
from alignment_core.plugin_api import TokenSequence
from alignment_core.processes.free_memory import resident_memory, share_of
from alignment_core.processes.module_call import answer_call
from alignment_core.ranks.cards import check_cards
from alignment_core.stages.adapter import check_fit
from alignment_core.stages.shared.memory_fit import initial_token_budget
from alignment_core.temporary import temporary_folder
from alignment_core.training.memory import MemorySettings, available_memory, choose_memory_settings

TRANSFORMERS = Path(transformers.__file__).parent
NO_MODEL = ("ingest", "adapter", "rank", "gate", "lm_eval")
"""Stages without a prediction: they run no model, or (lm-eval) only the library knows its workload."""


def main() -> None:
    answer_call(_forecast)


def _forecast(request: dict[str, Any]) -> dict[str, Any]:
    # A stage's process has the same imports.
    imports = time.time() - psutil.Process().create_time()
    calls = {name: StageCall.model_validate(call) for name, call in request["calls"].items()}
    with temporary_folder("plan") as folder:
        predictor = Predictor(calls, request["to_run"], folder, request["card"])
        return predictor.forecast(imports).model_dump(mode="json")


class Predictor:
    """Predicts the stages of a plan.

    Args:
        calls: the plan.
        to_run: names of the stages that are predicted.
        scratch: an empty folder for data that are not in the store.
        card: memory in GiB of the card that is planned for; None for the device of the settings.
    """

    def __init__(
        self, calls: Mapping[str, StageCall], to_run: Sequence[str], scratch: Path, card: float | None
    ) -> None:
        self.calls, self.to_run, self.card = calls, to_run, card
        call = calls["optimize"]
        self.runtime, self.model = call.runtime, call.inputs["model"]
        self.lora = LoraConfig.model_validate(call.config["lora"])
        self.load_in = call.config["load_in"]
        if card is None:
            check_cards(self.runtime.gpus, self.runtime.device)
        self.device = choose_device(self.runtime.device) if card is None else torch.device("cuda")
        self.config = _config_of(self.model)
        if (rows := call.config.get("embedding_rows")) is not None:
            self.config.get_text_config().vocab_size = rows
        if "adapter" in calls:
            check_fit(calls["adapter"].inputs["adapter"], self.model)
        self.planned = DataPreview(calls, scratch)
        with _model_may_be_wrong(self.model["path"]):
            self.adapter = DryRun(self._architecture(("policy",), ("policy",)))
            self.process = self._memory_of_process() if self.device.type == "cpu" else 0
        limit = self.runtime.memory_gb
        here = partial(available_memory, self.device, limit, self.runtime.gpus)
        self.available = here() if card is None else share_of(free_memory(card), limit)
        if limit is None:
            self.available += self.process

    def _memory_of_process(self) -> int:
        """Return the memory of a stage's process before it loads its model, measured on this process.

        It consists of the data, the tokenizer, the modules that the first pass imports, and the library code that a
        pass executes. Fake tensors execute none of that code, so a few small real tensors do.
        """
        load_tokenizer(self.model["path"], self.model["revision"], self.model.get(OWN_CODE))
        self.adapter.training([Pass("policy", (TokenSequence((0,) * 16, 8),), 16)], checkpointing=False)
        for dtype in (torch.float32, base_dtype(self.load_in, self.device)):
            states = torch.ones((1, 4, 64, 64), dtype=dtype, requires_grad=True)
            mixed = nn.functional.scaled_dot_product_attention(states, states, states, is_causal=True)
            nn.functional.silu(mixed @ states).float().softmax(-1).sum().backward()  # type: ignore[no-untyped-call]
        return resident_memory()

    def forecast(self, imports: float) -> Forecast:
        """Predict the stages.

        Args:
            imports: seconds from the start of this process until its imports were done.
        """
        stages = self._stages()
        workload = self._workload()
        works = {name: workload.of(call) for name, call in stages.items()}
        speed = None
        with _model_may_be_wrong(self.model["path"]):
            choices = {name: self._choose(work, stages[name].stage) for name, work in works.items()}
        if self.card is None and choices and all(choice.fits for choice in choices.values()):
            speed = measure_speed(self.model, self.load_in, self.lora, self.device, imports)
        adapter, learned = self.adapter.footprint(), self.planned.train(self.calls["optimize"])
        report = self.planned.report()
        return Forecast(
            device=self.name(),
            parameters=adapter.parameters,
            trainable=adapter.trainable,
            notes=self.adapter.notes(),
            rows={
                kind: len(getattr(learned, kind)) for kind in ("demonstrations", "preferences", "feedback", "prompts")
            },
            used=report["used"],
            sampled=self.planned.sampled(),
            held_out=report["rows"]["held_out"],
            raters=report["raters"],
            stages={name: self._prediction(works[name], choice, speed) for name, choice in choices.items()},
            requests={name: workload.requests() for name in self.to_run if calls_judge(self.calls[name])},
            on_cpu=self.card is None and self.device.type == "cpu",
            made=time.time(),
        )

    def until_full(self, first: str | None) -> dict[str, Prediction]:
        """Predict the stages until one does not fit, beginning with `first`. The others come in the plan's order."""
        stages, workload = self._stages(), self._workload()
        found: dict[str, Prediction] = {}
        for name in sorted(stages, key=lambda name: name != first):
            work = workload.of(stages[name])
            with _model_may_be_wrong(self.model["path"]):
                found[name] = self._prediction(work, self._choose(work, stages[name].stage), None)
            if not found[name].fits:
                break
        return {name: found[name] for name in stages if name in found}

    def _workload(self) -> Workload:
        return Workload(self.calls, self.planned, self.config.get_text_config().hidden_size)

    def _stages(self) -> dict[str, StageCall]:
        return {name: self.calls[name] for name in self.to_run if self._runs_our_model(self.calls[name])}

    def name(self) -> str:
        """Return the name of the device."""
        if self.card is not None:
            return f"a card of {self.card:g} GB"
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "the CPU"

    def _runs_our_model(self, call: StageCall) -> bool:
        """Return whether the stage runs the base model of this run. The production model may have a different one."""
        reads = call.stage != "head_to_head" or bool({"judge", "reward"} & call.parents.keys())
        return reads and call.stage not in NO_MODEL and call.inputs["model"] == self.model

    def _prediction(self, work: Work, choice: MemorySettings, speed: Speed | None) -> Prediction:
        needs, demand = choice.needs, choice.demand
        tokens = demand.learned + demand.read + demand.responses * demand.response_tokens
        return Prediction(
            rows=work.rows,
            tokens=round(tokens),
            steps=demand.steps,
            token_budget=choice.token_budget,
            gradient_checkpointing=choice.gradient_checkpointing,
            memory={
                "process": self.process, "base": needs.base, "loading": needs.loading, "adapters": needs.adapters,
                "external_reward": needs.external_reward, "training": needs.training, "passes": needs.passes,
            },
            available=self.available,
            seconds=None if speed is None else round(speed.seconds(demand, choice.gradient_checkpointing), 1),
            ample=choice.ample,
        )  # fmt: skip

    def _choose(self, work: Work, stage: str) -> MemorySettings:
        runtime = self.runtime
        budget = None if runtime.token_budget == "auto" and work.trained else initial_token_budget(runtime)
        return choose_memory_settings(
            DryRun(self._architecture_of(work)),
            work.demand,
            self.available - self.process,
            token_budget=budget,
            gradient_checkpointing=None if runtime.gradient_checkpointing == "auto" else runtime.gradient_checkpointing,
        )

    def _architecture_of(self, work: Work) -> Architecture:
        return replace(
            self._architecture(work.adapters, work.trained),
            heads=work.heads,
            external_reward=work.external_reward,
            external_code=work.external_code,
            adamw=work.adamw,
            snapshots=work.snapshots,
            parameters=work.parameters,
        )

    def _architecture(self, adapters: tuple[str, ...], trained: tuple[str, ...]) -> Architecture:
        code = self.model.get(OWN_CODE)
        return Architecture(self.config, self.load_in, self.lora, adapters, (), trained, self.device, own_code=code)


@contextmanager
def _model_may_be_wrong(path: str) -> Iterator[None]:
    """Turn an error in the code of transformers into one that names the model.

    A configuration whose fields contradict each other, such as a wrong number of heads, is only noticed in a pass.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        first = error.__cause__ or error  # `config_may_be_wrong` has said it in other words
        files = [frame.filename for frame in traceback.extract_tb(first.__traceback__)]
        if ran_out_of_memory(first) or not any(TRANSFORMERS in Path(file).parents for file in files):
            raise
        raise ModelError(
            "the model cannot be run as its config.json describes it",
            where=f"model.base {path}",
            got=f"{type(first).__name__}: {' '.join(str(first).split())[:SHOWN]}",
            do="Download the model again, or choose another",
        ) from error


def _config_of(model: Mapping[str, Any]) -> Any:
    try:
        return read_config(model["path"], model["revision"], model.get(OWN_CODE))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            "the configuration of the base model cannot be loaded",
            where=f"model.base {model['path']}",
            got=loading_failure(error),
        ) from error


if __name__ == "__main__":
    main()
