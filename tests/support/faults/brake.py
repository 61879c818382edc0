"""Hold a stage of a worker's run in the middle of its work until a test releases it.

A cancellation takes seconds to arrive, but a stage of a tiny model takes less. A held stage keeps checking whether it
should stop, as it does otherwise.
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
    """The brake of runs started with `job_variables`. Both sides communicate through files in `folder`."""

    folder: Path

    @property
    def job_variables(self) -> dict[str, Any]:
        path = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")]))
        return {"env": {"PYTHONPATH": path, "ALIGN_TEST_BRAKE": str(self.folder)}}

    def hold(self, stage: str) -> None:
        """Hold the stage whose label starts with `stage` the next time that it runs."""
        (self.folder / "held").unlink(missing_ok=True)
        new = self.folder / "hold.new"
        new.write_text(stage)
        new.replace(self.folder / "hold")

    def release(self) -> None:
        """Release the stage and all that follow."""
        (self.folder / "hold").unlink()

    def held(self, served: Served, flow_run: str) -> int:
        """Wait until a stage of the run is held. Return the id of its process."""
        file = self.folder / "held"
        until(
            lambda: file.exists() or served.state(flow_run)["type"] in FINAL,
            lambda: served.state_and_log(flow_run),
        )
        assert served.state(flow_run)["type"] == "RUNNING", served.state_and_log(flow_run)
        return int(file.read_text())

    def loaded(self, flow_run: str) -> dict[str, Any]:
        """Return whether the flow run's own process had imported `torch` at its end, and its `peak` memory in bytes."""
        file = self.folder / f"{flow_run}.json"
        until(file.exists)
        report: dict[str, Any] = json.loads(file.read_text())
        return report
