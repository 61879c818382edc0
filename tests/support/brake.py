"""Stages of a worker's run that wait in the middle of their work until a test lets them go.

A cancellation takes seconds to arrive, a stage of a tiny model takes less. What waits does what it does otherwise: it
looks whether it shall stop.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from served import FINAL, Served, until

SITE = Path(__file__).parent / "brake_site"


@dataclass(frozen=True)
class Brake:
    """The brake of the runs that are started with `job_variables`; `folder` is where both sides talk."""

    folder: Path

    @property
    def job_variables(self) -> dict[str, Any]:
        path = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")]))
        return {"env": {"PYTHONPATH": path, "ALIGN_TEST_BRAKE": str(self.folder)}}

    def hold(self, stage: str) -> None:
        """Make the stage whose label begins so wait in its middle, the next time that it runs."""
        (self.folder / "held").unlink(missing_ok=True)
        new = self.folder / "hold.new"
        new.write_text(stage)
        new.replace(self.folder / "hold")

    def release(self) -> None:
        """Let the stage go on, and all that follow."""
        (self.folder / "hold").unlink()

    def held(self, served: Served, flow_run: str) -> int:
        """Wait until a stage of the run waits; the id of its process."""
        file = self.folder / "held"
        until(
            lambda: file.exists() or served.state(flow_run)["type"] in FINAL,
            lambda: served.told(flow_run),
        )
        assert served.state(flow_run)["type"] == "RUNNING", served.told(flow_run)
        return int(file.read_text())

    def loaded(self, flow_run: str) -> dict[str, Any]:
        """What the flow run's own process had loaded at its end: whether `torch`, and its `peak` of memory in bytes."""
        file = self.folder / f"{flow_run}.json"
        until(file.exists)
        said: dict[str, Any] = json.loads(file.read_text())
        return said
