"""Models, rows and adapters that both sides share. They are generated from a config; nothing is downloaded."""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PAD, END, LORA_RANK, LORA_ALPHA = 0, 1, 16, 32
BATCH, LEARNING_RATE, MAX_LENGTH, NEW_TOKENS, EPISODES = 8, 1e-4, 512, 64, 32
PPO_EPOCHS, GROUP, KL_COEF, MEMORY_LIMIT = 4, 8, 0.05, 14 * 2**30
ON_POLICY = ("ppo", "grpo")
"""Tasks that sample `EPISODES` responses per update. GRPO samples `GROUP` of them for each prompt."""
# Llamas with tied embeddings: 41.6 million weights with a vocabulary of 32k, 78 million (66 million of them embeddings)
# with 128k.
MODELS: dict[str, dict[str, int]] = {
    "32k": {"vocab_size": 32_000, "num_hidden_layers": 8},
    "128k": {"vocab_size": 128_000, "num_hidden_layers": 4},
}


def make(folder: Path, model: str, rows: int) -> None:
    """Write `model/` (weights and a word-level tokenizer) and `rows.jsonl` (token ids).

    Prompts have 20 to 200 tokens, completions 20 to 300.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = MODELS[model]["vocab_size"]
    word_tokenizer(size).save_pretrained(folder / "model")
    config = LlamaConfig(
        **MODELS[model],
        hidden_size=512,
        intermediate_size=1376,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    source = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [source.randrange(2, size) for _ in range(source.randint(low, high))]

    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(rows):
            row = {"prompt": tokens(20, 200), "chosen": tokens(20, 300), "rejected": tokens(20, 300)}
            file.write(json.dumps(row) + "\n")


def word_tokenizer(size: int) -> Any:
    """Return a tokenizer of the words `w2`, `w3` and so on, whose ids are these numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "</s>": END, **{f"w{i}": i for i in range(2, size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def rule(response: Sequence[int]) -> float:
    """Return the reward of a response in GRPO: its share of odd token ids."""
    return sum(token % 2 for token in response) / len(response)


def read_rows(folder: Path) -> list[dict[str, list[int]]]:
    """Return the rows' token ids. The end token of each completion is not in the file."""
    return [json.loads(line) for line in (folder / "rows.jsonl").open()]


class Meter:
    """Measures time, tokens and memory of training, from `start` to the end of the last optimizer step."""

    def __init__(self) -> None:
        self.steps = self.micro_batches = self.tokens = 0
        self.floor = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def start(self) -> None:
        """Record the start of training."""
        self.began = self.ended = clocks()

    def step(self) -> None:
        """Record the end of an optimizer step."""
        self.steps, self.ended = self.steps + 1, clocks()

    def result(self) -> dict[str, Any]:
        """Return counts, seconds, tokens without padding, and the memory floor and the peak above it in bytes."""
        wall, cpu = (ended - began for began, ended in zip(self.began, self.ended, strict=True))
        counts = {"steps": self.steps, "micro_batches": self.micro_batches, "tokens": self.tokens}
        return {**counts, "wall": wall, "cpu": cpu, "floor": self.floor, "peak": memory("VmHWM") - self.floor}


def clocks() -> tuple[float, float]:
    """Return wall and CPU seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime + used.ru_stime


def warm_up(model: Any) -> None:
    """Run one short forward and backward pass of the body, so that neither side's clock includes the first one."""
    import torch

    embedded = model.get_input_embeddings()(torch.arange(2, 66).unsqueeze(0)).detach().requires_grad_()
    model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state.float().sum().backward()
    model.zero_grad(set_to_none=True)


def serve(measure: Callable[..., dict[str, Any]]) -> None:
    """Read the arguments of `measure` as a JSON line from stdin, and answer each with a JSON line on stdout.

    Each run is a fork of this process, which only imports. It is a separate process without the cost of the imports.
    """
    answers = os.dup(1)
    os.dup2(2, 1)  # keeps the libraries' output out of the answers
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            # A side that needs more memory fails alone instead of bringing down the machine.
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
            try:
                answer = measure(**json.loads(line))
            except Exception as error:
                traceback.print_exc()
                answer = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            os.write(answers, (json.dumps(answer) + "\n").encode())
            os._exit(0)
        if status := os.waitpid(child, 0)[1]:
            os.write(answers, (json.dumps({"failed": f"ended with status {status}"}) + "\n").encode())


def memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
