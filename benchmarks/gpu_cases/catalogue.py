"""All cases, ordered by worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

TASKS = ("ppo", "dpo", "sft", "reward", "kto")
CAPS = {
    "8B": (24, 16, 12), "1.5B": (8, 12), "3B": (12, 8), "0.5B": (8,),
}  # fmt: skip
"""Memory caps in GiB under which a size is measured first. All other pairs of sizes and caps follow."""
SIZES, ALL_CAPS = ("8B", "3B", "1.5B", "0.5B"), (24, 16, 12, 8)
PEERS = ("unsloth", "trl")


@dataclass(frozen=True)
class Case:
    """One measurement, in a process of its own.

    Attributes:
        name: its name, unique.
        kind: a function of `run_case.KINDS`.
        arguments: the arguments of that function, beside the place.
        expected: seconds that it probably takes on a fast card. With `--minutes`, it is not started with less left.
        limit: seconds after which its process is killed.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    expected: float = 40.0
    limit: float = 300.0


def cases(tiny: bool) -> list[Case]:
    """Return all cases; with `tiny`, those that run the same code with tiny models, on any device."""
    return [*correctness(tiny), *(tiny_cases() if tiny else full_cases())]


def select(known: list[Case], patterns: list[str]) -> list[Case]:
    """Return the cases whose name matches one of the patterns (`*` stands for anything); all without a pattern.

    Raises:
        ValueError: a pattern matches no case.
    """
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in known):
            raise ValueError(f"no case matches {pattern!r}; `--list` shows all names")
    return [case for case in known if not patterns or any(fnmatchcase(case.name, pattern) for pattern in patterns)]


def correctness(tiny: bool) -> Iterator[Case]:
    """Yield the comparisons with the CPU."""
    for task in TASKS:
        yield Case(f"gradients/{task}", "gradients", {"task": task})
    yield Case("generation", "generation")
    for task in ("sft", "ppo"):
        yield Case(f"resuming/{task}", "resuming", {"task": task})
    size = "tiny" if tiny else "small"
    yield Case(f"out-of-memory/{size}", "out_of_memory", {"size": size})


def tiny_cases() -> Iterator[Case]:
    """Yield a case of every other kind with the tiny models."""
    for task in TASKS:
        yield _training(task, "tiny", None)
    yield _training("dpo", "tiny-tied", None)
    yield from (_kernels(task, "tiny") for task in (*TASKS, "sampling"))
    yield from (_peer(library, task, "tiny", None) for library in PEERS for task in ("dpo", "sft", "kto"))


def full_cases() -> Iterator[Case]:
    """Yield the measurements with the public shapes."""
    first = [(size, cap) for size, caps in CAPS.items() for cap in caps]
    later = [(size, cap) for size in SIZES for cap in ALL_CAPS if (size, cap) not in first]
    yield from (_training(task, "8B", cap) for cap in CAPS["8B"] for task in TASKS)
    for size in ("8B", "1.5B"):
        yield from (_kernels(task, size) for task in ("sft", "dpo", "sampling"))
        yield from (_peer(library, task, size, CAPS[size][0]) for task in ("sft", "dpo") for library in PEERS)
    yield from (_training(task, size, cap) for size, cap in first if size != "8B" for task in TASKS)
    yield from (_kernels(task, "1.5B") for task in ("ppo", "reward", "kto"))
    yield from (_peer("trl", "kto", size, CAPS[size][0]) for size in ("8B", "1.5B"))
    yield from (_training(task, size, cap) for size, cap in later for task in TASKS)


def _training(task: str, size: str, cap: int | None) -> Case:
    name = f"train/{task}/{size}" + ("" if cap is None else f"/{cap}")
    expected = {"8B": 75.0, "3B": 55.0}.get(size, 40.0)
    arguments = {"task": task, "size": size, "cap": cap}
    return Case(name, "train", arguments, expected=expected * (1.6 if task == "ppo" else 1.0), limit=600.0)


def _kernels(task: str, size: str) -> Case:
    if task == "sampling":
        return Case(f"kernels/sampling/{size}", "sampling", {"size": size}, expected=50.0)
    return Case(f"kernels/{task}/{size}", "step", {"task": task, "size": size}, expected=60.0)


def _peer(library: str, task: str, size: str, cap: int | None) -> Case:
    name = f"peer/{library}/{task}/{size}" + ("" if cap is None else f"/{cap}")
    arguments = {"library": library, "task": task, "size": size, "cap": cap}
    return Case(name, "peer", arguments, expected=90.0, limit=600.0)
