"""Peak memory that `align plan` predicts beside the peak that each stage's process then has, on the CPU.

    OMP_NUM_THREADS=1 python benchmarks/plan_memory.py [--only NAME] [--rows 24]

Random Llamas and generated pairs; the stages run as in a pipeline, each in a process of its own. The table goes to
`results/plan_memory.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment_core.config import PipelineConfig
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.build import build
from alignment_core.stages.plan import make_plan
from alignment_core.stages.prediction import predict

RESULTS = Path(__file__).parent / "results" / "plan_memory.json"
STAGES = ("sft", "reward", "reference", "optimize")
BASE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "vocab_size": 8_000}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp32, DPO": (BASE, {"optimizer.name": "dpo"}),
    "bf16, vocabulary of 64k, KTO": (
        BASE | {"vocab_size": 64_000},
        {"model.load_in": "bf16", "optimizer.name": "kto"},
    ),
    "nf4, 16 layers, PPO": (
        BASE | {"num_hidden_layers": 16},
        {"model.load_in": "nf4", "optimizer.name": "ppo", "token_budget": 2048},
    ),
    "fp32, recomputing, budget 1024, DPO": (
        BASE | {"vocab_size": 32_000},
        {"optimizer.name": "dpo", "token_budget": 1024, "gradient_checkpointing": True},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--rows", type=int, default=24)
    arguments = parser.parse_args()
    rows = []
    for name in [arguments.only] if arguments.only else CASES:
        for row in measure(name, arguments.rows):
            print(json.dumps(row), flush=True)
            rows.append(row)
    versions = {package: version(package) for package in ("torch", "transformers", "peft", "bitsandbytes")}
    result = {"date": date.today().isoformat(), "machine": f"{platform.machine()}, {platform.system()}", **versions}
    RESULTS.write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")


def measure(name: str, rows: int) -> Iterator[dict[str, Any]]:
    """Predicted and measured peak of each stage of a case that trains or reads, in MiB."""
    shape, changes = CASES[name]
    with tempfile.TemporaryDirectory(prefix="plan-memory-") as place:
        calls = make_plan(settings(Path(place), shape, changes, rows), load_registry()).calls()
        forecast = predict(calls, list(calls))
        for stage, call in calls.items():
            if call.stage == "evaluate":
                continue
            manifest = build(call, Silent()).artifact.manifest()
            if stage in STAGES:
                predicted = forecast.stages[stage]
                measured = manifest.peak_memory_bytes
                assert measured is not None
                yield {
                    "case": name,
                    "stage": stage,
                    "process": predicted.memory["process"] >> 20,
                    "predicted": predicted.peak >> 20,
                    "measured": measured >> 20,
                    "error": round(predicted.peak / measured - 1, 3),
                }


def settings(folder: Path, shape: dict[str, Any], changes: dict[str, Any], rows: int) -> PipelineConfig:
    """A model of this shape and data for it in `folder`, and the settings of a run of two steps a stage."""
    save_model(folder / "model", shape)
    write_pairs(folder / "pairs.jsonl", rows)
    step = {"batch_size": 16, "epochs": 1}
    config: dict[str, Any] = {
        "model": {"base": str(folder / "model"), "load_in": "fp32", "max_length": 512},
        "data": {"sources": [{"path": str(folder / "pairs.jsonl")}], "held_out_fraction": 0.1, "near_duplicates": None},
        "sft": step,
        "reward": step,
        "optimizer": {"name": "dpo"},
        "evaluation": {"max_prompts": 2, "max_new_tokens": 4},
        "store": str(folder / "store"),
        "device": "cpu",
    }
    for dotted, value in changes.items():
        *groups, last = dotted.split(".")
        place = config
        for group in groups:
            place = place[group]
        place[last] = value
    own = {"rollouts": 1, "rollout_size": 16, "max_new_tokens": 32} if config["optimizer"]["name"] == "ppo" else {}
    config["optimizer"] |= {**step, **own}
    return PipelineConfig.model_validate(config)


def save_model(folder: Path, shape: dict[str, Any]) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(known, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**shape, **ids, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)


def write_pairs(path: Path, count: int) -> None:
    """Pairs of random words: prompts of about 40 bytes, answers of 100 to 200."""
    rng = random.Random(0)

    def words(length: int) -> str:
        text = " ".join("".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(length // 4))
        return text[:length].strip()

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            sides = {side: words(rng.randint(100, 200)) for side in ("chosen", "rejected")}
            file.write(json.dumps({"prompt": words(40), **sides}) + "\n")


if __name__ == "__main__":
    main()
