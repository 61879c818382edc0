"""Run only the passes that a task needs, as a lower bound for the two sides of `vs_trl.py`.

Each sequence runs separately, without padding, through the body with one adapter, and through the head at the positions
that count. There is no optimizer, no loss beyond a sum and, in bf16, no float32 weight.

PPO samples, runs one pass without gradients each for reference, reward model and value model, and per epoch one pass
with gradients each for policy and value model. The log-probabilities of the sampled tokens are known from sampling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from world import (
    BATCH,
    END,
    EPISODES,
    LORA_ALPHA,
    LORA_RANK,
    NEW_TOKENS,
    PAD,
    PPO_EPOCHS,
    Meter,
    read_rows,
    serve,
    warm_up,
)

Sequences = list[tuple[list[int], int]]


class Bare:
    """A model with one adapter, with a scalar head in addition to its own head."""

    def __init__(self, folder: Path, dtype: str) -> None:
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=kind)
        warm_up(base)
        self.meter = Meter()
        lora = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(base, lora, autocast_adapter_dtype=False)
        self.body, self.head = base.base_model, base.lm_head
        self.score = nn.Linear(base.config.hidden_size, 1, bias=False, dtype=kind)

    def tokens(self, sequences: Sequences, *, gradients: bool) -> None:
        """Compute the log-probabilities of the completions."""

        def loss(states: Tensor, ids: Tensor, start: int) -> Tensor:
            logits = self.head(states[start - 1 : -1]).float()
            return nn.functional.cross_entropy(logits, ids[start:], reduction="sum")

        self._each(sequences, loss, gradients)

    def scalars(self, sequences: Sequences, *, gradients: bool, last: bool = False) -> None:
        """Compute the scores at the last token, or the values before each completion token."""

        def loss(states: Tensor, _: Tensor, start: int) -> Tensor:
            return self.score(states[-1:] if last else states[start - 1 : -1]).sum()  # type: ignore[no-any-return]

        self._each(sequences, loss, gradients)

    def _each(self, sequences: Sequences, loss: Any, gradients: bool) -> None:
        with torch.set_grad_enabled(gradients):
            for tokens, start in sequences:
                ids = torch.tensor(tokens)
                states = self.body(input_ids=ids.unsqueeze(0), use_cache=False).last_hidden_state[0]
                found = loss(states, ids, start)
                if gradients:
                    found.backward()

    def sample(self, prompts: list[list[int]]) -> Sequences:
        width = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        made = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
        return [(p + response, len(p)) for p, response in zip(prompts, made[:, width:].tolist(), strict=True)]


def measure(folder: str, task: str, dtype: str, steps: int, micro: int) -> dict[str, Any]:
    rows = read_rows(Path(folder))[: EPISODES if task == "ppo" else BATCH * steps]
    bare = Bare(Path(folder), dtype)
    bare.meter.start()
    sequences = passes(bare, task, rows)
    bare.meter.step()
    bare.meter.tokens = sum(len(ids) for ids, _ in sequences)
    return bare.meter.result()


def passes(bare: Bare, task: str, rows: list[dict[str, list[int]]]) -> Sequences:
    """Run all passes of a task and return the sequences whose tokens count."""
    chosen, rejected = (
        [(r["prompt"] + r[name] + [END], len(r["prompt"])) for r in rows] for name in ("chosen", "rejected")
    )
    responses = [(chosen if i % 2 == 0 else rejected)[i] for i in range(len(rows))]
    match task.removesuffix("-cached"):
        case "sft":
            bare.tokens(chosen, gradients=True)
            return chosen
        case "reward":
            bare.scalars(chosen + rejected, gradients=True, last=True)
            return chosen + rejected
        case "dpo":
            bare.tokens(chosen + rejected, gradients=True)
            if task == "dpo":
                bare.tokens(chosen + rejected, gradients=False)
            return chosen + rejected
        case "kto":  # z0 needs each completion with another row's prompt: the same number of tokens again
            bare.tokens(responses, gradients=True)
            for _ in range(1 if task == "kto-cached" else 3):
                bare.tokens(responses, gradients=False)
            return responses
        case _:
            sampled = bare.sample([row["prompt"] for row in rows])
            bare.tokens(sampled, gradients=False)
            bare.scalars(sampled, gradients=False, last=True)
            bare.scalars(sampled, gradients=False)
            for _ in range(PPO_EPOCHS):
                bare.tokens(sampled, gradients=True)
                bare.scalars(sampled, gradients=True)
            return sampled


if __name__ == "__main__":
    serve(measure)
