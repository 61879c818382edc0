"""The text of a first config file, with a comment for each choice."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignment_core.config import StepSettings
from alignment_core.config.learning_rates import LARGEST_RATE, suitable_rate
from alignment_flows.starting.advice import Advice, Contents

ON_CPU, ON_CARDS = "HuggingFaceTB/SmolLM2-135M-Instruct", {
    24: "Qwen/Qwen2.5-7B-Instruct",
    16: "Qwen/Qwen2.5-3B-Instruct",
    12: "Qwen/Qwen2.5-1.5B-Instruct",
    0: "Qwen/Qwen2.5-0.5B-Instruct",
}  # fmt: skip
"""Base models to start with. Those for a card by its least memory in GB."""
INSTRUCT = re.compile(r"instruct|chat|[-_]it\b|assistant|aligned|^package:|^gguf:", re.IGNORECASE)
LENGTHS = (256, 512, 1024, 2048)
BYTES_PER_TOKEN = 3
"""At least so many bytes are one token in nearly all text of European languages."""
FEW, FEW_HELD_OUT = 500, 0.2
ENOUGH_STEPS, MOST_EPOCHS = 30, 5
ENOUGH_PAIRS = 50
"""With fewer pairs, what a reward model says is luck."""


@dataclass(frozen=True)
class Choices:
    """What the user chose or the data decided.

    Attributes:
        name: name of the run.
        paths: the sources.
        model: base model.
        card: memory of the card in GB, or None for the CPU.
        settings: `columns` and `desirable` of the sources, empty if they are known without.
        thresholds: the threshold of each source whose ratings need one.
        longest: length of the longest conversation in bytes.
    """

    name: str
    paths: Sequence[str]
    model: str
    card: float | None
    settings: Mapping[str, Any]
    thresholds: Mapping[str, float]
    longest: int


def model_for(card: float | None) -> str:
    """Return a base model to start with on a card of so many GB, or on the CPU."""
    return ON_CPU if card is None else next(model for least, model in ON_CARDS.items() if card >= least)


def is_instruct(model: str) -> bool:
    """Return whether a base model follows instructions: it has a chat template, or is named so."""
    folder = Path(model)
    if folder.is_dir():
        tokenizer = folder / "tokenizer_config.json"
        templates = (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists()
        return templates or (tokenizer.is_file() and '"chat_template"' in tokenizer.read_text(encoding="utf-8"))
    return INSTRUCT.search(model) is not None


def config_text(chosen: Choices, contents: Contents, advice: Advice) -> str:
    """Return the text of the config file."""
    return "\n".join([*_head(chosen), *_data(chosen, contents, advice), *_learning(chosen, contents, advice)]) + "\n"


def _head(chosen: Choices) -> list[str]:
    length = next((length for length in LENGTHS if length * BYTES_PER_TOKEN >= chosen.longest), LENGTHS[-1])
    lines = [
        "# Written by `align init`. Next: `align plan`, then `align run`. All settings: docs/reference/settings.md.",
        f"name: {_quoted(chosen.name)}",
        "model:",
        f"  base: {_quoted(chosen.model)}",
    ]
    if chosen.card is None:
        lines.append("  load_in: fp32          # on a CPU. On a GPU, remove this line: the default is 4-bit (nf4)")
    lines.append(f"  max_length: {length:<11}# tokens. Longer rows are counted and left out")
    return lines


def _data(chosen: Choices, contents: Contents, advice: Advice) -> list[str]:
    lines = ["data:", "  sources:"]
    for path in chosen.paths:
        lines.append(f"    - path: {_quoted(path)}")
        if columns := chosen.settings["columns"]:
            lines.append(f"      columns: {_inline(columns)}")
        if desirable := chosen.settings["desirable"]:
            words = ", ".join(_quoted(word) for word in desirable)
            lines.append(f"      desirable: [{words}]  # labels that mean thumbs up")
        if (threshold := chosen.thresholds.get(path)) is not None:
            lines.append(f"      threshold: {threshold:<9g}# ratings at or above this mean thumbs up")
        if advice.keep:
            lines.append(f"      keep: [{', '.join(advice.keep)}]     # the rule sees this, the model does not")
    if contents.conversations < FEW:
        lines.append(
            f"  held_out_fraction: {FEW_HELD_OUT:<4}# for evaluation. More than usual, because there are few data"
        )
    return lines


def _learning(chosen: Choices, contents: Contents, advice: Advice) -> list[str]:
    lines = []
    if advice.sft:
        lines.append("sft: {epochs: 1}         # first imitates the demonstrations or the better answers")
    else:
        lines.append("sft: null                # an instruct model needs none")
    if advice.reward:
        lines += ["reward:", "  by:", *(f"    - {_inline(part)}" for part in advice.reward)]
    lines += _comment(f"{advice.optimizer}, because {advice.because}.")
    lines += ["optimizer:", f"  name: {advice.optimizer}"]
    if rows := {"dpo": contents.pairs, "kto": contents.labels}.get(advice.optimizer):
        batch = 32 if rows >= 2 * FEW else 16
        epochs = min(MOST_EPOCHS, max(1, -(-ENOUGH_STEPS * batch // rows)))
        lines += [f"  batch_size: {batch}", f"  epochs: {epochs:<15}# passes over the data"]
        lines += _learning_rate(-(-rows // batch) * epochs, small=chosen.card is None)
    if advice.reward:
        lines.append("  max_new_tokens: 128    # per answer")
    lines += _evaluation(contents, advice, few=chosen.card is None)
    if chosen.card is None:
        lines.append("device: cpu")
    return lines


def _evaluation(contents: Contents, advice: Advice, *, few: bool) -> list[str]:
    limits = ["  max_prompts: 64", f"  max_new_tokens: {64 if few else 256}"]
    if advice.reward and not advice.first:
        judge = ["  evaluators:             # the reward also judges the answers, for the win rate of the result"]
        judge += [f"    - {_inline(part)}" for part in advice.reward]
    elif contents.comparisons >= ENOUGH_PAIRS:
        judge = [
            "  reward_model: true      # learns from your pairs and judges the answers, for the win rate of the result"
        ]
    else:
        judge = [
            "  # Nothing judges the answers yet. For a win rate: `evaluators`, `endpoint`, or pairs and `reward_model`"
        ]
    return ["evaluation:", *judge, *limits]


def _learning_rate(steps: int, *, small: bool) -> list[str]:
    """Return the line for the learning rate that so many steps need, or none if it is the default."""
    usual = StepSettings().learning_rate
    rate = suitable_rate(StepSettings(), steps, most=LARGEST_RATE if small else usual)
    if rate == usual:
        return []
    text = f"{rate:.6f}".rstrip("0")  # YAML takes 1e-05 for a word
    return [
        f"  learning_rate: {text:<8}# for {steps} steps{' of a small model; a larger one needs less' if small else ''}"
    ]


def _comment(text: str) -> list[str]:
    words, lines = text.split(), ["#"]
    for word in words:
        if len(lines[-1]) + len(word) > 110:
            lines.append("#")
        lines[-1] += f" {word}"
    return lines


def _quoted(text: str) -> str:
    """Return text as YAML: plain where that is unmistakable."""
    plain = re.fullmatch(r"[A-Za-z./][\w./:@-]*(?<!:)", text) and yaml.safe_load(text) == text  # `no` is a word here
    return text if plain else json.dumps(text, ensure_ascii=False)


def _inline(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items()) + "}"
