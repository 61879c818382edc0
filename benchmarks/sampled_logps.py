"""Compare the log-probabilities of the sampling pass with those of passes over the finished responses.

OMP_NUM_THREADS=1 python benchmarks/sampled_logps.py MODEL [--dtypes fp32 bf16 nf4 int8] [--responses 32] [--tokens 60]

MODEL is a folder or a Hub id. A random adapter of rank 8 is added to it.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from transformers import AutoTokenizer

from alignment_core.config import LoraConfig
from alignment_core.models.base.loading import choose_device, load_base
from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.sampling import generate
from alignment_core.models.roles.logps import Budget, LanguageModel
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenLogps, TokenSequence

TEXTS = (
    "Once upon a time there was a little girl named Lily. She", "The cat",
    "One day a big dog and his friend went to the park to play with", "Tom was sad because",
    "Why is the sky blue? Because of how light", "The capital of France is", "def add(a, b):",
    "Dear Sir, I am writing to",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16", "nf4", "int8"])
    parser.add_argument("--responses", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=60)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    ids = [tuple(tokenizer.encode(text)) for text in TEXTS]
    prompts = [TokenSequence(ids[i % len(ids)], len(ids[i % len(ids)])) for i in range(arguments.responses)]
    for dtype in arguments.dtypes:
        roles = opened(arguments.model, dtype)
        responses = generate(
            roles, "policy", prompts, noise_keys=[str(i) for i in range(len(prompts))],
            sampling=Sampling(arguments.tokens, logps=True), stop_ids=[tokenizer.eos_token_id], pad_id=0,
            budget=Budget(4096), on_step=lambda _: None,
        )  # fmt: skip
        sequences = [response.sequence for response in responses]
        fresh, other = (passed(roles, sequences, budget) for budget in (4096, 100))
        kept = torch.zeros_like(fresh.logps)
        for row, response in zip(kept, responses, strict=True):
            row[: len(response.sequence.completion)] = torch.tensor(response.logps)
        print(f"{dtype}: {int(fresh.mask.sum())} tokens")
        print("  sampling and a pass:", differences(kept - fresh.logps, fresh.mask))
        print("  passes with token budgets of 100 and 4096:", differences(other.logps - fresh.logps, fresh.mask))


def opened(model: str, dtype: str) -> Roles:
    device = choose_device("auto")
    roles = Roles(load_base(model, revision=None, load_in=dtype, device=device), model)  # type: ignore[arg-type]
    roles.add_new("policy", LoraConfig(rank=8), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, weight in roles.adapter_parameters(["policy"]):
            weight += 0.02 * torch.randn(weight.shape, generator=generator).to(weight.device)
    roles.train_only(["policy"])
    return roles


@torch.no_grad()
def passed(roles: Roles, sequences: list[TokenSequence], budget: int) -> TokenLogps:
    return LanguageModel(roles, "policy", 0, Budget(budget)).token_logps(sequences)


def differences(found: Tensor, mask: Tensor) -> str:
    per_token = found[mask.bool()]
    return f"largest {per_token.abs().max():.1e}, root mean square {per_token.square().mean().sqrt():.1e} nats"


if __name__ == "__main__":
    main()
