"""Train one cell with TRL: python -m on_smollm2.theirs.

SFT, reward model, DPO and KTO use TRL 1.16 or newer. PPO uses TRL 1.12, the last release with a PPO trainer. Settings
that the cell does not name are TRL's defaults, except that gradient checkpointing is off on both sides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import trl
from against_trl.steps import Steps
from against_trl.world import serve
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig, inject_adapter_in_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    set_seed,
)

from on_smollm2.cells import Cell
from on_smollm2.meter import Meter, measured, warm_up
from on_smollm2.request import Request, answering

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


def simple_trainer(request: Request, out: str) -> tuple[Any, Meter]:
    """Return the trainer of SFT, reward model, DPO or KTO."""
    cell, path = request.cell, str(request.base)
    trainer, config = {
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "kto": (trl.KTOTrainer, trl.KTOConfig),
    }[cell.optimizer]
    more: dict[str, Any] = {"num_train_epochs": cell.all_settings["epochs"], "max_length": 256}
    if cell.optimizer in ("dpo", "kto"):
        more["beta"] = cell.all_settings["beta"]
    if cell.optimizer == "reward":
        more["center_rewards_coefficient"] = 0.01  # our default
        model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype_of(cell), num_labels=1)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype_of(cell))
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = PAD
    warm_up(model)
    meter = Meter()
    made = trainer(
        model=model,
        args=settings_of(config, cell, request.device, out, **more),
        train_dataset=Texts(tokenizer).data(request),
        processing_class=tokenizer,
        peft_config=lora(cell, "SEQ_CLS" if cell.optimizer == "reward" else "CAUSAL_LM"),
        callbacks=[Steps(meter)],
    )
    return made, meter


def ppo_trainer(request: Request, out: str) -> tuple[Any, Meter]:
    """Return TRL 1.12's PPO trainer, with our reward model and a value model that starts from it, as on our side.

    TRL's value model is a full network. Its adapter is put into its layers in place, so that as many weights are
    trained as on our side.
    """
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    cell, settings = request.cell, request.cell.all_settings
    tokenizer = AutoTokenizer.from_pretrained(str(request.base), padding_side="left")
    tokenizer.pad_token = PAD
    policy = AutoModelForCausalLM.from_pretrained(str(request.base), dtype=dtype_of(cell))
    reward, value = (_scorer(request, tokenizer.pad_token_id) for _ in range(2))
    value.requires_grad_(False)
    inject_adapter_in_model(lora(cell), value)
    value.score.requires_grad_(True)
    for name, weight in value.named_parameters():
        if "lora_" in name:  # float32 as in peft's own models; the head stays as TRL calls it, without autocast
            weight.data = weight.data.float()
    warm_up(policy)
    meter = Meter()
    ids = [tokenizer(Texts(tokenizer).prompt(pair.prompt))["input_ids"] for pair in request.data.pairs]
    data = Dataset.from_list([{"input_ids": row} for row in ids])
    config = settings_of(
        PPOConfig,
        cell,
        request.device,
        out,
        total_episodes=settings["rollouts"] * settings["rollout_size"],
        num_ppo_epochs=settings["epochs"],
        num_mini_batches=1,
        local_rollout_forward_batch_size=settings["rollout_size"],
        response_length=cell.data.new_tokens,
        stop_token="eos",
        temperature=1.0,
        kl_coef=settings["kl_coef"],
        vf_coef=0.5,  # our default
        num_sample_generations=0,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data,
        peft_config=lora(cell, "CAUSAL_LM"),
        callbacks=[Steps(meter)],
    )
    return trainer, meter


def _scorer(request: Request, pad: int) -> Any:
    """Return our reward model as a plain sequence classifier."""
    adapted = AutoPeftModelForSequenceClassification.from_pretrained(str(request.reward), num_labels=1)
    merged = adapted.merge_and_unload().to(dtype_of(request.cell))
    merged.config.pad_token_id = pad
    return merged


def _logged(history: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [round(float(entry[name]), 4) for entry in history if name in entry]


def train_cell(request: Request) -> dict[str, Any]:
    set_seed(request.cell.data.seed)
    ppo = request.cell.optimizer == "ppo"
    with tempfile.TemporaryDirectory() as out:
        trainer, meter = (ppo_trainer if ppo else simple_trainer)(request, out)
        trainer.train()
        found = measured(meter)
    (trainer.model.policy if ppo else trainer.model).save_pretrained(str(request.out))
    history = trainer.state.log_history
    kept = {"losses": _logged(history, "loss"), "warnings": []}
    if request.cell.optimizer == "kto":
        kept["z0"] = _logged(history, "kl")
    if ppo:
        kept["scores"] = _logged(history, "objective/scores")
    return {**found, **kept, "trl": trl.__version__}


if __name__ == "__main__":
    serve(answering(train_cell))
