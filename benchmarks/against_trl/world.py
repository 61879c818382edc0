"""The same models, rows and adapters for both sides, made from a config: nothing is downloaded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

PAD, END, LORA_RANK, LORA_ALPHA = 0, 1, 16, 32
BATCH, LEARNING_RATE, MAX_LENGTH, NEW_TOKENS, EPISODES = 8, 1e-4, 512, 64, 32
# Llama with tied embeddings: 41.6 million weights with 32k words, 78 million (66 of them embeddings) with 128k.
MODELS: dict[str, dict[str, int]] = {
    "32k": {"vocab_size": 32_000, "num_hidden_layers": 8},
    "128k": {"vocab_size": 128_000, "num_hidden_layers": 4},
}


def make(folder: Path, model: str, rows: int) -> None:
    """Write `model/` (weights and a word-level tokenizer) and `rows.jsonl`: token ids, prompts 20 to 200 long,
    completions 20 to 300."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    size = MODELS[model]["vocab_size"]
    words = {"<pad>": PAD, "</s>": END, **{f"w{i}": i for i in range(2, size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    wrapped.save_pretrained(folder / "model")
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


def read_rows(folder: Path) -> list[dict[str, list[int]]]:
    """The rows' token ids; a completion ends with the end token, which is not in the file."""
    return [json.loads(line) for line in (folder / "rows.jsonl").open()]


class Meter:
    """Wall and CPU seconds, tokens and memory of the steps after the first."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.tokens = 0
        self.floor = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew

    def step(self) -> None:
        """An optimizer step has just ended; `tokens` were in it."""
        import resource
        import time

        used = resource.getrusage(resource.RUSAGE_SELF)
        self.steps.append({"wall": time.perf_counter(), "cpu": used.ru_utime + used.ru_stime, "tokens": self.tokens})
        self.tokens = 0

    def result(self) -> dict[str, Any]:
        """Per step: seconds and real tokens, the first left out; and bytes above what was there before training."""
        first, last = self.steps[0], self.steps[-1]
        return {
            "steps": len(self.steps) - 1,
            "wall": last["wall"] - first["wall"],
            "cpu": last["cpu"] - first["cpu"],
            "tokens": sum(step["tokens"] for step in self.steps[1:]),
            "floor": self.floor,
            "peak": memory("VmHWM") - self.floor,
        }


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
