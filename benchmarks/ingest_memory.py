"""Measure the memory of an ingestion for several file sizes, on generated pairs.

    python benchmarks/ingest_memory.py [--sizes 0.02 0.2 2.0] [--folder /tmp]

Each size (GB) runs in a separate process, with a byte-level BPE tokenizer trained on the generated words.
Anonymous memory belongs to the process. Resident memory also includes pages of mapped files, which the system reclaims
when it needs them.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "ingest_memory.json"
WORDS = 8_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.02, 0.2, 2.0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure)))
        return
    runs = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path = Path(folder) / "pairs.jsonl"
            generate(path, int(size * 1e9))
            command = [sys.executable, __file__, "--measure", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append({"file_bytes": path.stat().st_size, **json.loads(done.stdout.splitlines()[-1])})
            print(json.dumps(runs[-1]), flush=True)
    result = {"runs": runs, "date": date.today().isoformat(), "machine": f"{platform.machine()}, {platform.system()}"}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def vocabulary() -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(WORDS)]


def generate(path: Path, size: int, prompt_words: int = 80, answer_words: int = 120) -> None:
    """Write pairs of random words, by default about 2 kB each, until the file has `size` bytes."""
    rng, words, written, index = random.Random(1), vocabulary(), 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            row = {
                name: " ".join(rng.choices(words, k=k))
                for name, k in (("chosen", answer_words), ("rejected", answer_words))
            }
            prompt = f"{index} " + " ".join(rng.choices(words, k=prompt_words))
            written += file.write(json.dumps({"prompt": prompt, **row}) + "\n")
            index += 1


def measure(path: Path) -> dict[str, Any]:
    """Ingest `path` and return its row count, time, artifact size and peak memory in MB above the start."""
    from alignment_core.config import DataConfig, SourceConfig
    from alignment_core.data.ingestion.ingest import ingest
    from alignment_core.data.rendering.renderer import Renderer, Request
    from alignment_core.progress import Silent

    renderer = Renderer(tokenizer(), chat_template=None, max_length=1024)
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    renderer.tokens(Request((question,), ((answer,),), demonstration=True, waiting=True))
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        floor, started = memory(), time.perf_counter()
        with _Peak() as peak:
            report = ingest(DataConfig(sources=[SourceConfig(path=str(path))]), renderer, Path(out), Silent())
        seconds = time.perf_counter() - started
        disk = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file())
    above = {f"{name}_mb_above_floor": peak.highest[name] - floor[name] for name in floor}
    return {"rows": report["files"][0]["rows"], "seconds": round(seconds, 1), **above, "artifact_bytes": disk}


def memory() -> dict[str, int]:
    """Return anonymous and resident memory in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        name: int(status[key].split()[0]) // 1024 for name, key in (("anonymous", "RssAnon"), ("resident", "VmRSS"))
    }


class _Peak:
    """Sample memory ten times a second while the block runs."""

    def __enter__(self) -> _Peak:
        self.highest = memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        wait: Callable[[float], bool] = self._done.wait
        while not wait(0.1):
            self.highest = {name: max(value, self.highest[name]) for name, value in memory().items()}


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000, special_tokens=["<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([" ".join(vocabulary())], trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


if __name__ == "__main__":
    main()
