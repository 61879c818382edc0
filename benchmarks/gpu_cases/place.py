"""The device of a case, the memory cap that makes it stand for a smaller card, and its memory counters."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Peaks:
    """Peak memory in bytes. On a CPU, `allocated` is the peak resident size of the process, and the rest is None."""

    allocated: int
    reserved: int | None = None
    context: int | None = None


class Place:
    """The first CUDA device, or the CPU if there is none.

    Attributes:
        device: the torch device.
        context: bytes that the driver holds for this process beside the tensors; 0 on a CPU.
    """

    def __init__(self) -> None:
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.context = 0
        if self.is_card:
            # cuBLAS allocates its workspace at the first product.
            torch.ones(64, 64, device=self.device) @ torch.ones(64, 64, device=self.device)
            torch.cuda.synchronize()
            free, total = torch.cuda.mem_get_info()
            self.context = total - free - torch.cuda.memory_reserved()

    @property
    def is_card(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.is_card else "cpu"

    def cap(self, gib: int) -> None:
        """Make the card stand for one with this memory: allocations beyond it fail, and the rest is not shown as free.

        Raises:
            ValueError: the card is smaller.
        """
        size = gib * 2**30
        total = torch.cuda.mem_get_info()[1]
        # A card that is sold with 24 GB may show a little less.
        if size > 1.03 * total:
            raise ValueError(f"the card has {total / 2**30:.1f} GiB, the case needs {gib}")
        size = min(size, total)
        torch.cuda.set_per_process_memory_fraction((size - self.context) / total)
        measured = torch.cuda.mem_get_info

        def as_smaller(device: object = None) -> tuple[int, int]:
            free, whole = measured()
            return max(0, size - (whole - free)), size

        torch.cuda.mem_get_info = as_smaller

    def reset_peaks(self) -> None:
        if self.is_card:
            torch.cuda.reset_peak_memory_stats()

    def peaks(self) -> Peaks:
        if self.is_card:
            return Peaks(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), self.context)
        return Peaks(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
