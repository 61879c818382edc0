"""A run that finds every stage in the store, where no Prefect server would show it.

It needs no Prefect, whose import and whose temporary server take many times longer than the run.
"""

import os
import re
import sys
from pathlib import Path

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.execution.build import StageResult, build, hold_leases
from alignment_core.planning.pipeline import Plan
from alignment_core.progress import Silent
from alignment_flows.form.references import refers_to_prefect
from alignment_flows.serve.service_record import RECORD

NAMES_A_SERVER = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")
SETTINGS = ("prefect.toml", "pyproject.toml", ".env")
"""Files in the working directory in which Prefect looks for its settings."""
API = re.compile(r"PREFECT_API_URL|^\[(tool\.prefect\.)?api\]", re.IGNORECASE | re.MULTILINE)


def find_cached_run(config: PipelineConfig, plan: Plan) -> dict[str, StageResult] | None:
    """Return the stages of a run that has nothing to do and that no server is there to record, else None.

    A run with a gate is not such a run, because it may promote its model.
    """
    if config.gate is not None or refers_to_prefect(config) or has_server() or not all_built(plan):
        return None
    calls = plan.calls()
    with hold_leases(calls.values()):
        return {name: build(call, Silent()) for name, call in calls.items()}


def all_built(plan: Plan) -> bool:
    """Return whether every stage is in the store and undamaged."""
    calls = plan.calls().values()
    store = ArtifactStore(plan.ingest.runtime.store, plan.ingest.runtime.remote)
    there = {artifact.key: artifact for artifact in store.artifacts()}
    return all(call.key in there and store.fault(there[call.key]) is None for call in calls)


def has_server() -> bool:
    """Return whether there may be a server: `align up` has started one, or Prefect is configured to use one."""
    if "prefect" in sys.modules:
        from prefect.settings import PREFECT_API_URL

        from alignment_flows.serve.services import running_server

        return (PREFECT_API_URL.value() or running_server()) is not None
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    if any(os.environ.get(name) for name in NAMES_A_SERVER) or (home / RECORD).exists():
        return True
    files = [home / "profiles.toml", *map(Path, SETTINGS)]
    return any(API.search(file.read_text(encoding="utf-8", errors="replace")) for file in files if file.is_file())
