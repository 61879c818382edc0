"""Trainers of TRL that sample: PPO of TRL 1.12, the last release that has one; GRPO and RLOO of TRL 1.16 or newer.

All get our reward model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import trl
from against_trl.steps import Steps
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, inject_adapter_in_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from on_smollm2.meter import Meter, warm_up
from on_smollm2.request import Request
from on_smollm2.their_settings import PAD, Texts, dtype_of, lora, settings_of


def ppo_trainer(request: Request, out: str) -> tuple[Any, Meter]:
    """Return TRL 1.12's PPO trainer, with our reward model and a value model that starts from it, as on our side.

    TRL's value model is a full network. Its adapter is put into its layers in place, so that as many weights are
    trained as on our side.
    """
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    cell, settings = request.cell, request.cell.all_settings
    tokenizer, policy = _tokenizer_and_policy(request)
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


def _tokenizer_and_policy(request: Request) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(str(request.base), padding_side="left")
    tokenizer.pad_token = PAD
    return tokenizer, AutoModelForCausalLM.from_pretrained(str(request.base), dtype=dtype_of(request.cell))


def _scorer(request: Request, pad: int) -> Any:
    """Return our reward model as a plain sequence classifier."""
    adapted = AutoPeftModelForSequenceClassification.from_pretrained(str(request.reward), num_labels=1)
    merged = adapted.merge_and_unload().to(dtype_of(request.cell))
    merged.config.pad_token_id = pad
    return merged


def group_trainer(request: Request, out: str) -> tuple[Any, Meter]:
    """Return TRL's trainer of GRPO or RLOO."""
    cell, settings = request.cell, request.cell.all_settings
    trainer, config = {"grpo": (trl.GRPOTrainer, trl.GRPOConfig), "rloo": (trl.RLOOTrainer, trl.RLOOConfig)}[
        cell.optimizer
    ]
    tokenizer, policy = _tokenizer_and_policy(request)
    scorer = _scorer(request, tokenizer.pad_token_id)
    warm_up(policy)
    meter = Meter()

    def scores(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        texts = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        return _scores(scorer, [[*text, *ids] for text, ids in zip(texts, completion_ids, strict=True)])

    made = trainer(
        model=policy,
        reward_funcs=scores,
        args=settings_of(
            config,
            cell,
            request.device,
            out,
            max_steps=settings["rollouts"] * settings["epochs"],
            num_iterations=settings["epochs"],
            num_generations=settings["samples"],
            max_completion_length=cell.data.new_tokens,
            beta=settings["kl_coef"],
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": Texts(tokenizer).prompt(pair.prompt)} for pair in request.data.pairs]
        ),
        processing_class=tokenizer,
        peft_config=lora(cell, "CAUSAL_LM"),
        callbacks=[Steps(meter)],
    )
    return made, meter


def _scores(scorer: Any, rows: Sequence[Sequence[int]]) -> list[float]:
    """Return the score of each row of ids, at its last token."""
    width, pad = max(map(len, rows)), scorer.config.pad_token_id
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    device = next(scorer.parameters()).device
    with torch.no_grad():
        found: list[float] = scorer(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].tolist()
    return found
