"""A worker of another work pool in a folder of its own, as on another machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from served import PREFECT, Served, until


@dataclass(frozen=True)
class Far:
    """The other machine.

    Attributes:
        served: the server of both.
        folder: the worker's working directory.
        pool: its work pool.
        process: the worker.
    """

    served: Served
    folder: Path
    pool: str
    process: subprocess.Popen[bytes]

    def artifacts(self, store: str = "store") -> set[str]:
        """Return the artifacts in this machine's store, as `kind/key`."""
        return artifacts(self.folder / store)

    def runs(self) -> list[dict[str, Any]]:
        """Return the flow runs of stages in this pool, the oldest first."""
        runs = self.served.runs_of(f"build/{self.pool}")
        return sorted(runs, key=lambda run: str(run["created"]))


def artifacts(store: Path) -> set[str]:
    """Return the artifacts in a store, as `kind/key`, without the shards of data, which no other machine gets."""
    manifests = (file.parts for file in store.glob("[a-z]*/*/manifest.json"))
    return {f"{parts[-3]}/{parts[-2]}" for parts in manifests if parts[-3] != "shard"}


@contextmanager
def far_worker(served: Served, folder: Path, pool: str, variables: Mapping[str, str] | None = None) -> Iterator[Far]:
    """Run a worker of a pool, which need not exist yet, until the end of the block."""
    folder.mkdir(exist_ok=True)
    done = served.run(served.program, "deploy", "--pool", pool)
    assert done.returncode == 0, done.stderr
    env = {**os.environ, **served.variables, "PREFECT_API_URL": f"{served.url}/api", "PREFECT_HOME": str(served.home)}
    env |= {"PREFECT_WORKER_QUERY_SECONDS": "1", **(variables or {})}
    with (folder / "worker.log").open("wb") as log:
        command = [*PREFECT, "worker", "start", "--pool", pool, "--name", f"worker-{folder.name}", "--limit", "1"]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: served.post(f"work_pools/{pool}/workers/filter"), lambda: (folder / "worker.log").read_text())
        yield Far(served, folder, pool, process)
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()  # as `align down` does
            process.wait()
