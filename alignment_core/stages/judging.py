"""A reward model that reads responses as text, whatever tokenizer they were sampled with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from alignment_core.data.encoding import Unrenderable
from alignment_core.stages.base import Job
from alignment_core.stages.opened import Opened
from alignment_core.training.run import Rows


def scores_of_texts(job: Job, role: str, texts: Sequence[tuple[list[dict[str, Any]], str]]) -> list[float]:
    """The score of each (conversation, response) by the reward model that is the job's parent `role`.

    A response that the chat template refuses, or that is too long, cannot be scored: NaN, which decides nothing.
    """
    opened = Opened.of(job)
    opened.add_sft("policy")
    opened.roles.add_saved("reward", job.parents[role])
    running = opened.run(Rows())
    sequences, places = [], []
    for place, (conversation, response) in enumerate(texts):
        said = ({"role": "assistant", "content": response},)
        try:
            sequences.append(opened.renderer.completion(tuple(conversation), said))
            places.append(place)
        except Unrenderable as error:
            job.progress.warn(f"a response is not scored: {error}")
    scores = [math.nan] * len(texts)
    with torch.no_grad():
        for place, score in zip(places, running.reward.scores(sequences).tolist(), strict=True):
            scores[place] = score
    return scores
