"""Run a stage in this process, and measure what it took."""

from __future__ import annotations

import importlib
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.execution.stage import ON_ONE_CARD, Job, load_stage


@dataclass(frozen=True)
class Finished:
    """What a stage gave that has filled its folder.

    Attributes:
        version: version of the stage.
        metrics: its metrics.
        peak_memory: peak resident memory of its process in bytes.
        peak_device_memory: peak of what PyTorch reserved on its card in bytes; None if it used none.
        outside_device_memory: what is used there outside of PyTorch.
    """

    version: int
    metrics: dict[str, Any]
    peak_memory: int
    peak_device_memory: int | None
    outside_device_memory: int | None


def finish(job: Job) -> Finished:
    """Run the stage of a job: in this process, or in one process per card if the settings ask for several.

    Raises:
        AlignmentError: the error that the stage raised.
        Stopped: the stage was asked to stop.
    """
    if job.call.cards > 1:
        # Loaded here alone, because it imports torch.
        found: Finished = importlib.import_module("alignment_core.execution.rank_launcher").run_on_cards(job)
        return found
    if job.call.runtime.gpus > 1 and job.call.stage in ON_ONE_CARD:
        job.progress.log("this stage runs on one card: several cannot share it")
    return finish_here(job)


def finish_here(job: Job) -> Finished:
    """Run the stage of a job in this process."""
    stage = load_stage(job.call.stage)
    metrics = stage.run(job)
    reserved, outside = device_memory(job.call.runtime.device) or (None, None)
    return Finished(stage.version, metrics, peak_memory(), reserved, outside)


def peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    # On Linux, ru_maxrss includes the memory of the parent that the process was forked from. VmHWM does not.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_memory(device: str) -> tuple[int, int] | None:
    """Return how much memory a stage took on its CUDA device, in bytes.

    Args:
        device: the device of the stage, as in the settings. One without a number is the current device.

    Returns:
        The peak of what PyTorch reserved, holes between tensors included, and what is used outside of it now: the CUDA
        context with its libraries, and other programs. Together, this is what `nvidia-smi` shows at the peak. None if
        CUDA was not used.
    """
    torch = sys.modules.get("torch")
    if torch is None or device == "cpu" or not torch.cuda.is_initialized():
        return None
    card = torch.device("cuda" if device == "auto" else device)
    free, total = torch.cuda.mem_get_info(card)
    return torch.cuda.max_memory_reserved(card), total - free - torch.cuda.memory_reserved(card)
