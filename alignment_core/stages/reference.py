"""Compute the log-probabilities of the data under the frozen SFT model, once for all epochs, runs and optimizers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment_core.execution.stage import Job, Stage
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.plugin_api import TokenSequence
from alignment_core.progress import Stopped
from alignment_core.stages.shared.context import StageContext, open_data
from alignment_core.stages.shared.resume import complete_lines
from alignment_core.training.rows import Rows

TABLE, KEPT = "reference.parquet", "reference.jsonl"


def run(job: Job) -> dict[str, Any]:
    """Write one row per distinct sequence: its digest and its summed log-probability.

    A killed stage resumes after the last finished group of sequences.
    """
    data = open_data(job)
    sequences: dict[str, TokenSequence] = {}
    for name in job.call.config["rows"]:
        for row in getattr(data.train, name):
            sequences |= {sequence.digest(): sequence for sequence in row.sequences.values()}
    context = StageContext.open(job)
    context.add_sft("policy")
    policy = context.run(Rows()).policy
    kept = job.checkpoints / KEPT
    found: dict[str, float] = {}
    for line in job.ranks.from_first("kept lines", lambda: complete_lines(kept)):
        found |= json.loads(line)
    digests, todo = list(sequences), list(sequences.values())
    # The ranks share each group, so that every one of them has a complete pass.
    together = policy.budget.tokens * job.ranks.size
    for group in context.roles.groups(todo, together, lambda sequence: (sequence,)):
        # Resume with complete groups: the other sequences in a group can affect the rounding of a result.
        if all(digests[i] in found for i in group):
            continue
        if job.progress.stopping:
            raise Stopped(f"stopped after {len(found)} of {len(todo)} sequences")
        logps = policy.logps([todo[i] for i in group]).tolist()
        new = {digests[i]: logp for i, logp in zip(group, logps, strict=True)}
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(new) + "\n")
        found |= new
        job.progress.step(len(found), len(todo))
    # Imported here, because Arrow starts a thread on import, and a process with threads cannot be forked safely.
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"sequence": digests, "logps": pa.array([found[digest] for digest in digests], pa.float32())})
    pyarrow.parquet.write_table(table, job.out / TABLE)
    return {"sequences": len(found), "tokens": sum(len(sequence.ids) for sequence in todo)}


def read_reference(folder: Path) -> Mapping[str, float]:
    """Return the summed log-probability by `TokenSequence.digest()`."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(folder / TABLE)
    return dict(zip(table["sequence"].to_pylist(), table["logps"].to_pylist(), strict=True))


STAGE = Stage("reference", VERSIONS["reference"], run)
