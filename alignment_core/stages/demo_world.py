"""Make the inputs of the demo: a tokenizer, a base model trained from scratch, and demonstrations."""

from __future__ import annotations

import json
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignment_core.execution.stage import Job, Stage
from alignment_core.models.base.loading import choose_device
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.seeds import seed_of
from alignment_core.stages.sft import SFT
from alignment_core.stages.shared.context import write_history
from alignment_core.stages.shared.demo_texts import demonstrations, documents
from alignment_core.stages.shared.memory_fit import initial_token_budget
from alignment_core.training.loop import train
from alignment_core.training.rows import Rows, Vocabulary
from alignment_core.training.run import Run

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
MODEL, DEMONSTRATIONS = "demo-llama", "demonstrations.jsonl"


def run(job: Job) -> dict[str, Any]:
    """Train the model. Write `demo-llama/` in Hugging Face format and `demonstrations.jsonl`."""
    config = job.call.config
    rows = demonstrations(seed_of(config["seed"], "demonstrations"))
    with (job.out / DEMONSTRATIONS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    texts = documents(config["documents"], seed_of(config["seed"], "documents"))
    tokenizer = _tokenizer([*texts, "User: \nAssistant: "])
    model = _model(len(tokenizer), config["seed"]).to(choose_device(job.call.runtime.device))
    roles = Roles(model, "world")
    roles.add_base("policy")
    roles.train_only(["policy"], base=True)
    training = Run(
        roles=roles,
        rows=Rows(demonstrations=[_row(text, tokenizer) for text in texts]),
        vocabulary=Vocabulary(tokenizer, 0, (2,)),
        budget=Budget(initial_token_budget(job.call.runtime)),
        seed=config["seed"],
        progress=job.progress,
    )
    objective = SFT(epochs=1, batch_size=32, learning_rate=3e-3)
    train(objective, training, job.checkpoints, job.call.runtime.checkpoint_seconds)
    model.requires_grad_(False).save_pretrained(job.out / MODEL)
    tokenizer.save_pretrained(job.out / MODEL)
    return write_history(training, job.out)


def _row(text: str, tokenizer: Any) -> Row:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return Row(text, {"demonstration": TokenSequence((1, *ids, 2), 1)})


def _tokenizer(texts: list[str]) -> Any:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def _model(vocabulary: int, seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        # The usual 0.02 suits wide models. At this width, learning to copy words of the prompt would take thousands of
        # steps.
        initializer_range=0.08,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return model.eval()


STAGE = Stage("demo_world", VERSIONS["demo_world"], run)
