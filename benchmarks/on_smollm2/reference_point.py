"""Follow KTO's reference point z0 in training, by our estimate and by TRL's on the same batches.

Both estimate E[log(policy / reference)] by responses to other prompts, and cut it off at 0. Ours is the mean over the
step; TRL's is one mean per micro-batch of 8, each cut off. The raw mean is what is cut off. For comparison, the same
step also gives the log-ratio of the responses that belong to the prompts, which the reference point is subtracted from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from against_trl.world import serve

from alignment_core.plugin_api import Row, StepBatch
from alignment_core.training.loop import train
from on_smollm2.chat_model import ChatModel
from on_smollm2.ours import objective_of, open_roles, rows_of
from on_smollm2.request import Request, answering

MICRO_BATCH = 8


def cut_in_parts(ratios: Sequence[float], part: int) -> float:
    """Return the mean over parts of `part` rows of max(0, the part's mean)."""
    parts = [ratios[start : start + part] for start in range(0, len(ratios), part)]
    return sum(max(0.0, sum(one) / len(one)) for one in parts) / len(parts)


def followed(request: Request) -> dict[str, Any]:
    """Train KTO and return, for every step, z0 before it is cut off, both estimates and the responses' log-ratio."""
    cell = request.cell
    model = ChatModel(request.base, cell.all_settings["load_in"], request.device)
    open_roles(cell, model, None)
    rows = rows_of(cell, request.data, model)
    run = model.run(rows, cell.data.seed)
    complete = {row.id: row for row in rows.feedback}
    steps: list[dict[str, float]] = []

    def ratios(found: Sequence[Row], name: str) -> list[float]:
        sequences = [row.sequences[name] for row in found]
        return [float(r) for r in run.policy.logps(sequences) - run.reference.logps(sequences)]

    objective = objective_of(cell)
    kind = type(objective)

    def batches(self: Any, run: Any) -> Iterator[StepBatch]:
        for batch in kind.batches(self, run):
            found = [complete[row.id] for row in batch.rows]
            mismatched = ratios(found, "mismatched")
            steps.append(
                {
                    "raw": sum(mismatched) / len(mismatched),
                    "ours": batch.constants["z0"],
                    "trl": cut_in_parts(mismatched, MICRO_BATCH),
                    "responses": sum(ratios(found, "response")) / len(found),
                }
            )
            yield batch

    following: Any = type(kind.__name__, (kind,), {"batches": batches, "__annotations__": {}})
    with tempfile.TemporaryDirectory() as checkpoints:
        train(following.model_validate(objective.model_dump()), run, Path(checkpoints), 1e9)
    return {"steps": steps}


if __name__ == "__main__":
    serve(answering(followed))
