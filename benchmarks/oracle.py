"""Compare DPO, PPO, RLOO, GRPO and KTO with the exact optimum in a tiny world.

python benchmarks/oracle.py

The world has three prompts. Each has eight possible responses of one or two tokens. The reference policy and the reward
r of each response are random. The policy is a table: a full-rank adapter on a layer that reads the last token, which
identifies the position in the tree of responses. The installed plugins train in the library's training loop and with
its roles. Only the base model is defined here. The optimum of E[r] - beta KL(policy || reference) is
reference * exp(r / beta), normalized (arXiv 2305.18290, equation 4). Writes `docs/optimizers/oracle.svg`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from alignment_core.config import LoraConfig
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import AlignmentOptimizer, Row, TokenSequence
from alignment_core.progress import Silent
from alignment_core.training.loop import train
from alignment_core.training.rewards import Rewards
from alignment_core.training.rows import Rows, Vocabulary
from alignment_core.training.run import Run

PICTURE = Path(__file__).resolve().parent.parent / "docs/optimizers/oracle.svg"
PROMPTS, LEAVES, BRANCHES, TWIGS = 3, 2, 2, 3
"""Prompts; per prompt, one-token responses and first tokens of two-token ones; second tokens per first token."""
IMPOSSIBLE = -30.0
BETA = 1.0


class TabularConfig(PretrainedConfig):
    model_type = "tabular"

    def __init__(self, vocab_size: int = 2, **more: Any) -> None:
        super().__init__(**more)
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, 2 * vocab_size, 1


class Table(nn.Module):
    """The hidden state is the table's (and its adapter's) output for the last token, followed by that token one-hot."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.table = nn.Linear(size, size, bias=False)
        nn.init.zeros_(self.table.weight)

    def forward(self, input_ids: Tensor, **ignored: Any) -> BaseModelOutput:
        token = nn.functional.one_hot(input_ids, self.table.in_features).float()
        return BaseModelOutput(last_hidden_state=torch.cat([self.table(token), token], dim=-1))


class Tabular(PreTrainedModel, GenerationMixin):
    """Causal language model with logits = adapter's table + reference logits, which are stored in the head."""

    config_class, base_model_prefix = TabularConfig, "model"

    def __init__(self, config: TabularConfig) -> None:
        super().__init__(config)
        self.model = Table(config.vocab_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, **ignored: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids).last_hidden_state))


class World:
    """The tree of responses, its reference policy and its rewards."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.random = random.Random(seed)
        self.responses: list[list[TokenSequence]] = []
        self.following: dict[int, list[int]] = {}
        self.size = 1 + PROMPTS  # token 0 is padding
        for prompt in range(1, 1 + PROMPTS):
            self.responses.append(self._grow(prompt))
        self.logits = torch.full((self.size, self.size), IMPOSSIBLE)
        for token, following in self.following.items():
            self.logits[token, following] = torch.randn(len(following), generator=self.generator)
        self.rewards = torch.randn(self.size, generator=self.generator)

    def _grow(self, prompt: int) -> list[TokenSequence]:
        def new(count: int) -> list[int]:
            self.size += count
            return list(range(self.size - count, self.size))

        leaves, branches = new(LEAVES), new(BRANCHES)
        self.following[prompt] = leaves + branches
        found = [TokenSequence((prompt, leaf), 1) for leaf in leaves]
        for branch in branches:
            self.following[branch] = new(TWIGS)
            found += [TokenSequence((prompt, branch, twig), 1) for twig in self.following[branch]]
        return found

    def reward(self, responses: Sequence[TokenSequence]) -> Tensor:
        """Return r, shape (responses,); the last token identifies the response."""
        return self.rewards[[response.ids[-1] for response in responses]]

    def reference(self) -> list[Tensor]:
        """Return the reference probabilities of the responses to each prompt."""
        logps = self.logits.log_softmax(dim=-1)
        return [
            torch.stack([logps[response.ids[:-1], response.ids[1:]].sum() for response in responses]).exp()
            for responses in self.responses
        ]

    def optimum(self, beta: float) -> list[Tensor]:
        """Return reference * exp(r / beta), normalized, for each prompt."""
        weights = [p * (self.reward(y) / beta).exp() for p, y in zip(self.reference(), self.responses, strict=True)]
        return [weight / weight.sum() for weight in weights]

    def draw(self, prompt: int) -> TokenSequence:
        """Sample a response from the reference policy."""
        (response,) = self.random.choices(self.responses[prompt], self.reference()[prompt].tolist())
        return response

    def preferences(self, count: int) -> list[Row]:
        """Return pairs of responses sampled from the reference and labeled by Bradley–Terry with r."""
        reference, rows = [p.tolist() for p in self.reference()], []
        for i in range(count):
            prompt = i % PROMPTS
            one, other = self.random.choices(self.responses[prompt], reference[prompt], k=2)
            margin = float(self.reward([one]) - self.reward([other]))
            if self.random.random() > 1 / (1 + math.exp(-margin)):
                one, other = other, one
            rows.append(Row(f"pair-{i}", {"chosen": one, "rejected": other}, {"margin": 0.0}))
        return rows

    def feedback(self, count: int) -> list[Row]:
        """Return responses sampled from the reference, each marked desirable with probability sigmoid(2 r)."""
        reference, rows = [p.tolist() for p in self.reference()], []
        for i in range(count):
            prompt = i % PROMPTS
            (response,) = self.random.choices(self.responses[prompt], reference[prompt])
            (other,) = self.random.choices(self.responses[prompt], reference[prompt])
            liked = self.random.random() < float(self.liked([response]))
            both = {"response": response, "mismatched": other}
            rows.append(Row(f"thumb-{i}", both, {"desirable": float(liked), "weight": 1.0}))
        return rows

    def liked(self, responses: Sequence[TokenSequence]) -> Tensor:
        """Return the probability that a rater likes each response."""
        return torch.sigmoid(2 * self.reward(responses))

    def open(self, rows: Rows, seed: int = 0) -> Run:
        """Return a run that starts at the reference, with r as reward model and a value table of zeros."""
        model = Tabular(TabularConfig(self.size, name_or_path="table")).eval().requires_grad_(False)
        model.lm_head.weight.copy_(torch.cat([torch.eye(self.size), self.logits.t()], dim=1))
        roles = Roles(model, "table")
        full = LoraConfig(rank=self.size, alpha=self.size, target_modules=["table"])
        roles.add_base("reference")
        roles.add_base("reward")
        roles.add_head("reward", torch.cat([torch.zeros(self.size), self.rewards]).unsqueeze(0))
        roles.add_new("policy", full, seed)
        roles.add_new("value", full, seed)
        roles.add_head("value")
        ends = {response.ids[-1] for responses in self.responses for response in responses}
        vocabulary, budget = Vocabulary(Numbers(), 0, sorted(ends)), Budget(1_000_000)
        # The optimum is defined for r itself; normalized rewards would change the meaning of beta.
        return Run(roles, rows, vocabulary, budget, seed, Silent(), rewarded_by=Rewards(normalise=False))

    def policy(self, run: Run) -> list[Tensor]:
        """Return the exact probabilities of the responses to each prompt under the current policy."""
        with torch.no_grad():
            return [run.policy.logps(responses).exp() for responses in self.responses]

    def prompts(self) -> list[Row]:
        return [Row(f"prompt-{p}", {"prompt": TokenSequence((p,), 1)}) for p in range(1, 1 + PROMPTS)]


class Numbers:
    """Tokenizer that decodes each token as its number."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the mean total variation over prompts: 0 for equal policies, 1 for policies that share no response."""
    return float(torch.stack([(p - q).abs().sum() / 2 for p, q in zip(one, other, strict=True)]).mean())


def learn(optimizer: AlignmentOptimizer, run: Run) -> Run:
    run.roles.train_only(optimizer.needs().trained)
    with TemporaryDirectory() as folder:
        train(optimizer, run, Path(folder), 1e9)
    return run


def optimizer(name: str, **settings: Any) -> AlignmentOptimizer:
    from alignment_core.registry import load_registry

    return load_registry().optimizer({"name": name, **settings})


STEPS, BATCH = 200, 128
PAIRS = (60, 240, 960, 3840, 15360)
ROLLOUTS = (1, 2, 5, 10, 20)
TABLE: dict[str, Any] = {"learning_rate": 0.03, "warmup_fraction": 0.0}
ROLLOUT_RATE = 0.01
"""Every on-policy step contains sampling noise. A third of the learning rate averages it out."""


def dpo(world: World, pairs: int) -> float:
    """Return the distance from the optimum after training on `pairs` pairs, in about `STEPS` steps."""
    batch = min(pairs, BATCH)
    epochs = math.ceil(STEPS * batch / pairs)
    run = world.open(Rows(preferences=world.preferences(pairs)))
    learn(optimizer("dpo", beta=BETA, batch_size=batch, epochs=epochs, schedule="cosine", **TABLE), run)
    return distance(world.policy(run), world.optimum(BETA))


ON_POLICY: dict[str, dict[str, Any]] = {
    "ppo": {},
    "rloo": {},
    # Divided advantages weigh prompts differently, and the k3 term has another optimum (see its page).
    "grpo": {"kl_in": "reward", "divide_by_deviation": False, "loss_mean": "constant"},
}
"""On-policy optimizers that maximize E[r] - beta KL, with the settings for it."""


def on_policy(name: str, world: World, rollouts: int) -> float:
    """Return the distance from the optimum after `rollouts` rollouts of 256 responses."""
    run = world.open(Rows(prompts=world.prompts()))
    settings: dict[str, Any] = {"rollout_size": 256, "batch_size": 64, "max_new_tokens": 2, "length_drift": None}
    settings |= {"kl_coef": BETA, "rollouts": rollouts, **TABLE, "learning_rate": ROLLOUT_RATE, **ON_POLICY[name]}
    learn(optimizer(name, **settings), run)
    return distance(world.policy(run), world.optimum(BETA))


def kto(world: World, thumbs: int) -> list[tuple[Tensor, Tensor]]:
    """Return for each prompt the share of raters who like each response, and its log-ratio after training."""
    run = world.open(Rows(feedback=world.feedback(thumbs)))
    epochs = math.ceil(STEPS * BATCH / thumbs)
    learn(optimizer("kto", beta=BETA, batch_size=BATCH, epochs=epochs, **TABLE), run)
    ratios = [(p / q).log() for p, q in zip(world.policy(run), world.reference(), strict=True)]
    return [(world.liked(y), ratio) for y, ratio in zip(world.responses, ratios, strict=True)]


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "oracle"
    figure, (data, steps, thumbs) = pyplot.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for seed in range(2):
        start = distance(World(seed).reference(), World(seed).optimum(BETA))
        by_pairs, by_rollouts = (
            [dpo(World(seed), n) for n in PAIRS],
            [on_policy("ppo", World(seed), n) for n in ROLLOUTS],
        )
        print(f"world {seed}: start {start:.3f}, dpo {by_pairs}, ppo {by_rollouts}", flush=True)
        grouped = {name: on_policy(name, World(seed), ROLLOUTS[-1]) for name in ("rloo", "grpo")}
        print(f"world {seed}, {ROLLOUTS[-1]} rollouts: {grouped}", flush=True)
        data.plot(PAIRS, by_pairs, marker=".", label=f"world {seed}")
        steps.plot((0, *ROLLOUTS), (start, *by_rollouts), marker=".")
        for liked, ratio in kto(World(seed), 3840):
            thumbs.scatter(liked, ratio, s=12, color=f"C{seed}")
    data.set(title="DPO", xscale="log", xlabel="pairs", ylabel="total variation to the optimum", ylim=0)
    steps.set(title="PPO", xlabel="rollouts of 256 responses", ylabel="total variation to the optimum", ylim=0)
    thumbs.set(title="KTO", xlabel="share of people who like the response", ylabel="log-ratio to the reference")
    data.legend(fontsize="small")
    figure.savefig(PICTURE, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
