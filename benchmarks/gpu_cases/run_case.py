"""Run one case in this process, which `driver.py` starts, and write its result as JSON.

    python -m gpu_cases.run_case CASE RESULT
    python -m gpu_cases.run_case --probe RESULT

CASE is a case as JSON. With `--probe`, the result says which device and packages there are.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from gpu_cases.needs import missing_packages, register_plugins, versions


def main() -> None:
    asked, result = sys.argv[1], Path(sys.argv[2])
    die_with(int(os.environ["GPU_CASES_PARENT"]))
    found = probe() if asked == "--probe" else run(json.loads(asked))
    result.write_text(json.dumps(found))


def die_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies, even if it hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit("the parent process has ended")


def probe() -> dict[str, Any]:
    """Return the device, the packages that are missing, and the versions of the others."""
    found: dict[str, Any] = {"device": None, "torch": None, "missing": missing_packages(), "versions": versions()}
    if "torch" in found["missing"]:
        return found
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return found | {"device": device, "torch": torch.__version__}


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Run a case and return its line, also if it raises."""
    if case["arguments"].get("library") == "unsloth":
        with suppress(Exception):  # the case says why
            import_module("unsloth")  # before transformers and peft, which it changes
    import torch

    from gpu_cases.place import Place
    from gpu_cases.result import Result, Skipped

    place = Place()
    about = {
        "case": case["name"],
        "device": place.name,
        "torch": torch.__version__,
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    outcome: dict[str, Any]
    with tempfile.TemporaryDirectory() as folder:
        register_plugins(Path(folder))
        try:
            outcome = kinds()[case["kind"]](place, **case["arguments"]).to_json()
        except Skipped as reason:
            outcome = {**Result(error=f"skipped: {reason}").to_json(), "ok": None}
        except Exception as error:
            traceback.print_exc()
            outcome = Result(False, error=f"{type(error).__name__}: {error}").to_json()
    return about | outcome


def kinds() -> dict[str, Callable[..., Any]]:
    """Return the function of each kind of case."""
    from gpu_cases.kinds import correctness, kernels, training
    from gpu_cases.kinds.peers import peer_case

    return {
        "gradients": correctness.gradients,
        "generation": correctness.generation,
        "resuming": correctness.resuming,
        "out_of_memory": correctness.out_of_memory,
        "train": training.train_case,
        "step": kernels.step_case,
        "sampling": kernels.sampling_case,
        "peer": peer_case,
    }


if __name__ == "__main__":
    main()
