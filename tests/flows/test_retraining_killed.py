"""A retrain that is killed midway: its votes are neither lost nor counted twice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from brake import Brake
from served import ALIGN, PATIENCE, until

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.catalogue import lineage
from alignment_core.feedback import Rater, open_feedback
from alignment_core.planning.retrain import RETRAINED, last_vote_used

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def vote(place: str, numbers: Iterable[int]) -> None:
    with open_feedback(place) as store:
        for number in numbers:
            prompt = ({"role": "user", "content": f"Tell me something about the number {number}."},)
            store.thumb(Rater("Ann"), store.add_response(prompt, f"I like {number}.", "m"), number % 2 == 0)


def test_votes_of_a_killed_retrain_are_learned_from_once(
    write: Callable[..., Path], brake: Brake, tmp_path: Path
) -> None:
    place = str(tmp_path / "feedback.db")
    rules = {"win_rate_over_sft": None, "win_rate_over_production": None, "to_production": True}
    step = {"batch_size": 8, "learning_rate": 1e-3}
    config = write(optimizer={"name": "kto", **step}, gate=rules, feedback=place, retrain={"min_votes": 10})
    command = [*ALIGN, "retrain", str(config)]
    vote(place, range(14))

    brake.hold("kto")
    env = os.environ | brake.job_variables["env"]
    running = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    held = brake.folder / "held"
    until(lambda: held.exists() or running.poll() is not None)
    assert running.poll() is None
    running.kill()
    running.communicate(timeout=PATIENCE)
    until(lambda: not Path(f"/proc/{held.read_text()}").exists())  # its stage exits with it
    brake.release()
    store = ArtifactStore(tmp_path / "store")
    assert store.aliases.current(RETRAINED) is None

    vote(place, range(14, 20))  # votes that arrived in the meantime
    for expected in ("Gate: passed", "Skipped: 0 new votes, 10 needed"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    model = store.aliases.current(RETRAINED)
    assert model is not None
    assert store.aliases.current("production") is not None
    assert last_vote_used(store, model.key, place) == 20
    learned = [
        artifact.manifest()
        for artifact in lineage(store, [model.key]).values()
        if artifact is not None and artifact.kind == "ingest"
    ]
    votes = [manifest for manifest in learned if manifest.inputs["sources"][0]["path"] == place]
    assert [sum(rows["feedback"] for rows in manifest.metrics["rows"].values()) for manifest in votes] == [20]
