"""The calls that measure a run's models: each on its own, beside the SFT model, and beside the model in production."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, TypedDict
from urllib.parse import urlsplit

from alignment_core.artifacts import PRODUCTION, ArtifactStore, Manifest
from alignment_core.artifacts.catalogue import resolve
from alignment_core.config import DataConfig, EndpointConfig
from alignment_core.errors import ArtifactError, ConfigError
from alignment_core.feedback.source import pinned
from alignment_core.models.identity import ModelIdentity, model_identity
from alignment_core.stages.base import StageCall
from alignment_core.stages.calls import Calls
from alignment_core.stages.external_reward import ExternalReward
from alignment_core.stages.plan_lm_eval import lm_eval_call

ENDPOINT_DECIDES = {"url", "model", "instruction"}
"""Settings of an endpoint that decide its verdicts; the others say how it is reached."""
RESERVED = ("endpoint", "judge", "reward", "prompt", "response")
"""What stands beside the evaluators' scores."""


@dataclass(frozen=True)
class Evaluations:
    """What there is to be measured, and by what."""

    data: DataConfig
    ingest: StageCall
    sft: StageCall | None
    reward: StageCall | None
    external: ExternalReward | None
    optimize: StageCall
    judge: StageCall | None
    votes: StageCall | None


class Measured(TypedDict):
    """The fields of `Plan` that measure."""

    ingest_safety: StageCall | None
    ingest_production: StageCall | None
    ingest_production_safety: StageCall | None
    evaluate_sft: StageCall
    evaluate: StageCall
    evaluate_production: StageCall | None
    over_sft: StageCall
    over_production: StageCall | None
    gate: StageCall | None
    lm_eval_sft: StageCall | None
    lm_eval: StageCall | None


def plan_evaluations(calls: Calls, made: Evaluations, optimizer: str) -> Measured:
    """Decide them.

    Raises:
        ConfigError: an evaluator is chosen twice, or the gate asks for what the run does not measure.
        ArtifactError: the model in production is not in the store as it was.
        ModelError: its base model is not where it was.
    """
    return _Planner(calls, made).plan(optimizer)


@dataclass(frozen=True)
class _Promoted:
    """The model in production: its artifact, and calls of stages on the base that it was trained on."""

    manifest: Manifest
    calls: Calls
    same: bool  # base, tokenizer, template and length as this run's


class _Planner:
    def __init__(self, calls: Calls, made: Evaluations) -> None:
        self.calls = calls
        self.made = made
        self.config = calls.config
        self.evaluators = [
            calls.registry.evaluator(raw, where=f"evaluation.evaluators.{index}")
            for index, raw in enumerate(self.config.evaluation.evaluators)
        ]
        self.names = [evaluator.name for evaluator in self.evaluators]
        for name, count in Counter([*RESERVED, *self.names]).items():
            if count > 1:
                raise ConfigError(
                    "an evaluator is chosen twice or is called as something else is, and its scores could not be told "
                    "apart",
                    where="evaluation.evaluators",
                    got=name,
                )

    def plan(self, optimizer: str) -> Measured:
        made, production = self.made, self._production()
        safety = self._safety(self.calls, "ingest safety")
        before = self._evaluate("sft", safety, None)
        after = self._evaluate(optimizer, safety, made.optimize)
        ingest = ingest_safety = rival = over_production = None
        if production is not None and production.same:
            rival = self._evaluate_promoted(production, made.ingest, safety)
        elif production is not None:
            ingest = production.calls.ingest(made.data, name="ingest production")
            ingest_safety = self._safety(production.calls, "ingest production safety")
            rival = self._evaluate_promoted(production, ingest, ingest_safety)
        if production is not None and rival is not None:
            over_production = self._versus("production", after, rival, same=production.same)
        over_sft = self._versus("sft", after, before, same=True)
        return {
            "ingest_safety": safety,
            "ingest_production": ingest,
            "ingest_production_safety": ingest_safety,
            "evaluate_sft": before,
            "evaluate": after,
            "evaluate_production": rival,
            "over_sft": over_sft,
            "over_production": over_production,
            "gate": self._gate(after, over_sft, over_production, production),
            "lm_eval_sft": lm_eval_call(self.calls, "sft", {"sft": made.sft}),
            "lm_eval": lm_eval_call(self.calls, optimizer, {"policy": made.optimize}),
        }

    # --- each model on its own ------------------------------------------------------------------------------------

    def _safety(self, calls: Calls, name: str) -> StageCall | None:
        source = self.config.evaluation.safety
        if source is None:
            return None
        data = DataConfig(sources=[pinned(source)], held_out_fraction=0.5, near_duplicates=None)
        return calls.ingest(data, name=name)

    def _evaluate(self, name: str, safety: StageCall | None, policy: StageCall | None) -> StageCall:
        made = self.made
        parents = {
            "data": made.ingest, "sft": made.sft, "reward": made.reward, "safety": safety, "policy": policy,
            "new_votes": made.votes if policy is not None else None,
        }  # fmt: skip
        measures = self._measures(self.calls)
        return self.calls.call("evaluate", measures, parents, name=f"evaluate {name}", external=made.external)

    def _evaluate_promoted(self, production: _Promoted, data: StageCall, safety: StageCall | None) -> StageCall:
        """The model in production on the same prompts; of another base, on its own and without our reward model."""
        made, manifest = self.made, production.manifest
        role = "policy" if manifest.kind == "optimize" else "sft"
        ours = {"sft": made.sft, "reward": made.reward} if production.same else {}
        parents = {"data": data, "safety": safety, **{name: call for name, call in ours.items() if name != role}}
        # Where this run makes the same model, it is the same evaluation, under the same key.
        return production.calls.call(
            "evaluate",
            self._measures(production.calls),
            parents,
            name="evaluate production",
            standing={role: manifest.key},
            external=made.external,
        )

    def _measures(self, calls: Calls) -> dict[str, Any]:
        evaluation, registry = self.config.evaluation, calls.registry
        shared = {"max_prompts", "max_new_tokens", "temperature"}
        return calls.loads(
            seed=self.config.seed,
            evaluation=evaluation.model_dump(mode="json", include=shared),
            evaluators=[evaluator.model_dump(mode="json") for evaluator in self.evaluators],
            plugins=[registry.identity(evaluator) for evaluator in self.evaluators],
        )

    # --- side by side ---------------------------------------------------------------------------------------------

    def _versus(self, name: str, ours: StageCall, theirs: StageCall, *, same: bool) -> StageCall:
        made = self.made
        parents: dict[str, StageCall | None] = {"policy": ours, "opponent": theirs, "judge": made.judge}
        if not same:
            parents["reward"] = made.reward
        config: dict[str, Any] = {"judges": self.judges, "evaluators": self.names, "seed": self.config.seed}
        inputs = {}
        if parents.get("judge") or parents.get("reward"):
            config |= self.calls.loads()
            parents["sft"] = made.sft
        if (endpoint := self.config.evaluation.endpoint) is not None:
            _check_address(endpoint)
            config["endpoint"] = endpoint.model_dump(mode="json", include=ENDPOINT_DECIDES)
            inputs["endpoint"] = endpoint.model_dump(mode="json", exclude=ENDPOINT_DECIDES)
        return self.calls.call("versus", config, parents, name=f"versus {name}", inputs=inputs)

    @property
    def judges(self) -> list[str]:
        """Who says which of two responses is better, the one whose word weighs most first."""
        evaluation = self.config.evaluation
        return [
            *(["endpoint"] if evaluation.endpoint else []),
            *(["judge"] if self.made.judge else []),
            *self.names,
            *(["reward"] if self.made.reward or self.made.external else []),
        ]

    def _gate(
        self, policy: StageCall, over_sft: StageCall, over_production: StageCall | None, production: _Promoted | None
    ) -> StageCall | None:
        gate = self.config.gate
        if gate is None:
            return None
        self._refuse_rules_on_nothing()
        config = {
            "gate": gate.model_dump(mode="json", exclude={"judge", "to_production"}),
            "judge": gate.judge or next(iter(self.judges), None),
            "production": None if production is None else production.manifest.key,
        }
        parents = {"policy": policy, "over_sft": over_sft, "over_production": over_production}
        return self.calls.call("gate", config, parents)

    def _refuse_rules_on_nothing(self) -> None:
        gate = self.config.gate
        assert gate is not None
        if gate.judge is not None and gate.judge not in self.judges:
            raise ConfigError(
                "this run has no such judge",
                where="gate.judge",
                got=gate.judge,
                expected=f"one of {', '.join(self.judges)}" if self.judges else None,
            )
        if not self.judges and (gate.win_rate_over_sft is not None or gate.win_rate_over_production is not None):
            raise ConfigError(
                "the gate asks for a win rate, and nothing says which of two responses is better",
                where="gate",
                do="Set `evaluation.reward_model: true`, name an evaluator in `evaluation.evaluators`, or set "
                "`gate.win_rate_over_sft` and `gate.win_rate_over_production` to null",
            )
        for evaluator in gate.max_safety_drop:
            if evaluator not in self.names or self.config.evaluation.safety is None:
                raise ConfigError(
                    "the gate asks for a score on the safety prompts that is not measured",
                    where="gate.max_safety_drop",
                    got=evaluator,
                    do="Name the prompts in `evaluation.safety` and the evaluator in `evaluation.evaluators`",
                )

    # --- the model in production ----------------------------------------------------------------------------------

    def _production(self) -> _Promoted | None:
        store = ArtifactStore(self.config.store)
        if store.aliases.current(PRODUCTION) is None:
            return None
        entry = resolve(store, PRODUCTION)
        if (fault := store.fault(entry.artifact)) is not None or entry.manifest is None:
            raise ArtifactError(
                f"the model that `{PRODUCTION}` means is damaged: {fault}",
                where=entry.artifact.uri,
                do="Promote another by `align promote`, or go back by `align rollback`",
            )
        manifest, ours = entry.manifest, self.calls
        config = {**manifest.config}
        same = all(config[name] == value for name, value in ours.loads().items() if name != "load_in")
        return _Promoted(manifest, ours if same else self._on_its_own_base(manifest), same)

    def _on_its_own_base(self, manifest: Manifest) -> Calls:
        config, where = manifest.config, manifest.inputs["model"]
        found: ModelIdentity = model_identity(where["path"], where["revision"])
        if (found.weights, found.tokenizer) != (config["base"], config["tokenizer"]):
            raise ArtifactError(
                f"the base model of the model in {PRODUCTION} is no longer what it was trained on",
                where=where["path"],
                do="Put the old one back, or promote another model by `align promote`",
            )
        return replace(
            self.calls,
            model=found,
            chat_template=config["chat_template"],
            load_in=config["load_in"],
            max_length=config["max_length"],
        )


def _check_address(endpoint: EndpointConfig) -> None:
    where = "evaluation.endpoint.url"
    try:
        parts = urlsplit(endpoint.url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            "this is no address", where=where, got=endpoint.url, expected="one such as http://localhost:8000/v1"
        )
    if parts.password:
        raise ConfigError(
            "the address holds a password, which would be stored",
            where=where,
            do=f"Put the key into the environment variable {endpoint.key_variable}",
        )
