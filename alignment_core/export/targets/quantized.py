"""Option `--quantize` of the target `gguf`: a smaller file by llama.cpp's own tools, and its perplexity."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment_core.artifacts import ArtifactStore
from alignment_core.data.dataset.splits import Split, read_dataset
from alignment_core.errors import ModelError
from alignment_core.export import provenance
from alignment_core.export.tokenizer_files import open_renderer
from alignment_core.inference.trained_model import TrainedModel
from alignment_core.plugin_api import TokenSequence
from alignment_core.temporary import temporary_folder

LLAMA_CPP = "LLAMA_CPP"
"""Environment variable with the folder of a llama.cpp checkout."""
QUANTIZE, PERPLEXITY = "llama-quantize", "llama-perplexity"
BUILD = "cmake -B build && cmake --build build --target llama-quantize llama-perplexity"
LONGEST, SHORTEST = 512, 16
"""Window of the perplexity in tokens, which is a power of two between these. The tool needs a text of two windows."""
ESTIMATE = re.compile(r"Final estimate: PPL = (\d+\.?\d*)")
FALLBACK = re.compile(r"\d+ of \d+ tensor\S* required fallback quantization")


def find_tool(name: str) -> Path | None:
    """Return a program of llama.cpp from `PATH`, or from the build in the checkout that LLAMA_CPP names."""
    places = os.environ.get("PATH", os.defpath)
    if checkout := os.environ.get(LLAMA_CPP):
        places += os.pathsep + str(Path(checkout) / "build" / "bin")
    found = shutil.which(name, path=places)
    return None if found is None else Path(found)


def require_quantizer() -> Path:
    """Return the path of `llama-quantize`.

    Raises:
        ModelError: it is not installed.
    """
    if (found := find_tool(QUANTIZE)) is None:
        raise ModelError(
            f"llama.cpp's program `{QUANTIZE}` is not installed",
            where="--quantize",
            do=f"Build it in a checkout of llama.cpp with `{BUILD}`, and set LLAMA_CPP to the checkout",
        )
    return found


def write(origin: TrainedModel, file: Path, kind: str) -> dict[str, Any]:
    """Write the quantized file beside the 16-bit one, and measure both if `llama-perplexity` is there.

    Args:
        origin: the exported model.
        file: the 16-bit file.
        kind: llama.cpp's name of the type, such as `Q4_K_M`.

    Returns:
        Measurements, and `notes` if the perplexity could not be measured or other types were used for some weights.

    Raises:
        ModelError: a program of llama.cpp is missing or fails.
    """
    small = file.with_name(f"{file.stem}-{kind}.gguf")
    said = _run([require_quantizer(), file, small, kind], "llama.cpp cannot quantize the model")
    if not small.is_file() or not 0 < small.stat().st_size < file.stat().st_size:
        raise ModelError(f"`{QUANTIZE}` wrote no smaller file", where=small.name, got=said.strip()[-200:])
    sizes = {"16-bit": file.stat().st_size, kind: small.stat().st_size}
    notes = [f"{QUANTIZE}: {found[0].strip()}" for found in [FALLBACK.search(said)] if found]
    measured = _perplexities(origin, {"16-bit": file, kind: small})
    if isinstance(measured, str):
        notes.append(f"The perplexity of {small.name} was not measured: {measured}.")
        return {"bytes": sizes, "notes": notes}
    return {"bytes": sizes, "perplexity": measured, "notes": notes}


def _perplexities(origin: TrainedModel, files: dict[str, Path]) -> dict[str, float] | str:
    """Return the perplexity of each file on the run's held-out text, or why it cannot be measured."""
    if (tool := find_tool(PERPLEXITY)) is None:
        return f"llama.cpp's program `{PERPLEXITY}` is not installed. Build it with `{BUILD}`"
    data = provenance.ancestors(origin).get("data")
    artifact = ArtifactStore(origin.store).find(data.key) if data else None
    if artifact is None:
        return "the data set of the run is no longer in the store"
    held_out = [sequence.ids for sequence in _sequences(read_dataset(artifact.path).held_out)]
    half = sum(map(len, held_out)) // 2
    if half < SHORTEST:
        return f"the run held out fewer than {2 * SHORTEST} tokens of answers"
    tokenizer = open_renderer(origin).tokenizer
    # llama.cpp reads the text without control tokens, so it may count fewer tokens: half of the window is spare.
    window = max(SHORTEST, min(LONGEST, 2 ** (half.bit_length() - 2)))
    with temporary_folder("perplexity") as folder:
        text = folder / "held-out.txt"
        text.write_text("\n\n".join(tokenizer.decode(ids, skip_special_tokens=True) for ids in held_out), "utf-8")
        return {name: _perplexity(tool, file, text, window) for name, file in files.items()}


def _sequences(held_out: Split) -> list[TokenSequence]:
    """Return the held-out demonstrations, or the preferred answers if there are none."""
    if held_out.demonstrations:
        return [row.sequences["demonstration"] for row in held_out.demonstrations]
    return [row.sequences["chosen"] for row in held_out.preferences]


def _perplexity(tool: Path, file: Path, text: Path, window: int) -> float:
    said = _run([tool, "-m", file, "-f", text, "-c", window], f"`{PERPLEXITY}` cannot measure {file.name}")
    if (found := ESTIMATE.search(said)) is None:
        raise ModelError(f"`{PERPLEXITY}` reports no perplexity", where=file.name, got=said.strip()[-200:])
    return float(found[1])


def _run(command: Sequence[object], failure: str) -> str:
    """Run a program and return everything that it printed."""
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), f"exit {done.returncode}")
        raise ModelError(failure, where=str(command[0]), got=last.strip())
    return said
