"""TRL's side of `vs_trl.py`, which starts this script and requests one run at a time.

SFT, reward model, DPO, KTO and GRPO use TRL 1.16 or newer. PPO uses TRL 1.12, the last release with a PPO trainer. All
settings are defaults except those that must be equal on both sides (adapter, batch, learning rate, length, no gradient
checkpointing) and logging.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from steps import Steps
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from world import (
    BATCH,
    EPISODES,
    GROUP,
    KL_COEF,
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_RANK,
    MAX_LENGTH,
    NEW_TOKENS,
    ON_POLICY,
    PPO_EPOCHS,
    Meter,
    read_rows,
    rule,
    serve,
    warm_up,
)


def text(tokens: list[int]) -> str:
    return "".join(f"w{token} " for token in tokens)


def dataset_of(folder: Path, task: str, steps: int) -> Dataset:
    """Return the rows as text, which the tokenizer maps back to the same ids."""
    rows = read_rows(folder)[: EPISODES if task == "ppo" else BATCH * steps]
    if task == "sft-packed":  # TRL packs only complete texts
        return Dataset.from_list([{"text": text(r["prompt"] + r["chosen"])} for r in rows])
    if task == "sft":
        return Dataset.from_list([{"prompt": text(r["prompt"]), "completion": text(r["chosen"])} for r in rows])
    if task == "reward":
        both = [{name: text(r["prompt"] + r[name]) + "</s>" for name in ("chosen", "rejected")} for r in rows]
        return Dataset.from_list(both)
    if task.startswith("kto"):
        names = ["chosen" if i % 2 == 0 else "rejected" for i in range(len(rows))]
        return Dataset.from_list(
            [
                {"prompt": text(r["prompt"]), "completion": text(r[name]), "label": name == "chosen"}
                for r, name in zip(rows, names, strict=True)
            ]
        )
    return Dataset.from_list([{name: text(r[name]) for name in ("prompt", "chosen", "rejected")} for r in rows])


def settings(kind: Any, folder: str, micro: int, steps: int, dtype: torch.dtype, **more: Any) -> Any:
    """Return a TRL config. A bf16 model trains under autocast, which is TRL's default and matches our side."""
    return kind(
        output_dir=folder,
        use_cpu=True,
        bf16=dtype == torch.bfloat16,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=micro,
        gradient_checkpointing=False,
        **({"max_steps": steps, "gradient_accumulation_steps": max(1, BATCH // micro)} | more),
    )


def lora(task_type: str) -> LoraConfig:
    return LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type=task_type)


def trainer_of(folder: Path, task: str, dtype: torch.dtype, steps: int, micro: int, out: str) -> tuple[Any, Meter]:
    """Return TRL's trainer for the task and a meter that measures memory from the point where the model is loaded."""
    path = str(folder / "model")
    if task == "reward":
        model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, num_labels=1)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    warm_up(model)
    meter = Meter()
    name = task.removesuffix("-cached").removesuffix("-packed")
    kinds = {
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "kto": (trl.KTOTrainer, trl.KTOConfig),
    }
    trainer, config = kinds[name]
    more: dict[str, Any] = {"max_length": MAX_LENGTH}
    if task.endswith("-cached"):
        more["precompute_ref_log_probs"] = True
    if task.endswith("-packed"):
        more["packing"] = True
    made = trainer(
        model=model,
        args=settings(config, out, micro, steps, dtype, **more),
        train_dataset=dataset_of(folder, task, steps),
        processing_class=AutoTokenizer.from_pretrained(path),
        peft_config=lora("SEQ_CLS" if task == "reward" else "CAUSAL_LM"),
        callbacks=[Steps(meter)],
    )
    return made, meter


def count(trainer: Any, meter: Meter) -> None:
    """Count micro-batches and their real tokens."""
    inner = trainer.compute_loss

    def counted(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        meter.micro_batches += 1
        masks = [name for name in inputs if name.endswith("attention_mask") and not name.startswith("KL")]
        if masks:
            meter.tokens += sum(int(inputs[name].sum()) for name in masks)
        else:
            meter.tokens += inputs["input_ids"].numel()  # packed: no padding
        return inner(model, inputs, *arguments, **options)

    trainer.compute_loss = counted


def ppo(folder: Path, dtype: torch.dtype, updates: int, micro: int, out: str) -> tuple[Any, Meter]:
    """Return TRL 1.12's PPO trainer and its meter.

    The policy has an adapter; reward and value model are full networks. All three are part of the memory floor.
    """
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    path = str(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    policy.generation_config.eos_token_id = None
    scorers = [AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, num_labels=1) for _ in range(2)]
    warm_up(policy)
    meter = Meter()
    rows = read_rows(folder)[:EPISODES]
    data = Dataset.from_list([{"input_ids": row["prompt"]} for row in rows])
    config = settings(
        PPOConfig,
        out,
        micro,
        -1,
        dtype,
        gradient_accumulation_steps=EPISODES // micro,
        total_episodes=EPISODES * updates,
        num_ppo_epochs=PPO_EPOCHS,
        num_mini_batches=1,
        local_rollout_forward_batch_size=micro,
        response_length=NEW_TOKENS,
        num_sample_generations=0,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=scorers[0],
        value_model=scorers[1],
        train_dataset=data,
        eval_dataset=data,
        peft_config=lora("CAUSAL_LM"),
        callbacks=[Steps(meter)],
    )
    return trainer, meter


def grpo(folder: Path, dtype: torch.dtype, updates: int, micro: int, out: str) -> tuple[Any, Meter]:
    """Return TRL's GRPO trainer and its meter. It learns from each rollout once, in one optimizer step."""
    path = str(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    warm_up(model)
    meter = Meter()
    config = settings(
        trl.GRPOConfig,
        out,
        micro,
        updates,
        dtype,
        gradient_accumulation_steps=EPISODES // micro,
        num_generations=GROUP,
        max_completion_length=NEW_TOKENS,
        generation_kwargs={"min_new_tokens": NEW_TOKENS},
        beta=KL_COEF,
    )

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [rule(response) for response in completion_ids]

    rows = read_rows(folder)[: EPISODES // GROUP * updates]
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text(row["prompt"])} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(path, padding_side="left"),
        peft_config=lora("CAUSAL_LM"),
        callbacks=[Steps(meter)],
    )
    return trainer, meter


def measure(folder: str, task: str, dtype: str, steps: int, micro: int) -> dict[str, Any]:
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    with tempfile.TemporaryDirectory() as out:
        if task in ON_POLICY:
            trainer, meter = {"ppo": ppo, "grpo": grpo}[task](Path(folder), kind, steps, micro, out)
        else:
            trainer, meter = trainer_of(Path(folder), task, kind, steps, micro, out)
            count(trainer, meter)
        trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return meter.result() | {"loss": history[-1] if history else None}


if __name__ == "__main__":
    serve(measure)
