"""Compare the peak memory and time that `align plan` predicts with the measurements of each stage, on the CPU.

    OMP_NUM_THREADS=1 python benchmarks/plan_memory.py [--only NAME]

The models are random Llamas and the pairs are generated. Some cases are fixed, others are drawn at random. The stages
run as in a pipeline, each in a separate process. The table is written to `results/plan_memory.md`.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment_core.config import PipelineConfig
from alignment_core.execution.build import build
from alignment_core.forecast.predict import predict
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.texts import percent

RESULTS = Path(__file__).parent / "results" / "plan_memory.md"
BASE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "vocab_size": 8_000}


@dataclass(frozen=True)
class Case:
    """A model and the settings of a run with it.

    Attributes:
        shape: configuration values of the Llama.
        settings: changes to the config of `settings()`, by dotted name.
        rows: number of preference pairs.
    """

    shape: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: int = 24


CASES: dict[str, Case] = {
    "fp32, DPO": Case(BASE, {"optimizer.name": "dpo"}),
    "bf16, vocabulary of 64k, KTO": Case(
        BASE | {"vocab_size": 64_000, "num_hidden_layers": 6},
        {"model.load_in": "bf16", "optimizer.name": "kto", "token_budget": 2048},
    ),
    "nf4, 16 layers, PPO": Case(
        BASE | {"num_hidden_layers": 16}, {"model.load_in": "nf4", "optimizer.name": "ppo", "token_budget": 2048}
    ),
    "fp32, recomputing, vocabulary of 32k, DPO": Case(
        BASE | {"vocab_size": 32_000},
        {"optimizer.name": "dpo", "token_budget": 1024, "gradient_checkpointing": True},
    ),
    "fp32, wide, PPO": Case(
        BASE | {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
        {"optimizer.name": "ppo", "token_budget": 1024},
    ),
}
DRAWN = 3


def cases() -> dict[str, Case]:
    """Return the fixed cases and the randomly drawn ones."""
    found = dict(CASES)
    for number in range(DRAWN):
        case = drawn(random.Random(f"table {number}"))
        shape, set_to = case.shape, case.settings
        words = f"{set_to['model.load_in']}, {shape['num_hidden_layers']} layers of {shape['hidden_size']}"
        optimizer = set_to["optimizer.name"].upper()
        found[f"drawn: {words}, vocabulary of {shape['vocab_size'] // 1000}k, {optimizer}"] = case
    return found


@dataclass(frozen=True)
class Row:
    """Result for one stage: memory in MiB (`process` is the libraries' share) and time in seconds."""

    case: str
    stage: str
    process: int
    predicted: int
    measured: int
    seconds_predicted: float
    seconds_measured: float

    @property
    def error(self) -> float:
        """Error of the predicted peak, as a share of the measured one."""
        return self.predicted / self.measured - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    known = cases()
    parser.add_argument("--only", choices=known)
    arguments = parser.parse_args()
    rows = []
    for name in [arguments.only] if arguments.only else known:
        for row in measure(name, known[name]):
            print(json.dumps(asdict(row) | {"error": round(row.error, 3)}), flush=True)
            rows.append(row)
    if not arguments.only:
        RESULTS.write_text(report(rows))


def report(rows: list[Row]) -> str:
    """Return the results page."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    machine = f"{platform.machine()}, {platform.system()}, {' '.join(platform.libc_ver())}, one thread"
    lines = [
        "# Memory and time predicted by `align plan`, compared with measurements",
        "",
        f"{date.today().isoformat()}, {machine}; {versions}.",
        "Made by `OMP_NUM_THREADS=1 python benchmarks/plan_memory.py`.",
        "",
        "Memory is the peak resident size of the stage's process in MiB. `process` is the part used by the libraries",
        "before a model is loaded. Time is in seconds and includes the start of the process. `drawn` marks cases with",
        "a random model and random settings. `recomputing` marks gradient checkpointing.",
        "",
        "| run | stage | process | predicted | measured | error | predicted s | measured s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        times = f"{row.seconds_predicted:.0f} | {row.seconds_measured:.0f}"
        memory = f"{row.process} | {row.predicted} | {row.measured} | {percent(row.error, sign='+')}"
        lines.append(f"| {row.case} | {row.stage} | {memory} | {times} |")
    return "\n".join(lines) + "\n"


def drawn(rng: random.Random) -> Case:
    """Draw a case at random."""
    heads = 8
    hidden = heads * rng.choice([16, 24, 32, 48])
    shape = {
        "hidden_size": hidden,
        "intermediate_size": round(hidden * rng.uniform(2, 4)),
        "num_hidden_layers": rng.randint(2, 12),
        "vocab_size": rng.choice([1_000, 8_000, 32_000, 64_000]),
    }
    changes = {
        "optimizer.name": rng.choice(["dpo", "kto", "ppo"]),
        "model.load_in": rng.choice(["fp32", "bf16", "nf4"]),
        "token_budget": rng.choice(["auto", 256, 1024, 2048]),
        "gradient_checkpointing": rng.choice(["auto", True]),
        "model.lora.rank": rng.choice([4, 16, 64]),
    }
    return Case(shape, changes, rows=rng.choice([8, 16, 24]))


def measure(name: str, case: Case) -> Iterator[Row]:
    """Predict and measure each stage of a case that runs a model."""
    with tempfile.TemporaryDirectory(prefix="plan-memory-") as place:
        calls = plan_pipeline(settings(Path(place), case), load_registry()).calls()
        forecast = predict(calls, list(calls))
        for stage, call in calls.items():
            built = build(call, Silent())
            if (predicted := forecast.stages.get(stage)) is None:
                continue
            measured = built.artifact.manifest().peak_memory_bytes
            assert measured is not None
            assert predicted.seconds is not None
            process = predicted.memory["process"] >> 20
            yield Row(
                name, stage, process, predicted.peak >> 20, measured >> 20, predicted.seconds, round(built.seconds, 1)
            )


def settings(folder: Path, case: Case) -> PipelineConfig:
    """Write the case's model and data to `folder`, and return the config of a short run."""
    save_model(folder / "model", case.shape)
    write_pairs(folder / "pairs.jsonl", case.rows)
    step = {"batch_size": 16, "epochs": 1}
    config: dict[str, Any] = {
        "model": {"base": str(folder / "model"), "load_in": "fp32", "max_length": 512, "lora": {}},
        "data": {"sources": [{"path": str(folder / "pairs.jsonl")}], "held_out_fraction": 0.2, "near_duplicates": None},
        "sft": step,
        "reward": step,
        "optimizer": {"name": "dpo"},
        "evaluation": {"max_prompts": 2, "max_new_tokens": 4},
        "store": str(folder / "store"),
        "device": "cpu",
    }
    for dotted, value in case.settings.items():
        *groups, last = dotted.split(".")
        place = config
        for group in groups:
            place = place[group]
        place[last] = value
    own = {"rollouts": 1, "rollout_size": 16, "max_new_tokens": 32} if config["optimizer"]["name"] == "ppo" else {}
    config["optimizer"] |= {**step, **own}
    return PipelineConfig.model_validate(config)


def save_model(folder: Path, shape: Mapping[str, Any]) -> None:
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
    """Write pairs of random words: prompts of about 40 bytes, answers of 100 to 200 bytes."""
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
