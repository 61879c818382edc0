"""Score the responses in a file with a reward model: one that a run trained, or the existing model `reward.model`."""

from __future__ import annotations

import json
import math
from typing import Any

from alignment_core.execution.stage import Job, Stage
from alignment_core.models.roles.logps import Budget
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.progress import Work
from alignment_core.stages.shared.ai_rater import SCORES, TEXTS
from alignment_core.stages.shared.context import ExternalRewardModel, open_renderer
from alignment_core.stages.shared.memory_fit import initial_token_budget
from alignment_core.stages.shared.text_scores import score_texts

REWARD = "reward"


def run(job: Job) -> dict[str, Any]:
    """Write `scores.jsonl`: for each line of the file, the scores of its responses in order. Null: not scored."""
    with open(job.call.inputs[TEXTS], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    texts = [(line["prompt"], response) for line in lines for response in line["responses"]]
    if REWARD in job.parents:
        scores, facts = score_texts(job, REWARD, texts), {}
    else:
        external = ExternalRewardModel.load(job, open_renderer(job))
        budget, work = Budget(initial_token_budget(job.call.runtime), job.ranks), Work(job.progress, len(texts))
        budget.on_pass = work.begin
        read = external.reader(budget).scores([(tuple(prompt), response) for prompt, response in texts])
        work.end()
        scores, facts = read.tolist(), {"reward_texts_cut": external.cross_tokenizer.truncated}
    left = iter([None if math.isnan(score) else score for score in scores])
    with (job.out / SCORES).open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps([next(left) for _ in line["responses"]]) + "\n")
    return {"responses": len(texts), **facts}


STAGE = Stage("score", VERSIONS["score"], run)
