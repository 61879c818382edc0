"""The process behind `prediction`: dry runs on fake tensors, then a short real one for the time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import EvaluationConfig, LoraConfig, Moments, SampleConfig
from alignment_core.data.dataset import Dataset, Split, read_dataset
from alignment_core.data.folds import in_fold
from alignment_core.data.rendering import load_tokenizer
from alignment_core.errors import DataError, ModelError
from alignment_core.models.classifier import read_classifier_config
from alignment_core.models.dry_run import Architecture, DryRun, Pass
from alignment_core.models.load import base_dtype, choose_device
from alignment_core.own_process import reply
from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages import ingest
from alignment_core.stages.base import Job, StageCall
from alignment_core.stages.fitting import budget_of
from alignment_core.stages.prediction import Forecast, Prediction
from alignment_core.stages.reward import BradleyTerry
from alignment_core.stages.sft import SFT
from alignment_core.stages.speed import Speed, measure_speed
from alignment_core.training.loop import Objective
from alignment_core.training.memory import Choice, available_memory, choose, resident_memory
from alignment_core.training.rehearsal import Demand, Layout, rehearse
from alignment_core.training.run import Rows

NO_MODEL = ("ingest", "rank", "gate")


@dataclass(frozen=True)
class Work:
    """What a stage does with the models.

    Attributes:
        adapters, heads, trained: roles, as in `Architecture`.
        rows: number of rows that it reads.
        demand: what it asks for at a token budget.
        external_reward: configuration of `reward.model`, where it is loaded.
        adamw: bits of AdamW's moments, where it trains.
    """

    adapters: tuple[str, ...]
    heads: tuple[str, ...]
    trained: tuple[str, ...]
    rows: int
    demand: partial[Demand]
    external_reward: PretrainedConfig | None = None
    adamw: Moments = "32bit"


def main() -> None:
    reply(_forecast)


def _forecast(request: dict[str, Any]) -> dict[str, Any]:
    calls = {name: StageCall.model_validate(call) for name, call in request["calls"].items()}
    with tempfile.TemporaryDirectory(prefix="align-plan-") as folder:
        return _Predictor(calls, request["to_run"], Path(folder)).forecast().model_dump(mode="json")


class _Predictor:
    def __init__(self, calls: Mapping[str, StageCall], to_run: Sequence[str], scratch: Path) -> None:
        self.calls, self.to_run, self.scratch = calls, to_run, scratch
        call = calls["optimize"]
        self.runtime, self.model = call.runtime, call.inputs["model"]
        self.lora = LoraConfig.model_validate(call.config["lora"])
        self.load_in = call.config["load_in"]
        self.device = choose_device(self.runtime.device)
        self.config = _read_config(self.model["path"], self.model["revision"])
        self.data = self._read_data()
        self.adapter = DryRun(self._architecture(("policy",), (), ("policy",)))
        self.process = self._memory_of_process() if self.device.type == "cpu" else 0
        self.available = available_memory(self.device, self.runtime.memory_gb)
        if self.runtime.memory_gb is None:
            self.available += self.process

    def _memory_of_process(self) -> int:
        """What every stage's process holds before its model is there, seen of this one once it holds as much.

        That is the data, the tokenizer, what the first pass imports, and the pages of the libraries' own code that it
        runs: fake tensors run none of them, so a few small real ones do.
        """
        load_tokenizer(self.model["path"], self.model["revision"])
        self.adapter.training([Pass("policy", 16, 16, 8)], checkpointing=False)
        for dtype in (torch.float32, base_dtype(self.load_in, self.device)):
            states = torch.ones((1, 4, 64, 64), dtype=dtype, requires_grad=True)
            mixed = nn.functional.scaled_dot_product_attention(states, states, states, is_causal=True)
            nn.functional.silu(mixed @ states).float().softmax(-1).sum().backward()  # type: ignore[no-untyped-call]
        return resident_memory()

    def forecast(self) -> Forecast:
        stages = {name: self.calls[name] for name in self.to_run if self._runs_our_model(self.calls[name])}
        works = {
            name: replace(self._work(call), external_reward=_external_reward(call)) for name, call in stages.items()
        }
        choices = {name: self._choose(work, stages[name].stage) for name, work in works.items()}
        speed = None
        if choices and all(choice.fits for choice in choices.values()):
            speed = measure_speed(self.model, self.load_in, self.lora, self.device)
        adapter = self.adapter.footprint()
        return Forecast(
            device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "the CPU",
            parameters=adapter.parameters,
            trainable=adapter.trainable,
            rows={
                kind: len(getattr(self.data.train, kind))
                for kind in ("demonstrations", "preferences", "feedback", "prompts")
            },
            stages={name: self._prediction(works[name], choice, speed) for name, choice in choices.items()},
        )

    def _runs_our_model(self, call: StageCall) -> bool:
        """Whether the stage runs the base model that the others share; a model in production may have another."""
        reads = call.stage != "versus" or bool({"judge", "reward"} & call.parents.keys())
        return reads and call.stage not in NO_MODEL and call.inputs["model"] == self.model

    def _prediction(self, work: Work, choice: Choice, speed: Speed | None) -> Prediction:
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
        )  # fmt: skip

    def _choose(self, work: Work, stage: str) -> Choice:
        runtime = self.runtime
        budget = None if runtime.token_budget == "auto" and work.trained else budget_of(runtime)
        return choose(
            DryRun(self._architecture(work.adapters, work.heads, work.trained, work.external_reward, work.adamw)),
            work.demand,
            self.available - self.process,
            token_budget=budget,
            gradient_checkpointing=None if runtime.gradient_checkpointing == "auto" else runtime.gradient_checkpointing,
        )

    def _architecture(
        self,
        adapters: Sequence[str],
        heads: Sequence[str],
        trained: Sequence[str],
        external_reward: PretrainedConfig | None = None,
        adamw: Moments = "32bit",
    ) -> Architecture:
        return Architecture(
            self.config, self.load_in, self.lora, tuple(adapters), tuple(heads), tuple(trained), self.device,
            external_reward=external_reward, adamw=adamw,
        )  # fmt: skip

    # --- the work of each stage -----------------------------------------------------------------------------------

    def _work(self, call: StageCall) -> Work:
        base = ("policy",) if "sft" in call.parents else ()
        train = self._train(call)
        match call.stage:
            case "sft":
                rows = Rows(demonstrations=train.demonstrations)
                return self._training(call, SFT.model_validate(call.config["sft"]), rows, ("policy",), (), ("policy",))
            case "reward":
                objective = BradleyTerry.model_validate(call.config["reward"])
                rows = Rows(preferences=self._preferences(call))
                return self._training(call, objective, rows, (*base, "reward"), ("reward",), ("reward",))
            case "optimize":
                return self._optimize(call)
            case "reference":
                pairs = [row for name in call.config["rows"] for row in getattr(train, name)]
                sequences = [s for row in pairs for s in row.sequences.values()]
                return Work(base, (), (), len(pairs), partial(_read, sequences))
            case "sample":
                settings = SampleConfig.model_validate(call.config["sample"])
                prompts = list(train.prompts[: settings.max_prompts])
                demand = partial(_generate, prompts * settings.responses_per_prompt, settings.max_new_tokens, 0)
                return Work(base, (), (), len(prompts), demand)
            case "versus":
                judges = tuple(role for role in ("judge", "reward") if role in call.parents)
                return self._reading_responses(self.calls["evaluate"], (*base, "reward"), 2 * len(judges))
        evaluation = EvaluationConfig.model_validate(call.config["evaluation"])
        prompts = list(self.data.held_out.prompts[: evaluation.max_prompts])
        roles = ("policy", *(("reference",) if base else ()), *(("reward",) if "reward" in call.parents else ()))
        heads = ("reward",) if "reward" in call.parents else ()
        scored = len(heads) + ("reward_model" in call.inputs)
        held_out = self.data.held_out
        # Demonstrations by the policy, pairs by the policy and the reference.
        read = [s for row in held_out.demonstrations for s in row.sequences.values()]
        read += 2 * [s for row in held_out.preferences for s in row.sequences.values()]
        demand = partial(_evaluate, read, prompts, evaluation.max_new_tokens, 2 + scored)
        return Work(roles, heads, (), len(prompts), demand)

    def _reading_responses(self, evaluated: StageCall, adapters: Sequence[str], times: int) -> Work:
        """Every response to a held-out prompt, read so many times by a reward model."""
        evaluation = EvaluationConfig.model_validate(evaluated.config["evaluation"])
        prompts = list(self.data.held_out.prompts[: evaluation.max_prompts])
        blank = [0] * evaluation.max_new_tokens
        responses = [TokenSequence((*ids, *blank), len(ids)) for ids in (p.sequences["prompt"].ids for p in prompts)]
        return Work(tuple(adapters), ("reward",), (), len(prompts), partial(_read, responses * times))

    def _optimize(self, call: StageCall) -> Work:
        optimizer = load_registry().optimizer(call.config["optimizer"])
        train = self._train(call)
        rows = Rows()
        if optimizer.preferences:
            rows.preferences = self._preferences(call)
        if optimizer.feedback:
            rows.feedback = train.feedback
        if optimizer.prompts:
            rows.prompts, rows.held_out_prompts = train.prompts, self.data.held_out.prompts
        heads = [name for name in ("reward", "value") if name in (*call.parents, *optimizer.trains)]
        reference = ["reference"] if optimizer.reference and "sft" in call.parents else []
        return self._training(call, optimizer, rows, ("policy", *reference, *heads), heads, optimizer.trains)

    def _training(
        self,
        call: StageCall,
        objective: Objective,
        rows: Rows,
        adapters: Sequence[str],
        heads: Sequence[str],
        trained: Sequence[str],
    ) -> Work:
        kinds = (rows.demonstrations, rows.preferences, rows.feedback, rows.prompts)
        count = sum(len(kind) for kind in kinds)
        if not count:
            raise DataError(
                "the data give no rows for this stage",
                where=call.label,
                do="Add a source that holds what it learns from",
            )
        demand = partial(rehearse_at, objective, rows, tuple(trained), call.config["seed"], "reference" in call.parents)
        return Work(tuple(adapters), tuple(heads), tuple(trained), count, demand, adamw=objective.adamw)

    # --- data -----------------------------------------------------------------------------------------------------

    def _read_data(self) -> Dataset:
        """The data set from the store, else ingested here and thrown away."""
        call = self.calls["ingest"]
        found = ArtifactStore(call.runtime.store).find(call.key)
        if found is not None:
            return read_dataset(found.path)
        out, checkpoints = self.scratch / "data", self.scratch / "checkpoints"
        out.mkdir()
        checkpoints.mkdir()
        inside = call.model_copy(update={"runtime": call.runtime.model_copy(update={"store": self.scratch / "store"})})
        ingest.run(Job(inside, {}, out, checkpoints, Silent()))
        return read_dataset(out)

    def _train(self, call: StageCall) -> Split:
        """What the stage may learn from."""
        fold = call.config.get("fold")
        return self.data.train if fold is None else in_fold(self.data.train, **fold)

    def _preferences(self, call: StageCall) -> Sequence[Row]:
        """The data's pairs, with as many as the ranking of sampled responses can give, each as long as it may be."""
        known = self._train(call).preferences
        sample = self.calls.get("sample")
        if sample is None:
            return known
        settings = SampleConfig.model_validate(sample.config["sample"])
        pairs = list(combinations(range(settings.responses_per_prompt), 2))
        new = []
        for prompt in self.data.train.prompts[: settings.max_prompts]:
            ids = prompt.sequences["prompt"].ids
            sequence = TokenSequence((*ids, *([0] * settings.max_new_tokens)), len(ids))
            both = {"chosen": sequence, "rejected": sequence}
            new += [Row(f"{prompt.id} {a} {b}", both, {"margin": 0.0}) for a, b in pairs]
        return [*known, *new]


def rehearse_at(
    objective: Objective, rows: Rows, trained: Sequence[str], seed: int, cached_reference: bool, tokens: int
) -> Demand:
    """`rehearse` with the token budget last."""
    layout = Layout(packs=True, call_cost=0)
    return rehearse(objective, rows, layout, tokens, trained=trained, seed=seed, cached_reference=cached_reference)


def _read(sequences: Sequence[TokenSequence], tokens: int) -> Demand:
    """Every sequence once, without gradients."""
    total = sum(len(sequence.ids) for sequence in sequences)
    longest = max((len(sequence.ids) for sequence in sequences), default=2)
    held = min(total, max(tokens, longest))
    return Demand(reading=Pass("policy", held, longest, held), read=total)


def _generate(prompts: Sequence[Row], new: int, forwards: int, tokens: int) -> Demand:
    """A response to every prompt, then so many forward passes over the responses."""
    lengths = [len(prompt.sequences["prompt"].ids) + new for prompt in prompts] or [new]
    together = len(prompts)
    demand = Demand(room=max(lengths), generated_together=together, responses=together, response_tokens=new)
    if not forwards:
        return demand
    held = min(sum(lengths), max(tokens, max(lengths)))
    return replace(demand, reading=Pass("policy", held, max(lengths), held), read=forwards * sum(lengths))


def _evaluate(
    sequences: Sequence[TokenSequence], prompts: Sequence[Row], new: int, forwards: int, tokens: int
) -> Demand:
    """Held-out sequences, then what `_generate` does."""
    measured, answered = _read(sequences, tokens), _generate(prompts, new, forwards, tokens)
    reading = max(filter(None, (measured.reading, answered.reading)), key=lambda one: one.tokens)
    return replace(answered, reading=reading, read=measured.read + answered.read)


def _external_reward(call: StageCall) -> PretrainedConfig | None:
    place = call.inputs.get("reward_model")
    return None if place is None else read_classifier_config(place["path"], place["revision"])


def _read_config(path: str, revision: str | None) -> Any:
    try:
        return AutoConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            "the base model's configuration does not load", where=f"model.base {path}", got=error
        ) from error


if __name__ == "__main__":
    main()
