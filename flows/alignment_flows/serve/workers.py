"""Which workers `align up` starts: one per work pool, or one per card."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alignment_core.errors import ConfigError
from alignment_core.ranks.cards import visible_cards

POOLS = {"gpu": 1, "cpu": None}
"""Work pools, and how many runs one worker of each takes at once. One GPU cannot hold two runs."""


@dataclass(frozen=True)
class Worker:
    """A worker of a work pool on this machine.

    Attributes:
        name: name of its service.
        pool: its work pool.
        environment: its own environment variables.
    """

    name: str
    pool: str
    environment: Mapping[str, str] = field(default_factory=dict)


def workers_for(cards: Sequence[str]) -> list[Worker]:
    """Return one worker per work pool; of the pool `gpu`, one per card, each of which sees its own card only.

    Args:
        cards: the cards, by their names in CUDA_VISIBLE_DEVICES. Empty: one worker, which sees what this process sees.
    """
    if not cards:
        return [Worker(pool, pool) for pool in POOLS]
    each = [Worker(f"gpu-{card}", "gpu", {"CUDA_VISIBLE_DEVICES": card}) for card in cards]
    return [*each, *(Worker(pool, pool) for pool in POOLS if pool != "gpu")]


def cards_for_workers() -> list[str]:
    """Return the cards that get a worker of their own, by their names in CUDA_VISIBLE_DEVICES.

    Raises:
        ConfigError: there are none.
    """
    cards = visible_cards()
    if not cards:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise ConfigError(
            "this machine has no card that CUDA can use",
            where="--gpus",
            got="no NVIDIA driver, or no card" if chosen is None else f"CUDA_VISIBLE_DEVICES={chosen}",
            do="Install the driver, or start without `--gpus`",
        )
    return cards
