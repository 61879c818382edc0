"""Time the sampling of responses: full batches, uneven lengths, several responses to a prompt, a recurrent model.

OMP_NUM_THREADS=1 python benchmarks/sampling.py
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time

from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from alignment_core.config import LoraConfig
from alignment_core.models.base.loading import choose_device, load_base
from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.sampling import generate
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence

VOCABULARY, REPEATS = 8192, 5
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
"""A random model of 10 million weights."""
RECURRENT = MambaConfig(
    vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=8, pad_token_id=0, bos_token_id=1, eos_token_id=2
)
"""A random model of 6 million weights that has no slots."""


def main() -> None:
    roles = opened(LlamaForCausalLM(CONFIG))
    print("16 prompts of 32 tokens, 64 tokens each:", speed(roles, prompts(16, 32), 64, ends=0, together=16))
    print("96 responses of uneven length, 16 at a time:", speed(roles, prompts(96, 32), 192, ends=40, together=16))
    repeated = [prompt for prompt in prompts(8, 256) for _ in range(8)]
    print("8 responses to each of 8 prompts of 256 tokens:", speed(roles, repeated, 32, ends=0, together=64))
    print("the same of uneven length, 16 at a time:", speed(roles, repeated, 64, ends=20, together=16))
    roles, repeated = opened(MambaForCausalLM(RECURRENT)), [prompt for prompt in prompts(4, 64) for _ in range(8)]
    print("8 responses to each of 4 prompts, recurrent:", speed(roles, repeated, 32, ends=0, together=32))


def opened(model: PreTrainedModel) -> Roles:
    """Return roles with a new adapter as the policy."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        roles = Roles(load_base(folder, revision=None, load_in="fp32", device=choose_device("auto")), folder)
    roles.add_new("policy", LoraConfig(), 0)
    return roles


def prompts(count: int, length: int) -> list[TokenSequence]:
    rng = random.Random(0)
    return [TokenSequence(tuple(rng.randrange(3, VOCABULARY) for _ in range(length)), length) for _ in range(count)]


def speed(roles: Roles, found: list[TokenSequence], longest: int, *, ends: int, together: int) -> str:
    """Return the median and the range of tokens per second, of processor time on a CPU.

    Args:
        found: the prompts.
        longest: longest response in tokens.
        ends: mean length of a response; 0: all are as long as allowed.
        together: responses that fit in memory at a time.
    """
    stops = range(3, 3 + VOCABULARY // ends) if ends else range(0)
    room = together * (len(found[0].ids) + longest)
    budget = -(-room // roles.generation_cache_factor())
    clock = time.process_time if roles.device.type == "cpu" else time.perf_counter  # other work on a CPU does not count
    rates = []
    for _ in range(REPEATS):
        started = clock()
        results = generate(
            roles, "policy", found, noise_keys=[str(i) for i in range(len(found))], sampling=Sampling(longest),
            stop_ids=list(stops), pad_id=0, budget=Budget(budget), on_step=lambda _: None,
        )  # fmt: skip
        rates.append(sum(len(result.sequence.completion) for result in results) / (clock() - started))
    return f"{statistics.median(rates):.0f} tokens/s ({min(rates):.0f} to {max(rates):.0f})"


if __name__ == "__main__":
    main()
