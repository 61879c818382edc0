"""The same training with TRL and unsloth, where they import: same shapes, token ids, adapter, batch and memory cap.

Each library gets its own memory savers. The settings are tried from the fastest to the leanest until one fits under the
cap: no recomputing before recomputing, and long micro-batches before short ones.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from alignment_core.errors import ran_out_of_memory
from gpu_cases.inputs.base_model import make_base
from gpu_cases.inputs.shapes import SHAPES
from gpu_cases.inputs.token_data import token_pairs
from gpu_cases.kinds.runs import LEARNING_RATE, LORA, now
from gpu_cases.kinds.training import LOAD_IN, Load, load_of
from gpu_cases.place import Place
from gpu_cases.result import Result, Skipped

SCRIPTS = Path(__file__).resolve().parents[2] / "against_trl"
TRAINERS = {"sft": ("SFTTrainer", "SFTConfig"), "dpo": ("DPOTrainer", "DPOConfig"), "kto": ("KTOTrainer", "KTOConfig")}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROOM = 8
"""Tokens beyond the longest row, for the end token that the libraries add."""


def peer_case(place: Place, library: str, task: str, size: str, cap: int | None) -> Result:
    """Train with a library's own trainer.

    Raises:
        Skipped: it does not import.
    """
    modules = [_imported(name) for name in (("unsloth", "trl") if library == "unsloth" else ("trl", "datasets"))]
    if place.is_card and cap is not None:
        place.cap(cap)
    refused = []
    for micro, recompute in _attempts(task, load_of(size)):
        settings = {"load_in": LOAD_IN, "micro_batch": micro, "gradient_checkpointing": recompute, "liger": _liger()}
        try:
            return _train(place, modules[0] if library == "unsloth" else None, task, size, settings)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            refused.append(f"micro-batches of {micro}, recomputing {'on' if recompute else 'off'}")
        gc.collect()  # outside `except`: the exception keeps the failed attempt's tensors alive
        torch.cuda.empty_cache()
    return Result(False, details={"out_of_memory_with": refused})


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # unsloth raises NotImplementedError without a GPU
        reason = str(error).strip().partition("\n")[0]
        raise Skipped(f"{name} does not import: {type(error).__name__}: {reason}") from error


def _attempts(task: str, load: Load) -> Iterator[tuple[int, bool]]:
    least = 2 if task == "kto" else 1  # TRL pairs the prompts of a micro-batch with its responses
    sizes = [size for n in range(load.rows.bit_length()) if (size := load.rows >> n) >= least]
    return ((micro, recompute) for recompute, micro in itertools.product((False, True), sizes))


def _liger() -> bool:
    return find_spec("liger_kernel") is not None


class _Meter:
    """Notes the time and the tokens at the end of each step, in the form that `theirs.Steps` and `theirs.count` use."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.tokens, self.micro_batches = device, 0, 0
        self.ended: list[tuple[float, int]] = []

    def start(self) -> None:
        pass

    def step(self) -> None:
        self.ended.append((now(self.device), self.tokens))


def _train(place: Place, unsloth: Any, task: str, size: str, settings: dict[str, Any]) -> Result:
    load = load_of(size)
    meter = _Meter(place.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(place, unsloth, task, size, settings, folder, meter)
        place.reset_peaks()
        trainer.train()
    peaks = place.peaks()
    (began, before), (ended, after) = meter.ended[0], meter.ended[-1]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    details = {"context": peaks.context, "loss": losses[-1] if losses else None}
    if (steps := len(meter.ended)) != load.steps + 1:
        raise RuntimeError(f"{steps} steps were run instead of {load.steps + 1}")
    return Result(True, settings, ended - began, after - before, peaks.allocated, peaks.reserved, None, details)


def _trainer(
    place: Place, unsloth: Any, task: str, size: str, settings: dict[str, Any], folder: str, meter: _Meter
) -> Any:
    """Return the trainer of a task, which reports to `meter`."""
    trl = importlib.import_module("trl")
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    theirs, world = importlib.import_module("theirs"), importlib.import_module("world")
    load = load_of(size)
    tokenizer = world.word_tokenizer(SHAPES[size]["vocab_size"])
    length = load.lengths.longest + ROOM
    model = make_base(SHAPES[size], size, LOAD_IN, place.device)
    lora = theirs.lora("CAUSAL_LM")
    if unsloth is not None:
        model, lora = _unsloth_model(unsloth, model, tokenizer, folder, length, settings), None
    trainer, config = (getattr(trl, name) for name in TRAINERS[task])
    own: dict[str, Any] = {} if task == "sft" else {"precompute_ref_log_probs": True}
    if settings["liger"] and unsloth is None:
        own["use_liger_kernel"] = True
    arguments = config(
        output_dir=folder,
        use_cpu=not place.is_card,
        bf16=place.is_card,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        learning_rate=LEARNING_RATE,
        max_steps=load.steps + 1,
        max_length=length,
        per_device_train_batch_size=settings["micro_batch"],
        gradient_accumulation_steps=load.rows // settings["micro_batch"],
        gradient_checkpointing=settings["gradient_checkpointing"],
        **own,
    )
    made = trainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(theirs, task, size),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[theirs.Steps(meter)],
    )
    theirs.count(made, meter)
    return made


def _unsloth_model(unsloth: Any, model: Any, tokenizer: Any, folder: str, length: int, settings: dict[str, Any]) -> Any:
    """Save the model in 4 bits and load it as unsloth does."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kind = unsloth.FastLanguageModel
    loaded, _ = kind.from_pretrained(model_name=folder, max_seq_length=length, load_in_4bit=True)
    return kind.get_peft_model(
        loaded,
        r=LORA.rank,
        lora_alpha=LORA.alpha,
        lora_dropout=0,
        target_modules=LINEAR,
        use_gradient_checkpointing="unsloth" if settings["gradient_checkpointing"] else False,
    )


def _dataset(theirs: Any, task: str, size: str) -> Any:
    """Return the rows as text, which the tokenizer maps back to the same ids."""
    load = load_of(size)
    rows = []
    for i, pair in enumerate(token_pairs(load.rows * (load.steps + 1), load.lengths, SHAPES[size]["vocab_size"])):
        text = {side: theirs.text(list(sequence.completion)) for side, sequence in pair.items()}
        prompt = theirs.text(list(pair["chosen"].prompt))
        if task == "dpo":
            rows.append({"prompt": prompt, **text})
        elif task == "kto":
            side = "chosen" if i % 2 == 0 else "rejected"
            rows.append({"prompt": prompt, "completion": text[side], "label": side == "chosen"})
        else:
            rows.append({"prompt": prompt, "completion": text["chosen"]})
    # With a name, because `from_list` makes one from a pickle of the table, which fails with some versions of Python.
    table = importlib.import_module("pyarrow").Table.from_pylist(rows)
    return theirs.Dataset(table, fingerprint=f"{task}-{size}")
