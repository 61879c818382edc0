"""Remember forecasts on disk for a day, so that the next plan of the same run needs neither torch nor the model.

    <the user's cache folder>/forecasts/<digest of the question>.json

The question names everything that a forecast follows from, except the free memory: the plan with its keys, the code,
the installed packages, the environment and the machine. A forecast counts again only if today's free memory leads to
the same memory settings. Those of a GPU of this machine are not remembered: its free memory is known to torch alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignment_core.artifacts.digest import cache_folder
from alignment_core.execution.stage import Runtime
from alignment_core.forecast.predictions import Forecast, Prediction
from alignment_core.processes.fork_client import digest_of
from alignment_core.processes.free_memory import free_on_cpu, share_of
from alignment_core.processes.imports import installed_packages
from alignment_core.processes.start import environment
from alignment_core.ranks.cards import visible_cards

REMEMBERED_SECONDS = 24 * 3600.0
"""The speed of a machine is measured anew after this time."""
PACKAGE = Path(__file__).parents[1]
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Question:
    """What a forecast answers.

    Args:
        request: the request to `forecast.process`.
        runtime: how the stages of the plan run.
    """

    def __init__(self, request: Mapping[str, Any], runtime: Runtime) -> None:
        self._card, self._runtime = request["card"], runtime
        asked = {"request": request, "code": _code(), "environment": digest_of(environment()), "machine": _machine()}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        self._place = cache_folder() / "forecasts" / f"{digest}.json"

    def recall(self) -> Forecast | None:
        """Return the remembered forecast with today's free memory. None: there is none that still holds."""
        try:
            found = Forecast.model_validate_json(self._place.read_bytes())
        except (OSError, ValueError):  # there is none, or it is damaged
            return None
        if not 0 <= time.time() - found.made < REMEMBERED_SECONDS:
            return None
        if self._card is not None:
            return found
        stages = {name: self._today(stage) for name, stage in found.stages.items()}
        if any(not _same_choice(found.stages[name], today) for name, today in stages.items()):
            return None
        return found.model_copy(update={"stages": stages})

    def remember(self, forecast: Forecast) -> None:
        """Write the forecast to disk, and remove those that have become too old."""
        if not (forecast.on_cpu or self._card is not None):
            return
        with suppress(OSError):  # a read-only home or a full disk: the next plan predicts again
            folder = self._place.parent
            folder.mkdir(parents=True, exist_ok=True)
            for file in folder.iterdir():
                if time.time() - file.stat().st_mtime > REMEMBERED_SECONDS:
                    file.unlink(missing_ok=True)
            new = self._place.with_suffix(f".{os.getpid()}")
            new.write_text(forecast.model_dump_json())
            new.replace(self._place)

    def _today(self, stage: Prediction) -> Prediction:
        limit, own = self._runtime.memory_gb, stage.memory["process"]
        # As in the process that predicts: what it takes itself is in use while it looks, and belongs to the stage.
        available = share_of(free_on_cpu(self._runtime.gpus) - own, limit)
        return stage.model_copy(update={"available": available if limit is not None else available + own})


def _same_choice(then: Prediction, today: Prediction) -> bool:
    """Return whether the memory settings of `then` are those that a stage gets with today's memory.

    They are the first of the candidates that fits. With less memory, no earlier one fits either. With more, an earlier
    one may, unless there is none.
    """
    return today.fits and (then.ample or today.available <= then.available)


def _code() -> list[Any]:
    """Return what identifies the code. The keys of the plan identify the plugins that are not in these packages."""
    files = sorted(PACKAGE.rglob("*.py"))
    ours = [(str(file), (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
    return [sys.version, ours, installed_packages()]


def _machine() -> list[Any]:
    """Return what identifies the machine, since its last start."""
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [platform.node(), platform.machine(), boot, affinity, visible_cards()]
