"""What a stage demands of the models, measured by running it with roles that only record calls.

The objective's `batches` and `loss` run on its own rows, and the metrics of an evaluation run on the held-out rows.
Every forward pass is recorded and answered with zeros, and every response has the maximum length. This gives the demand
of a plugin without any declaration by its author.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from alignment_core.models.memory.architecture import Pass
from alignment_core.models.passes.batching import group_by_budget, row_sequences
from alignment_core.models.passes.packing import LEAST_SHARED, pack_by_budget
from alignment_core.models.passes.reach import EVERY_LENGTH, Reach
from alignment_core.models.roles.logps import Budget, completion_mask, split_into_passes, target_mask
from alignment_core.plugin_api import AlignmentOptimizer, Rollout, Row, TokenLogps, TokenSequence
from alignment_core.progress import Silent
from alignment_core.training.contract import Objective, batches_of, loss_of, steps_of
from alignment_core.training.micro_rows import MicroRows
from alignment_core.training.rows import Rows, Vocabulary
from alignment_core.training.run import Run
from alignment_core.training.sampled_rows import samples_of
from alignment_core.training.snapshots import role_of
from alignment_core.training.step.parameters import initial_parameters

REHEARSED_STEPS = 32
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model lays out sequences: `Roles.packs`, `Roles.call_cost` and `Roles.reach`; and `Roles.width`."""

    packs: bool
    call_cost: int
    reach: Reach = EVERY_LENGTH
    width: int = 1


@dataclass
class Demand:
    """What a complete stage demands of the models.

    Attributes:
        steps: optimizer steps.
        largest: forward passes with gradients of the micro-batch with the most tokens.
        reading: the largest pass without gradients that predicts tokens, with a scalar head and of hidden states.
        room: most tokens of a prompt with its response in generation; 0 without generation.
        generated_together: most responses in one call of `generate`.
        learned: tokens that run forward and backward, in all steps.
        read: tokens that run only forward, in all steps.
        responses: sampled responses, in all steps.
        response_tokens: longest response, in tokens.
    """

    steps: int = 0
    largest: tuple[Pass, ...] = ()
    reading: tuple[Pass, ...] = ()
    room: int = 0
    generated_together: int = 0
    learned: float = 0
    read: float = 0
    responses: float = 0
    response_tokens: int = 0


def trace_training(
    objective: Objective,
    rows: Rows,
    layout: Layout,
    tokens: int,
    *,
    trained: Sequence[str],
    seed: int = 0,
    cached_reference: bool = False,
    rewarded: bool = True,
) -> Demand:
    """Return the demand of an objective on its rows at a token budget.

    The first `REHEARSED_STEPS` steps are run, and the rest are assumed to be like them. Of `SampledRows`, the steps
    read the sample. `rewarded` says whether a reward model scores the responses.

    Raises:
        AlignmentError: the objective rejects its rows.
    """
    notes = _Notes(layout, tokens, tuple(trained))
    total = steps_of(objective, _Rehearsal(notes, rows, seed, cached_reference, rewarded))
    run = _Rehearsal(notes, samples_of(rows), seed, cached_reference, rewarded)
    if isinstance(objective, AlignmentOptimizer):
        run.own = initial_parameters(objective, layout.width, seed)
    done = 0
    for batch in batches_of(objective, run):
        denominators = {"rows": float(len(batch.rows)), **batch.denominators}
        metrics: dict[str, float] = {"loss": 0.0}
        groups = (pack_by_budget if layout.packs else group_by_budget)(batch.rows, tokens, row_sequences)
        for group in groups:
            notes.micro = []
            micro = MicroRows([batch.rows[i] for i in group], denominators, batch.constants, CPU)
            output = loss_of(objective, run, micro)
            for name, value in output.metrics.items():
                number = float(value.detach()) if isinstance(value, Tensor) else value
                metrics[name] = metrics.get(name, 0.0) + number
            notes.finish_micro_batch()
        run.step += 1
        run.metrics = {**metrics, "grad_norm": 0.0, "learning_rate": objective.learning_rate}
        done += 1
        if done == REHEARSED_STEPS:
            break
    return notes.demand(total, total / max(1, done))


def trace_inference(parts: Sequence[tuple[Callable[[Run], object], float]], layout: Layout, tokens: int) -> Demand:
    """Return the demand of work without gradients on a run, at a token budget.

    Args:
        parts: parts of the work, each with the number of times that it is done, which need not be whole.
        layout: how the model lays out sequences.
        tokens: the token budget.
    """
    notes = _Notes(layout, tokens, ())
    run = _Rehearsal(notes, Rows(), 0, cached_reference=False, rewarded=True)
    for work, notes.times in parts:
        work(run)
    return notes.demand(0, 1)


@dataclass
class _Notes:
    layout: Layout
    tokens: int
    trained: tuple[str, ...]
    micro: list[Pass] | None = None
    found: Demand = field(default_factory=Demand)
    read: dict[tuple[bool, bool], Pass] = field(default_factory=dict)
    times: float = 1

    def forward(
        self, role: str, sequences: Sequence[TokenSequence], *, head: bool = False, hidden: bool = False
    ) -> None:
        layout = self.layout
        for group in split_into_passes(
            sequences, self.tokens, packs=layout.packs, call_cost=layout.call_cost, reach=layout.reach
        ):
            self._note(role, [sequences[i] for i in group], head, hidden)

    def _note(self, role: str, sequences: Sequence[TokenSequence], head: bool, hidden: bool) -> None:
        width = max(len(sequence.ids) for sequence in sequences)
        packs = self.layout.packs and width <= self.layout.reach.packed
        tokens = _packed_tokens(sequences) if packs else width * len(sequences)
        noted = Pass(role, tuple(sequences), tokens, head, hidden)
        if self.micro is not None and role in self.trained:
            self.micro.append(noted)
            self.found.learned += tokens
            return
        self.found.read += tokens * self.times
        if (head, hidden) not in self.read or tokens > self.read[head, hidden].tokens:
            self.read[head, hidden] = noted

    def finish_micro_batch(self) -> None:
        micro, self.micro = self.micro or [], None
        if sum(one.tokens for one in micro) > sum(one.tokens for one in self.found.largest):
            self.found.largest = tuple(micro)

    def generate(self, prompts: Sequence[TokenSequence], new: int) -> None:
        found = self.found
        found.responses += len(prompts) * self.times
        found.room = max(found.room, max(len(prompt.ids) for prompt in prompts) + new)
        found.response_tokens = max(found.response_tokens, new)
        found.generated_together = max(found.generated_together, len(prompts))

    def demand(self, steps: int, share: float) -> Demand:
        found = self.found
        found.steps, found.reading = steps, tuple(self.read.values())
        found.learned, found.read, found.responses = found.learned * share, found.read * share, found.responses * share
        return found


def _packed_tokens(sequences: Sequence[TokenSequence]) -> int:
    """Return the number of tokens in a packed row, where a shared prompt counts once."""
    seen: set[tuple[int, ...]] = set()
    total = 0
    for sequence in sequences:
        shared = sequence.start >= LEAST_SHARED and sequence.prompt in seen
        total += len(sequence.ids) - (sequence.start if shared else 0)
        seen.add(sequence.prompt)
    return total


class _Rehearsal(Run):
    """A run without models, which records the calls to its roles."""

    def __init__(self, notes: _Notes, rows: Rows, seed: int, cached_reference: bool, rewarded: bool) -> None:
        self.notes, self.cached, self.rewarded = notes, cached_reference, rewarded
        self.own: dict[str, Tensor] = {}
        tokenizer = SimpleNamespace(decode=lambda *_, **__: "")
        stub: Any = SimpleNamespace(device=CPU, parameters=dict)
        super().__init__(stub, rows, Vocabulary(tokenizer, 0, ()), Budget(notes.tokens), seed, Silent())

    def __post_init__(self) -> None:
        self.policy: Any = _StubLanguageModel("policy", self.notes)
        self.reference = _StubLanguageModel("reference", self.notes, cached=self.cached)
        self.reward = _StubScalarModel("reward", self.notes)
        self.value = _StubScalarModel("value", self.notes)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {name: weight.requires_grad_(True) for name, weight in self.own.items()}

    def role(self, name: str) -> Any:
        return getattr(self, name) if name in ("policy", "reference") else _StubLanguageModel(role_of(name), self.notes)

    def snapshot(self, name: str, mix: float = 1.0) -> None:
        pass

    def generate(self, prompts: Sequence[Row], **options: Any) -> list[Rollout]:
        new: int = options["max_new_tokens"]
        repeated = [prompt for prompt in prompts for _ in range(options.get("samples", 1))]
        self.notes.generate([prompt.sequences["prompt"] for prompt in repeated], new)
        found = []
        for prompt in repeated:
            ids = prompt.sequences["prompt"].ids
            found.append(Rollout(prompt, TokenSequence((*ids, *([0] * new)), len(ids)), finished=False, text=""))
        return found

    def rewards(self, rollouts: Sequence[Rollout], *, held_out: bool = False) -> Tensor:
        # Neighbors differ, because optimizers that compare responses to a prompt learn nothing from equal rewards.
        apart = torch.arange(len(rollouts)) % 2
        if not self.rewarded:
            return apart.float()
        scores: Tensor = self.reward.scores([rollout.sequence for rollout in rollouts])
        return scores + apart

    def prefer(self, setting: str, a: Sequence[Rollout], b: Sequence[Rollout]) -> list[float]:
        return [0.5] * len(a)

    def judge(self, setting: str, rollouts: Sequence[Rollout]) -> list[float]:
        return [0.0] * len(rollouts)

    def keep(self) -> None:
        pass

    def restore(self) -> None:
        pass

    def report(self, metrics: Mapping[str, float]) -> None:
        pass

    def warn(self, message: str) -> None:
        pass


@dataclass
class _StubLanguageModel:
    """A policy or reference whose log-probabilities are all 0. `logps` of a cached one costs nothing."""

    role: str
    notes: _Notes
    cached: bool = False

    def logps(self, sequences: Sequence[TokenSequence]) -> Tensor:
        if not self.cached:
            self.notes.forward(self.role, sequences)
        return torch.zeros(len(sequences), requires_grad=self.notes.micro is not None)

    def token_logps(self, sequences: Sequence[TokenSequence], temperature: float = 1.0) -> TokenLogps:
        self.notes.forward(self.role, sequences)
        mask = target_mask(sequences).float()
        logps = torch.zeros_like(mask, requires_grad=self.notes.micro is not None)
        return TokenLogps(logps, mask, torch.zeros_like(mask))

    def hidden(self, sequences: Sequence[TokenSequence]) -> Tensor:
        self.notes.forward(self.role, sequences, hidden=True)
        shape = (*completion_mask(sequences).shape, self.notes.layout.width)
        return torch.zeros(shape, requires_grad=self.notes.micro is not None)


@dataclass
class _StubScalarModel:
    """A reward or value model whose scores and values are all 0."""

    role: str
    notes: _Notes

    def scores(self, sequences: Sequence[TokenSequence]) -> Tensor:
        self.notes.forward(self.role, sequences, head=True)
        return torch.zeros(len(sequences), requires_grad=self.notes.micro is not None)

    def values(self, sequences: Sequence[TokenSequence]) -> Tensor:
        self.notes.forward(self.role, sequences, head=True)
        shape = target_mask(sequences).shape
        return torch.zeros(shape, requires_grad=self.notes.micro is not None)
