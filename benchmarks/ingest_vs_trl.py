"""Compare our complete ingestion with TRL's dataset mapping: the same pairs for DPO, alternating in one process.

    python benchmarks/ingest_vs_trl.py PAIRS.jsonl.gz MODEL [--runs 5]

PAIRS is a file of Anthropic HH pairs, MODEL a folder with a tokenizer. TRL must be installed. Our side reads the raw
file and writes every kind of row and the report. TRL receives the parsed conversations and writes the pairs' tokens.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.ingestion.ingest import ingest
from alignment_core.data.rendering.renderer import BUILTIN_TEMPLATES, Renderer, load_tokenizer
from alignment_core.data.sources.formats.transcripts import AnthropicHH
from alignment_core.data.sources.locate import source_files
from alignment_core.data.sources.readers import RawRow, read_file
from alignment_core.progress import Silent
from alignment_core.records import PreferencePair
from alignment_core.records.format import Reading

MAX_LENGTH = 4096
RESULTS = Path(__file__).parent / "results" / "ingest_vs_trl.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs")
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    source = SourceConfig(path=arguments.pairs)
    pairs = list(read_pairs(source))
    peer, own = trl_preparation(pairs, arguments.model), our_preparation(source, arguments.model)
    peer(), own()  # warm up imports and caches
    times: dict[str, list[float]] = {"trl": [], "ours": []}
    for _ in range(arguments.runs):
        times["trl"].append(peer())
        times["ours"].append(own())
    ratios = [trl / ours for trl, ours in zip(times["trl"], times["ours"], strict=True)]
    result = {
        "pairs": len(pairs),
        "seconds": times,
        "ratio_median": statistics.median(ratios),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("trl", "datasets", "tokenizers", "transformers")},
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    for name, values in times.items():
        print(f"{name}: median {statistics.median(values):.2f} s, {len(pairs) / statistics.median(values):.0f} pairs/s")
    print(f"time of TRL / ours, median of {arguments.runs} runs: {result['ratio_median']:.2f}")


def read_pairs(source: SourceConfig) -> Any:
    """Yield the file's pairs in the format that TRL expects."""
    for row in read_file(source_files(source)[0], source):
        assert isinstance(row, RawRow)
        for outcome in AnthropicHH().outcomes(row, source):
            if isinstance(outcome, Reading) and isinstance(outcome.record, PreferencePair):
                record = outcome.record
                sides = {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
                yield {name: [dict(message) for message in messages] for name, messages in sides.items()}


def trl_preparation(pairs: list[Any], model: str) -> Callable[[], float]:
    tokenizer = load_tokenizer(model)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = BUILTIN_TEMPLATES["plain"].replace("{{- bos_token -}}", "")
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1, num_key_value_heads=1)  # fmt: skip
    settings = DPOConfig(
        output_dir=tempfile.mkdtemp(), max_length=MAX_LENGTH, use_cpu=True, bf16=False, report_to="none"
    )
    some = datasets.Dataset.from_list(pairs[:8])
    policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
    trainer = DPOTrainer(policy, reference, args=settings, train_dataset=some, processing_class=tokenizer)

    def run() -> float:
        rows = datasets.Dataset.from_list(pairs)
        started = time.perf_counter()
        trainer._prepare_dataset(rows, tokenizer, settings, "train")
        return time.perf_counter() - started

    return run


def our_preparation(source: SourceConfig, model: str) -> Callable[[], float]:
    renderer = Renderer.of_model(model, None, chat_template=None, max_length=MAX_LENGTH)

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            ingest(DataConfig(sources=[source]), renderer, Path(folder), Silent())
            return time.perf_counter() - started

    return run


if __name__ == "__main__":
    main()
