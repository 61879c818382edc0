"""The work that each stage of a run will do with the models, derived from its call and the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from transformers import PretrainedConfig

from alignment_core.config import EvaluationConfig, Moments, SampleConfig
from alignment_core.errors import DataError
from alignment_core.evaluation.response_metrics import kl_from_reference, reward_scores
from alignment_core.execution.stage import StageCall
from alignment_core.forecast.data_preview import DataPreview
from alignment_core.forecast.ranked import longest, ranked_rows
from alignment_core.models.roles.classifier import read_classifier_config
from alignment_core.own_code import OWN_CODE
from alignment_core.plugin_api import Row
from alignment_core.registry import load_registry
from alignment_core.stages import evaluate, sample
from alignment_core.stages.reward import BradleyTerry
from alignment_core.stages.sft import SFT
from alignment_core.training.contract import Objective
from alignment_core.training.demand import Demand, Layout, trace_inference, trace_training
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run
from alignment_core.training.sampled_rows import SampledRows, samples_of
from alignment_core.training.snapshots import role_of
from alignment_core.training.step.parameters import initial_parameters

LAYOUT = Layout(packs=True, call_cost=0)
"""The layout of nearly all architectures. The actual layout is known only once the weights are loaded."""
Part = tuple[Callable[[Run], object], float]
"""A part of the work of a stage that does not train, and the number of times that it is done."""


@dataclass(frozen=True)
class Work:
    """The work of one stage with the models.

    Attributes:
        adapters, heads, trained: roles, as in `Architecture`.
        rows: number of rows that the stage reads.
        demand: computes the demand at a token budget.
        external_reward: configuration of `reward.model`, if the stage loads it.
        external_code: digest of its own code that may run, if any.
        adamw: precision of AdamW's moments, if the stage trains.
        snapshots, parameters: as in `Architecture`.
    """

    adapters: tuple[str, ...]
    heads: tuple[str, ...]
    trained: tuple[str, ...]
    rows: int
    demand: partial[Demand]
    external_reward: PretrainedConfig | None = None
    adamw: Moments = "32bit"
    snapshots: tuple[str, ...] = ()
    parameters: int = 0
    external_code: str | None = None


class Workload:
    """The work of the stages of one run.

    Args:
        calls: all calls of the run, by their names in the plan.
        planned: the data sets that they read.
        width: size of a hidden state of the base model.
    """

    def __init__(self, calls: Mapping[str, StageCall], planned: DataPreview, width: int) -> None:
        self.calls, self.planned, self.prompts = calls, planned, planned.prompts()
        self.width = width

    def of(self, call: StageCall) -> Work:
        """Return the work of a stage.

        Raises:
            DataError: the data contain no rows for a stage that trains.
        """
        code = call.inputs.get("reward_model", {}).get(OWN_CODE)
        return replace(self._of(call), external_reward=_external_reward(call), external_code=code)

    def _of(self, call: StageCall) -> Work:
        base = ("policy",) if "sft" in call.reads() else ()
        train = self.planned.train(call)
        match call.stage:
            case "sft":
                rows = Rows(demonstrations=train.demonstrations)
                return self._training(call, SFT.model_validate(call.config["sft"]), rows, ("policy",), (), ("policy",))
            case "reward":
                objective = BradleyTerry.model_validate(call.config["reward"])
                rows = Rows(preferences=self._rows(call, train, "preferences"))
                return self._training(call, objective, rows, (*base, "reward"), ("reward",), ("reward",))
            case "optimize":
                return self._optimize(call)
            case "reference":
                return self._reference(call, train, base)
            case "sample":
                settings = SampleConfig.model_validate(call.config["sample"])
                prompts = [
                    *train.prompts[: settings.max_prompts],
                    *self.prompts.held_out_prompts[: settings.max_prompts],
                ]
                longest_response = settings.longest(call.config["max_length"])
                return _reading(base, (), len(prompts), (partial(_sample, prompts, settings, longest_response), 1))
            case "head_to_head":
                return self._head_to_head(call, base)
        return self._evaluate(call, base)

    def _reference(self, call: StageCall, train: Rows, base: tuple[str, ...]) -> Work:
        rows = Rows(**{kind: self._rows(call, train, kind) for kind in call.config["rows"]})
        at_hand = samples_of(rows)
        read = [row for kind in call.config["rows"] for row in getattr(at_hand, kind)]
        of = sum(len(getattr(rows, kind)) for kind in call.config["rows"])
        sequences = {s.digest(): s for row in read for s in row.sequences.values()}
        times = of / max(1, len(read))
        return _reading(base, (), of, (lambda run: run.policy.logps(list(sequences.values())), times))

    def _evaluate(self, call: StageCall, base: tuple[str, ...]) -> Work:
        settings, prompts = self._answered(call)
        reference, reward = ("reference",) if base else (), ("reward",) if "reward" in call.parents else ()
        rewarded = bool(reward) or "reward_model" in call.inputs

        def answer(run: Run) -> None:
            if not prompts:
                return
            answers = run.generate(prompts, max_new_tokens=settings.max_new_tokens)
            kl_from_reference(run, answers, settings.temperature)
            if rewarded:
                reward_scores(run, answers)

        planned = self.planned
        parts: list[Part] = [(lambda run: evaluate.measure(run, planned.held_out), planned.held_out_times), (answer, 1)]
        if evaluate.NEW_VOTES in call.parents:
            votes, times = planned.new_votes()
            parts.append((lambda run: evaluate.implicit_rewards(run, votes), times))
        return _reading(("policy", *reference, *reward), reward, len(prompts), *parts)

    def _head_to_head(self, call: StageCall, base: tuple[str, ...]) -> Work:
        """Return the work of scoring both models' responses with the reward models that have not scored them yet."""
        settings, prompts = self._answered(self.calls["evaluate"])
        both = 2 * [longest(prompt, settings.max_new_tokens) for prompt in prompts]
        judges = sum(role in call.parents for role in ("judge", "reward"))

        def work(run: Run) -> None:
            for _ in range(judges):
                run.reward.scores(both)

        return _reading((*base, "reward"), ("reward",), len(prompts), (work, 1))

    def requests(self) -> int:
        """Return the number of requests to the judge endpoint: two per held-out prompt, one for each response order."""
        return 2 * len(self._answered(self.calls["evaluate"])[1])

    def _answered(self, call: StageCall) -> tuple[EvaluationConfig, Sequence[Row]]:
        """Return the settings of an evaluation and the prompts that it answers."""
        settings = EvaluationConfig.model_validate(call.config["evaluation"])
        return settings, self.prompts.held_out_prompts[: settings.max_prompts]

    def _optimize(self, call: StageCall) -> Work:
        optimizer = load_registry().optimizer(call.config["optimizer"])
        needs, rows, train = optimizer.needs(), Rows(), self.planned.train(call)
        for kind in ("preferences", "feedback", "demonstrations", "prompts"):
            if getattr(needs, kind):
                setattr(rows, kind, self._rows(call, train, kind))
        if needs.prompts:
            rows.held_out_prompts = self.prompts.held_out_prompts
        heads = [name for name in ("reward", "value") if name in (*call.parents, *needs.trained)]
        reference = ["reference"] if needs.reference and "sft" in call.reads() else []
        snapshots = tuple(map(role_of, needs.snapshots))
        work = self._training(call, optimizer, rows, ("policy", *reference, *heads, *snapshots), heads, needs.trained)
        own = initial_parameters(optimizer, self.width, call.config["seed"])
        return replace(work, snapshots=snapshots, parameters=sum(weight.numel() for weight in own.values()))

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
                "the data contain no rows for this stage",
                where=call.label,
                do="Add a source with records that it can learn from",
            )
        layout = replace(LAYOUT, width=self.width)
        demand = partial(
            _rehearse_at,
            objective,
            rows,
            layout,
            tuple(trained),
            call.config["seed"],
            "reference" in call.parents,
            bool({"reward", "reward_model"} & {*call.parents, *call.inputs}),
        )
        return Work(tuple(adapters), tuple(heads), tuple(trained), count, demand, adamw=objective.adamw)

    def _rows(self, call: StageCall, train: Rows, kind: str) -> Sequence[Row]:
        """Return the rows of a kind that a stage learns from, with those that ranking sampled responses can add."""
        existing: Sequence[Row] = getattr(train, kind)
        if "ranked" not in call.parents:
            return existing
        sampled = self.calls["sample"].config
        settings = SampleConfig.model_validate(sampled["sample"])
        added = [*ranked_rows(kind, self.prompts.prompts, settings, settings.longest(sampled["max_length"]))]
        if not isinstance(existing, SampledRows):
            return [*existing, *added]
        # The sample has the same share of both.
        share = len(existing.sample) / max(1, len(existing))
        return SampledRows([*existing.sample, *added[:: max(1, round(1 / share))]], len(existing) + len(added))


def _rehearse_at(
    objective: Objective,
    rows: Rows,
    layout: Layout,
    trained: Sequence[str],
    seed: int,
    cached_reference: bool,
    rewarded: bool,
    tokens: int,
) -> Demand:
    """Call `trace_training` with the token budget as the last argument, for `partial`."""
    return trace_training(
        objective,
        rows,
        layout,
        tokens,
        trained=trained,
        seed=seed,
        cached_reference=cached_reference,
        rewarded=rewarded,
    )


def _reading(adapters: tuple[str, ...], heads: tuple[str, ...], rows: int, *parts: Part) -> Work:
    """Return the work of a stage that does not train."""
    return Work(adapters, heads, (), rows, partial(trace_inference, parts, LAYOUT))


def _sample(prompts: Sequence[Row], settings: SampleConfig, new: int, run: Run) -> None:
    together = sample.prompts_together(settings)
    for start in range(0, len(prompts), together):
        part = prompts[start : start + together]
        run.generate(part, max_new_tokens=new, samples=settings.responses_per_prompt)


def calls_judge(call: StageCall) -> bool:
    """Return whether the stage sends requests to a judge endpoint."""
    return call.stage == "head_to_head" and "endpoint" in call.config


def _external_reward(call: StageCall) -> PretrainedConfig | None:
    place = call.inputs.get("reward_model")
    return None if place is None else read_classifier_config(place["path"], place["revision"], place.get(OWN_CODE))
