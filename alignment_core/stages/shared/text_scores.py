"""Score responses as text with a trained reward model. They may be from a model with another tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from alignment_core.data.rendering.encoder import Unrenderable
from alignment_core.execution.stage import Job
from alignment_core.progress import Work
from alignment_core.stages.shared.context import StageContext
from alignment_core.training.rewards import scores_of
from alignment_core.training.rows import Rows


def score_texts(job: Job, role: str, texts: Sequence[tuple[list[dict[str, Any]], str]]) -> list[float]:
    """Return the score of each (conversation, response) by the reward model in the job's parent `role`.

    The score is NaN if the chat template rejects the response or the response is too long. NaN counts as no verdict.
    """
    context = StageContext.open(job)
    context.add_sft("policy")
    context.roles.add_saved("reward", job.parents[role])
    running = context.run(Rows())
    sequences, places = [], []
    for place, (conversation, response) in enumerate(texts):
        turn = ({"role": "assistant", "content": response},)
        try:
            sequences.append(context.renderer.completion(tuple(conversation), turn))
            places.append(place)
        except Unrenderable as error:
            job.progress.warn(f"a response is not scored: {error}")
    running.work = Work(job.progress, len(sequences))
    scores = [math.nan] * len(texts)
    with torch.no_grad():
        for place, score in zip(places, scores_of(running.reward, sequences).tolist(), strict=True):
            scores[place] = score
    running.work.end()
    return scores
