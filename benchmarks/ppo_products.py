"""The time that the matrix products of one PPO update of `vs_trl.py` need alone, at the speed of this machine.

OMP_NUM_THREADS=1 python benchmarks/ppo_products.py [--model 32k] [--dtype fp32] [--profile 8]

Counts the products with the weights of the model in the passes that nobody can leave out: the sampling, one pass each
of reference, reward model and value model, and in each epoch forward and backward of policy and value model. Gradients
of frozen weights, tokens that nobody reads in the last layer, adapters, attention scores and padding do not count. With
`--profile`, it also profiles our update of so many responses by operation.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "against_trl"))
from world import EPISODES, MODELS, NEW_TOKENS, PPO_EPOCHS, make

RESULTS = Path(__file__).parent / "results/vs_trl.jsonl"
HIDDEN, WIDE = 512, 1376
TOKENS = 1024
"""Tokens of a micro-batch."""
TRIES = 10


def operations(model: str, tokens: int) -> float:
    """Return the floating-point operations of an update on this many tokens of prompts and responses."""
    layers, words = MODELS[model]["num_hidden_layers"], MODELS[model]["vocab_size"]
    read = EPISODES * NEW_TOKENS
    layer = 4 * HIDDEN**2 + 3 * HIDDEN * WIDE

    def body(last: int) -> float:
        """Return a forward pass in which `last` states of the last layer are read."""
        keys = 2 * HIDDEN**2
        return 2 * ((layers - 1) * layer * tokens + keys * tokens + (layer - keys) * last)

    head = 2 * HIDDEN * words * read
    # Sampling, reference and value model, and the reward model, which reads one state per response.
    forward = 3 * body(read) + body(EPISODES) + 2 * head
    # The gradients of the first layer's inputs to keys, values and queries are those of the frozen embedding.
    backward = body(read) - 2 * 3 * HIDDEN**2 * tokens
    return forward + PPO_EPOCHS * (2 * (body(read) + backward) + 2 * head)


def speed(dtype: torch.dtype) -> float:
    """Return the operations per CPU second of the largest products of a layer, in the fastest of some tries."""
    pairs = [(HIDDEN, WIDE), (WIDE, HIDDEN), (HIDDEN, HIDDEN)]
    data = [(torch.randn(TOKENS, a).to(dtype), torch.randn(b, a).to(dtype)) for a, b in pairs]
    best = 0.0
    for states, weight in data:
        for _ in range(TRIES):
            start = time.process_time()
            torch.nn.functional.linear(states, weight)
            best = max(best, 2 * states.numel() * len(weight) / (time.process_time() - start))
    return best


def measured(model: str, dtype: str, side: str) -> list[dict[str, float]]:
    """Return the results of `vs_trl.py` for PPO."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    wanted = {"task": "ppo", "model": model, "dtype": dtype, "side": side}
    return [line for line in lines if wanted.items() <= line.items()]


def profile(model: str, dtype: str, responses: int) -> str:
    """Return the CPU time of our update by operation, without that of the operations that it calls."""
    import ours

    ours.EPISODES = responses
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), model, responses)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            ours.measure(folder, "ppo", dtype, 1, TOKENS)
    return found.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=MODELS, default="32k")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--profile", type=int, default=0, metavar="RESPONSES")
    arguments = parser.parse_args()
    ours, theirs = (measured(arguments.model, arguments.dtype, side) for side in ("ours", "trl"))
    needed = operations(arguments.model, round(ours[0]["tokens"] / PPO_EPOCHS))
    rate = speed({"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype])
    print(f"products: {needed / 1e12:.2f}e12 operations, {rate / 1e9:.0f}e9 per CPU second, {needed / rate:.1f} s")
    for name, lines in (("ours", ours), ("TRL", theirs)):
        print(f"{name}: {min(line['cpu'] for line in lines):.1f} s")
    if arguments.profile:
        print(profile(arguments.model, arguments.dtype, arguments.profile))


if __name__ == "__main__":
    main()
