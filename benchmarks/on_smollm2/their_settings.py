"""What the trainers of TRL have in common: texts, adapters and settings."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig

from on_smollm2.cells import Cell
from on_smollm2.request import Request

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MICRO_BATCH = 8
"""Rows per micro-batch: TRL's default."""
PAD = "<|endoftext|>"
"""SmolLM2's own padding token is its end token, which TRL's PPO would take for the end of every prompt."""


class Texts:
    """Prompts and answers as text, which the tokenizer maps to the ids that our side learns from."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def prompt(self, text: str) -> str:
        asked = [{"role": "user", "content": text}]
        return str(self.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))

    def answer(self, text: str) -> str:
        return text + str(self.tokenizer.eos_token)

    def data(self, request: Request) -> Dataset:
        cell, data = request.cell, request.data
        if cell.optimizer == "kto":
            rows = data.thumbs(cell.data.seed)
            return Dataset.from_list(
                [
                    {"prompt": self.prompt(row.prompt), "completion": self.answer(row.response), "label": row.up}
                    for row in rows
                ]
            )
        found = []
        for pair in data.pairs:
            prompt, chosen, rejected = self.prompt(pair.prompt), self.answer(pair.chosen), self.answer(pair.rejected)
            if cell.optimizer == "sft":
                found.append({"prompt": prompt, "completion": chosen})
            elif cell.optimizer == "reward":
                found.append({"chosen": prompt + chosen, "rejected": prompt + rejected})
            else:
                found.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        return Dataset.from_list(found)


def lora(cell: Cell, task_type: str | None = None) -> LoraConfig:
    settings = cell.all_settings
    return LoraConfig(
        r=settings["lora_rank"], lora_alpha=settings["lora_alpha"], target_modules=LINEAR, task_type=task_type
    )


def settings_of(kind: Any, cell: Cell, device: str, out: str, **more: Any) -> Any:
    settings = cell.all_settings
    rows = settings.get("rollout_size") or settings["batch_size"]
    return kind(
        output_dir=out,
        use_cpu=device == "cpu",
        bf16=settings["load_in"] == "bf16",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["schedule"],
        warmup_steps=0,
        per_device_train_batch_size=min(MICRO_BATCH, rows),
        gradient_accumulation_steps=max(1, rows // MICRO_BATCH),
        gradient_checkpointing=False,
        seed=cell.data.seed,
        **more,
    )


def dtype_of(cell: Cell) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[cell.all_settings["load_in"]]
