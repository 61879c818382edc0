"""Plan the stage calls that evaluate a run's models: each alone, against the SFT model, and against production."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from alignment_core.addresses import has_secret
from alignment_core.artifacts import PRODUCTION, ArtifactStore, Manifest
from alignment_core.artifacts.catalogue import resolve
from alignment_core.config import DataConfig, EndpointConfig
from alignment_core.errors import ArtifactError, ConfigError
from alignment_core.execution.stage import StageCall
from alignment_core.feedback.data_source import pin_source
from alignment_core.models.base.gguf_file import ORIGIN
from alignment_core.models.base.identity import ModelIdentity, model_identity
from alignment_core.own_code import OWN_CODE, check_consent
from alignment_core.planning.external_reward import ExternalReward
from alignment_core.planning.lm_eval import lm_eval_call
from alignment_core.planning.stage_calls import ROWS, StageCalls
from alignment_core.planning.unpacked_base import BASE

ENDPOINT_DECIDES = {"url", "model", "instruction"}
"""Settings of an endpoint that determine its verdicts. The others describe the connection."""
AFTER_THE_VERDICT = {"to_production", "approval", "approval_days"}
"""Settings of the gate that say what happens after its verdict."""
RESERVED = ("endpoint", "judge", "reward", "prompt", "response")
"""Names in use next to the evaluators' scores. No evaluator may have one of them."""


@dataclass(frozen=True)
class Evaluations:
    """The calls whose models are evaluated, and the models that evaluate them.

    `sft` is the model that the optimizer starts from: the SFT model, or the adapter that the run goes on from.
    """

    data: DataConfig
    ingest: StageCall
    sft: StageCall | None
    reward: StageCall | None
    external: ExternalReward | None
    optimize: StageCall
    judge: StageCall | None
    votes: StageCall | None


class Measured(TypedDict):
    """The evaluation calls, by the names of the fields of `Plan`."""

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


def plan_evaluations(calls: StageCalls, made: Evaluations, optimizer: str) -> Measured:
    """Return the evaluation calls of a run.

    Raises:
        ConfigError: an evaluator name is used twice, or the gate needs a measurement that the run does not make.
        ArtifactError: the production model is missing from the store or damaged.
        ModelError: the base model of the production model cannot be found.
    """
    return _Planner(calls, made).plan(optimizer)


@dataclass(frozen=True)
class _Promoted:
    """The production model: its manifest, and stage calls on the base model that it was trained on."""

    manifest: Manifest
    calls: StageCalls
    same: bool  # whether base, tokenizer, chat template and maximum length are the same as in this run


class _Planner:
    def __init__(self, calls: StageCalls, made: Evaluations) -> None:
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
                    "the name of an evaluator is already in use, so its scores could not be distinguished",
                    where="evaluation.evaluators",
                    got=name,
                    do=f"Use every evaluator once. The names {', '.join(RESERVED)} are reserved",
                )

    def plan(self, optimizer: str) -> Measured:
        made, production = self.made, self._production()
        safety = self._safety(self.calls, "ingest safety")
        start = "base" if made.sft is None else made.sft.stage
        before = self._evaluate(start, safety, None)
        after = self._evaluate(optimizer, safety, made.optimize)
        ingest = ingest_safety = rival = over_production = None
        if production is not None and production.same:
            rival = self._evaluate_promoted(production, made.ingest, safety)
        elif production is not None:
            ingest = production.calls.ingest(made.data, name="ingest production")
            ingest_safety = self._safety(production.calls, "ingest production safety")
            rival = self._evaluate_promoted(production, ingest, ingest_safety)
        if production is not None and rival is not None:
            over_production = self._head_to_head("production", after, rival, same=production.same)
        over_sft = self._head_to_head(start, after, before, same=True)
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
            "lm_eval_sft": lm_eval_call(self.calls, start, {"sft": made.sft}),
            "lm_eval": lm_eval_call(self.calls, optimizer, {"policy": made.optimize}),
        }

    # --- each model alone -----------------------------------------------------------------------------------------

    def _safety(self, calls: StageCalls, name: str) -> StageCall | None:
        source = self.config.evaluation.safety
        if source is None:
            return None
        data = DataConfig(sources=[pin_source(source)], held_out_fraction=0.5, near_duplicates=None)
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
        """Evaluate the production model on the same prompts.

        If it has another base model, it is evaluated on that base and without this run's reward model.
        """
        made, manifest = self.made, production.manifest
        role = "policy" if manifest.kind == "optimize" else "sft"
        ours = {"sft": made.sft, "reward": made.reward} if production.same else {}
        parents = {"data": data, "safety": safety, **{name: call for name, call in ours.items() if name != role}}
        # If this run makes the same model, the evaluation has the same key.
        return production.calls.call(
            "evaluate",
            self._measures(production.calls),
            parents,
            name="evaluate production",
            standing={role: manifest.key},
            external=made.external,
        )

    def _measures(self, calls: StageCalls) -> dict[str, Any]:
        evaluation, registry = self.config.evaluation, calls.registry
        shared = {"max_prompts", "max_new_tokens", "temperature"}
        return calls.model_settings(
            seed=self.config.seed,
            evaluation=evaluation.model_dump(mode="json", include=shared),
            evaluators=[evaluator.model_dump(mode="json") for evaluator in self.evaluators],
            plugins=[registry.identity(evaluator) for evaluator in self.evaluators],
        )

    # --- side by side ---------------------------------------------------------------------------------------------

    def _head_to_head(self, name: str, ours: StageCall, theirs: StageCall, *, same: bool) -> StageCall:
        made = self.made
        parents: dict[str, StageCall | None] = {"policy": ours, "opponent": theirs, "judge": made.judge}
        if not same:
            parents["reward"] = made.reward
        config: dict[str, Any] = {"judges": self.judges, "evaluators": self.names, "seed": self.config.seed}
        inputs = {}
        if parents.get("judge") or parents.get("reward"):
            config |= self.calls.model_settings()
            parents["sft"] = made.sft
        if (endpoint := self.config.evaluation.endpoint) is not None:
            _check_address(endpoint)
            config["endpoint"] = endpoint.model_dump(mode="json", include=ENDPOINT_DECIDES)
            inputs["endpoint"] = endpoint.model_dump(mode="json", exclude=ENDPOINT_DECIDES)
        return self.calls.call("head_to_head", config, parents, name=f"versus {name}", inputs=inputs)

    @property
    def judges(self) -> list[str]:
        """Return the names of the judges, in order of precedence."""
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
            "gate": gate.model_dump(mode="json", exclude=AFTER_THE_VERDICT | {"judge"}),
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
                "the gate needs a win rate, but the run has no judge",
                where="gate",
                do="Set `evaluation.reward_model: true`, add an evaluator to `evaluation.evaluators`, or set "
                "`gate.win_rate_over_sft` and `gate.win_rate_over_production` to null",
            )
        for evaluator in gate.max_safety_drop:
            if evaluator not in self.names or self.config.evaluation.safety is None:
                raise ConfigError(
                    "the gate needs an evaluator's score on the safety prompts, which the run does not measure",
                    where="gate.max_safety_drop",
                    got=evaluator,
                    do="Set `evaluation.safety` to the prompts, and add the evaluator to `evaluation.evaluators`",
                )

    # --- the production model -------------------------------------------------------------------------------------

    def _production(self) -> _Promoted | None:
        store = ArtifactStore(self.config.store, self.config.remote)
        if store.aliases.current(PRODUCTION) is None:
            return None
        entry = resolve(store, PRODUCTION)
        if (fault := store.fault(entry.artifact)) is not None or entry.manifest is None:
            raise ArtifactError(
                f"the `{PRODUCTION}` model is damaged: {fault}",
                where=entry.artifact.uri,
                do="Promote another model with `align promote`, or return to the previous one with `align rollback`",
            )
        manifest, ours = entry.manifest, self.calls
        config = {**manifest.config}
        shared = {**ours.model_settings(), ROWS: ours.rows, OWN_CODE: ours.model.own_code}
        same = all(config.get(name) == value for name, value in shared.items() if name != "load_in")
        return _Promoted(manifest, ours if same else self._on_its_own_base(manifest), same)

    def _on_its_own_base(self, manifest: Manifest) -> StageCalls:
        config, where = manifest.config, manifest.inputs["model"]
        trusted = self.config.model.trust_remote_code
        check_consent(where, trusted=trusted, do="set `model.trust_remote_code: true`")
        # If its artifact names no code, none was run to train it.
        found: ModelIdentity = model_identity(where["path"], where["revision"], trusted=trusted and OWN_CODE in where)
        trained_on = (config["base"], config["tokenizer"], config.get(OWN_CODE))
        if (found.weights, found.tokenizer, found.own_code) != trained_on:
            raise ArtifactError(
                f"the base model of the `{PRODUCTION}` model has changed since it was trained",
                where=where["path"],
                do="Restore the old base model, or promote another model with `align promote`",
            )
        return replace(
            self.calls,
            model=found,
            chat_template=config["chat_template"],
            thoughts=config.get("thoughts", "text"),  # unset in models from before the setting
            load_in=config["load_in"],
            max_length=config["max_length"],
            rows=config.get(ROWS),
            base_key=manifest.parents.get(BASE),
            origin={ORIGIN: where[ORIGIN]} if ORIGIN in where else {},
        )


def _check_address(endpoint: EndpointConfig) -> None:
    where = "evaluation.endpoint.url"
    if has_secret(endpoint.url):
        raise ConfigError(
            "the URL contains a secret, such as a password or a key, which would be stored",
            where=where,
            do=f"Put the key in the environment variable {endpoint.key_variable}",
        )
