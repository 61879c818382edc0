"""Score responses that lie in a file by a reward model: one that was trained, or one of its own."""

from __future__ import annotations

import json
import math
from typing import Any

from alignment_core.models.logps import Budget
from alignment_core.stages.ai_rater import SCORES, TEXTS
from alignment_core.stages.base import Job, Stage
from alignment_core.stages.fitting import budget_of
from alignment_core.stages.judging import scores_of_texts
from alignment_core.stages.opened import External, open_renderer
from alignment_core.stages.plan import VERSIONS

REWARD = "reward"


def run(job: Job) -> dict[str, Any]:
    """Write `scores.jsonl`: for each line of the file, its responses' scores in order; null where there is none."""
    with open(job.call.inputs[TEXTS], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    texts = [(line["prompt"], response) for line in lines for response in line["responses"]]
    if REWARD in job.parents:
        scores, facts = scores_of_texts(job, REWARD, texts), {}
    else:
        external = External.of(job, open_renderer(job))
        read = external.reader(Budget(budget_of(job.call.runtime))).scores([(tuple(p), said) for p, said in texts])
        scores, facts = read.tolist(), {"reward_texts_cut": external.retelling.cut}
    left = iter([None if math.isnan(score) else score for score in scores])
    with (job.out / SCORES).open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps([next(left) for _ in line["responses"]]) + "\n")
    return {"responses": len(texts), **facts}


STAGE = Stage("score", VERSIONS["score"], run)
