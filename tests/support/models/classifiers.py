"""Small separate reward models: sequence classifiers whose tokenizer and template differ from the policy's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from chat_styles import STYLES, byte_tokenizer
from transformers import Qwen2Config, Qwen2ForSequenceClassification, pipeline


def save_classifier(folder: Path, *, labels: int = 1, template: str | None = "qwen", positions: int = 512) -> Path:
    """Save a random Qwen2 classifier in Hugging Face format."""
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = None if template is None else STYLES[template]
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
        pad_token_id=0,
        num_labels=labels,
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        Qwen2ForSequenceClassification(config).save_pretrained(folder)
    return folder


def scores_by_transformers(folder: Path, conversations: list[list[dict[str, Any]]]) -> list[float]:
    """Return the scores of transformers' pipeline on the text of each conversation, one at a time."""
    judge = pipeline("text-classification", model=str(folder), function_to_apply="none", device="cpu")
    texts = [judge.tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    return [judge(text)[0]["score"] for text in texts]


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
