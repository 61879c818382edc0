"""Judge one cell: python -m on_smollm2.judge. Both sides are judged by this script."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from against_trl.world import serve

from alignment_core.training.rows import Rows
from alignment_core.training.run import Run
from on_smollm2.chat_model import ChatModel
from on_smollm2.real_data import is_right
from on_smollm2.request import Request, answering
from on_smollm2.rules import RULES


def judge(request: Request) -> dict[str, Any]:
    """Return verdicts on answers to held-out prompts, their KL and length, and which held-out pairs are ordered right.

    The answers of all models with one seed are drawn with the same noise for each prompt.
    """
    cell = request.cell
    model = ChatModel(request.base, cell.all_settings["load_in"], request.device)
    model.roles.add_base("reference")
    if cell.optimizer == "untouched":
        model.roles.add_base("policy")
    elif cell.optimizer == "reward":
        model.roles.add_base("policy")
        model.roles.add_saved("reward", request.out)
    else:
        model.roles.add_saved("policy", request.out)
    run = model.run(Rows(), cell.data.seed)
    found: dict[str, Any] = {}
    with torch.no_grad():
        if cell.optimizer != "untouched":
            found["ordered"] = _ordered(request, model, run)
        if cell.optimizer != "reward" and request.data.asked:
            found |= _answers(request, model, run)
    return found


def _ordered(request: Request, model: ChatModel, run: Run) -> list[float]:
    """Return for each held-out pair 1 if its better answer has the higher (implicit) reward, 0.5 for a tie, else 0."""
    rows = model.preferences(request.data.held_out)
    better, worse = ([row.sequences[name] for row in rows] for name in ("chosen", "rejected"))
    if request.cell.optimizer == "reward":
        scores = run.reward.scores(better + worse)
    else:
        scores = run.policy.logps(better + worse) - run.reference.logps(better + worse)
    high, low = scores.chunk(2)
    return [float(a > b) + 0.5 * float(a == b) for a, b in zip(high.tolist(), low.tolist(), strict=True)]


def _answers(request: Request, model: ChatModel, run: Run) -> dict[str, Any]:
    asked, task = request.data.asked, request.cell.data.task
    prompts = model.prompts([prompt for prompt, _ in asked])
    rollouts = run.generate(prompts, max_new_tokens=request.cell.data.new_tokens)
    sequences = [rollout.sequence for rollout in rollouts]
    kl = run.policy.logps(sequences) - run.reference.logps(sequences)
    texts = [rollout.text for rollout in rollouts]
    return {
        "right": [int(_right(task, text, known)) for text, (_, known) in zip(texts, asked, strict=True)],
        "kl": float(kl.mean()),
        "length": fmean(len(sequence.completion) for sequence in sequences),
        "finished": fmean(rollout.finished for rollout in rollouts),
        "sample": texts[:4],
    }


def _right(task: str, answer: str, known: str) -> bool:
    return RULES[task][1](answer) if task in RULES else is_right(task, answer, known)


if __name__ == "__main__":
    serve(answering(judge))
