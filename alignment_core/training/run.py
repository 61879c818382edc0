"""The run that an objective works with: roles, rows, generation, state and named random generators."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from alignment_core.errors import PluginError
from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.engine import Engine, OwnEngine
from alignment_core.models.roles.logps import Budget, LanguageModel, ScalarModel
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import Rollout, Row, TokenLogps
from alignment_core.progress import Progress, Stopped, Work
from alignment_core.seeds import seed_of
from alignment_core.training.reference import CachedReference
from alignment_core.training.rewards import Judge, Rewards, ValueInUnits, filled
from alignment_core.training.rows import RewardModel, Rows, Undeclared, Vocabulary
from alignment_core.training.sampled_logps import sampled_logps
from alignment_core.training.sampling import check_prompts, noise_keys, rollouts_of
from alignment_core.training.snapshots import Snapshots, role_of

PairJudge = Callable[[Sequence[Rollout], Sequence[Rollout]], Sequence[float | None]]


@dataclass
class Run:
    """A `plugin_api.AlignmentRun`, created by a stage and driven by the loop."""

    roles: Roles
    rows: Rows
    vocabulary: Vocabulary
    budget: Budget
    seed: int
    progress: Progress
    cached_reference: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    total: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    judges: dict[str, Judge] = field(default_factory=dict)
    pair_judges: dict[str, PairJudge] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    external_reward: RewardModel | None = None
    rewarded_by: Rewards | None = None
    engine: Engine | None = None
    logged_fresh_logps: bool = False
    sampled: Counter[str] = field(default_factory=Counter)
    snapshot_names: Sequence[str] = ()
    work: Work | None = None

    def __post_init__(self) -> None:
        self.budget.on_halved, self.budget.on_pass = self.warn, self._before_pass
        self.snapshots = Snapshots(self.roles, self.snapshot_names)
        self.policy = self._language_model("policy")
        self.reference: Any = Undeclared("reference")
        self.reward: Any = Undeclared("reward")
        self.value: Any = Undeclared("value")
        if self.roles.has("reference"):
            self.reference = CachedReference(self._language_model("reference"), self.cached_reference)
        if self.rewarded_by is not None:
            self.rewarded_by.warn = self.warn
        if self.external_reward is not None:
            self.reward = self.external_reward
        elif self.roles.has("reward"):
            self.reward = self.scalar("reward")
        if self.roles.has("value"):
            self.value = self.scalar("value")
            if self.rewarded_by is not None and self.roles.has("reward"):
                self.value = ValueInUnits(self.value, self.rewarded_by)

    def role(self, name: str) -> Any:
        """Return the policy, the reference or a snapshot as a `plugin_api.LanguageModelRole`.

        Raises:
            PluginError: the optimizer did not declare a snapshot of this name.
        """
        if name in ("policy", "reference"):
            return getattr(self, name)
        if name in self.snapshots.names:
            return self._language_model(role_of(name))
        raise PluginError(
            "the optimizer used a role that it did not declare",
            where="role",
            got=name,
            expected=", ".join(["policy", "reference", *self.snapshots.names]),
            do=f'Return `Needs(snapshots=("{name}",), …)` from `needs`',
        )

    def _language_model(self, name: str) -> LanguageModel:
        return LanguageModel(self.roles, name, self.vocabulary.pad_id, self.budget)

    def scalar(self, name: str) -> ScalarModel:
        return ScalarModel(self.roles, name, self.vocabulary.pad_id, self.budget)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return dict(self.roles.extra.items())

    @property
    def device(self) -> torch.device:
        device: torch.device = self.roles.device
        return device

    @property
    def tokenizer(self) -> Any:
        return self.vocabulary.tokenizer

    @property
    def demonstrations(self) -> Sequence[Row]:
        return self.rows.demonstrations

    @property
    def preferences(self) -> Sequence[Row]:
        return self.rows.preferences

    @property
    def feedback(self) -> Sequence[Row]:
        return self.rows.feedback

    @property
    def prompts(self) -> Sequence[Row]:
        return self.rows.prompts

    @property
    def held_out_prompts(self) -> Sequence[Row]:
        return self.rows.held_out_prompts

    def shuffled(self, rows: Sequence[Row], batch_size: int, epochs: int) -> Iterator[list[Row]]:
        """Yield batches of shuffled epochs, starting at `step`. The order depends only on seed and epoch."""
        per_epoch = -(-len(rows) // batch_size)
        for index in range(self.step, epochs * per_epoch):
            epoch, place = divmod(index, per_epoch)
            order = list(range(len(rows)))
            random.Random(seed_of(self.seed, "shuffle", epoch)).shuffle(order)
            yield [rows[i] for i in order[place * batch_size : (place + 1) * batch_size]]

    def generate(
        self,
        prompts: Sequence[Row],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        samples: int = 1,
        logps: bool = False,
        role: str = "policy",
    ) -> list[Rollout]:
        """Sample responses of a role, `samples` per prompt, next to each other.

        Raises:
            PluginError: log-probabilities are asked for at temperature 0.
        """
        if logps and not temperature:
            raise PluginError("greedy responses have no log-probabilities", where="run.generate", got="temperature=0")
        if isinstance(model := self.role(role), Undeclared):
            model.generate()
        check_prompts(prompts)
        repeated = [prompt for prompt in prompts for _ in range(samples)]
        keys = noise_keys(self.seed, self.step, repeated, role)
        vocabulary = self.vocabulary
        engine = self.engine or OwnEngine(self.roles, vocabulary.stop_ids, vocabulary.pad_id, self.budget)
        found = engine.generate(
            role_of(role) if role in self.snapshots.names else role,
            [prompt.sequences["prompt"] for prompt in repeated],
            Sampling(max_new_tokens, temperature, top_p, top_k, logps),
            keys,
            on_step=lambda done: self._while_sampling(done, len(repeated)),
        )
        if self.work is not None:
            self.work.add(len(found))
        self.sampled.update(responses=len(found), slow=sum(one.slow for one in found))
        return rollouts_of(repeated, found, vocabulary)

    def sampled_logps(self, rollouts: Sequence[Rollout], temperature: float = 1.0) -> TokenLogps:
        refused: list[str] = []
        found = sampled_logps(self.policy, rollouts, temperature, refused.append)
        if refused and not self.logged_fresh_logps:
            self.progress.log(refused[0])
            self.logged_fresh_logps = True
        self.sampled.update(checked=len(rollouts), read_again=len(rollouts) if refused else 0)
        return found

    def _while_sampling(self, done: float, total: int) -> None:
        if self.progress.stopping:
            raise Stopped(f"stopped after {int(done)} of {total} responses")
        if self.work is not None:
            self.work.at(done)

    def _before_pass(self, sequences: int) -> None:
        if self.progress.stopping:
            raise Stopped(f"stopped after step {self.step}")
        if self.work is not None:
            self.work.begin(sequences)

    def judge(self, setting: str, rollouts: Sequence[Rollout]) -> list[float]:
        """Return the score of each response from the evaluator that `setting` chooses.

        Raises:
            PluginError: the optimizer did not declare that this setting chooses an evaluator, or the setting is None.
        """
        if setting not in self.judges:
            raise PluginError(
                "the optimizer asked for an evaluator that it did not declare or that is not set",
                where=f"optimizer.{setting}",
                do=f'Declare `evaluators: ClassVar = ("{setting}",)`, and ask only if the setting is not None',
            )
        return filled(self.judges[setting](rollouts), f"optimizer.{setting}")

    def prefer(self, setting: str, a: Sequence[Rollout], b: Sequence[Rollout]) -> list[float]:
        """Return the probability that the first response of each pair is better (`plugin_api.AlignmentRun.prefer`).

        Raises:
            PluginError: the optimizer did not declare that this setting chooses a pair evaluator, or it is None, or the
                responses of a pair have different prompts.
        """
        if setting not in self.pair_judges:
            raise PluginError(
                "the optimizer asked for a pair evaluator that it did not declare or that is not set",
                where=f"optimizer.{setting}",
                do=f'Declare `pair_evaluators: ClassVar = ("{setting}",)`, and ask only if the setting is not None',
            )
        if [rollout.prompt.id for rollout in a] != [rollout.prompt.id for rollout in b]:
            raise PluginError("the responses of a pair have different prompts", where=f"run.prefer({setting!r})")
        return [0.5 if found is None else found for found in self.pair_judges[setting](a, b)]

    def rewards(self, rollouts: Sequence[Rollout], *, held_out: bool = False) -> Tensor:
        """Return the reward of each response, shape (responses,), float32 (`plugin_api.AlignmentRun.rewards`)."""
        if self.rewarded_by is None:
            return Undeclared("reward").rewards  # type: ignore[no-any-return]
        prefix = "held_out_" if held_out else ""
        return self.rewarded_by(self.reward, rollouts, self.device, prefix=prefix)

    def take_side_metrics(self) -> dict[str, float]:
        """Return the metrics of the sampling and of the rewards since the last report."""
        shares = {"slow_responses_share": ("slow", "responses"), "read_again_share": ("read_again", "checked")}
        sampled = {
            name: self.sampled[part] / self.sampled[whole]
            for name, (part, whole) in shares.items()
            if self.sampled[whole]
        }
        self.sampled.clear()
        return sampled | ({} if self.rewarded_by is None else self.rewarded_by.take_metrics())

    def snapshot(self, name: str, mix: float = 1.0) -> None:
        """Move a snapshot towards the policy (`Snapshots.move`)."""
        self.snapshots.move(name, mix, self.step)

    def keep(self) -> None:
        """Copy the current trained weights to the CPU. The previous copy is dropped."""
        self.kept = {name: p.detach().to("cpu", copy=True) for name, p in self.roles.parameters().items()}

    def restore(self) -> None:
        """Restore the kept weights.

        Raises:
            PluginError: nothing was kept.
        """
        if not self.kept:
            raise PluginError("no weights were kept", where="run.restore()", do="Call `run.keep()` first")
        with torch.no_grad():
            for name, parameter in self.roles.parameters().items():
                parameter.copy_(self.kept[name])

    def random(self, name: str) -> random.Random:
        return random.Random(seed_of(self.seed, name))

    def report(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if name == "step" or not isinstance(value, Real):
                raise PluginError(
                    f"the metric `{name}` cannot be reported",
                    got="the name of the step's number" if name == "step" else type(value).__name__,
                    expected="another name" if name == "step" else "a number, such as `float(scores.mean())`",
                )
        entry = {
            "step": self.step,
            **self.take_side_metrics(),
            **{name: value if isinstance(value, int) else float(value) for name, value in metrics.items()},
        }
        # A run that was stopped within a step builds that step's batch again, and reports it again.
        if self.history and (last := self.history[-1])["step"] == self.step and last.keys() == entry.keys():
            self.history.pop()
        self.history.append(entry)
        self.progress.step(self.step, self.total, {name: entry[name] for name in entry if name != "step"})

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.progress.warn(message)
