"""Log-probabilities of the data under the frozen SFT model, computed once for every epoch, run and optimizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment_core.plugin_api import TokenSequence
from alignment_core.progress import Stopped
from alignment_core.stages.base import Job, Stage
from alignment_core.stages.kept import whole_lines
from alignment_core.stages.opened import Opened, open_data
from alignment_core.stages.plan import VERSIONS
from alignment_core.training.run import Rows

TABLE, KEPT = "reference.parquet", "reference.jsonl"


def run(job: Job) -> dict[str, Any]:
    """Write one row per distinct sequence: its digest and its summed log-probability.

    A killed stage goes on after the last group of sequences that it finished.
    """
    data = open_data(job)
    sequences: dict[str, TokenSequence] = {}
    for name in job.call.config["rows"]:
        for row in getattr(data.train, name):
            sequences |= {sequence.digest(): sequence for sequence in row.sequences.values()}
    opened = Opened.of(job)
    opened.add_sft("policy")
    policy = opened.run(Rows()).policy
    kept = job.checkpoints / KEPT
    found: dict[str, float] = {}
    for line in whole_lines(kept):
        found |= json.loads(line)
    digests, todo = list(sequences), list(sequences.values())
    for group in opened.roles.groups(todo, policy.budget.tokens, lambda sequence: (sequence,)):
        # A group is kept as a whole: what stands beside a sequence may round it differently.
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
    table = pa.table({"sequence": digests, "logps": pa.array([found[digest] for digest in digests], pa.float32())})
    pq.write_table(table, job.out / TABLE)
    return {"sequences": len(found), "tokens": sum(len(sequence.ids) for sequence in todo)}


def read_reference(folder: Path) -> Mapping[str, float]:
    """Summed log-probability by `TokenSequence.digest()`."""
    table = pq.read_table(folder / TABLE)
    return dict(zip(table["sequence"].to_pylist(), table["logps"].to_pylist(), strict=True))


STAGE = Stage("reference", VERSIONS["reference"], run)
