"""Compute what many retrains, much feedback and many cards need, from what was measured. Nothing is measured here.

    python benchmarks/scaling.py [--out benchmarks/results/scaling.json]

The growth per row, vote, artifact and run is from the results of `ingest_memory.py`, `load.py`, `retrain_growth.py`,
`prefect_overhead.py` and `submits.py`. How long a retrain takes depends on model, card and data: here the reader
chooses it. The waiting for cards is simulated: retrains come at random or all at one time of the night, take a
random time around the chosen one, and get the next free card in the order in which they came.

`docs/concepts/scaling.md` says what follows from it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from report import report

RESULTS = Path(__file__).parent / "results"
DAY = 86400.0
RETRAINS, CARDS = 1000, 50
MINUTES = (10, 30, 60, 120)
"""Time that a retrain holds a card, on average."""
DAYS, WARM_UP = 15, 3
"""Simulated days, and how many of the first are not counted."""
VARIATION = 0.5
"""Standard deviation of that time, as a share of it."""
PATIENCE = 3600.0
"""Longest wait in seconds for 95 % of the retrains, when cards are counted."""
TOKENS, TOKENS_PER_PAIR = 1e9, 500
"""Tokens of feedback, and of a pair: an assumption."""
ROWS = (1e6, 1e8)
EVENT_DAYS = 7
"""How long Prefect keeps events by default (`server.events.retention_period`). It keeps runs and logs for ever."""
HEARTBEATS_PER_MINUTE = 2
"""Events that a running flow sends besides those that were measured, from `align up` and workers."""
LORA_RANK = 16
PASSES = 6
"""Operations per weight and token: forward, the same again to recompute, and backward without the frozen weights."""
TERAFLOPS, USED = {"RTX 4090": 165, "H100": 989}, 0.3
"""Dense bf16 by the data sheets, and the share of it that training reaches: an assumption."""


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


# --- cards --------------------------------------------------------------------------------------------------------


def arrivals(rng: random.Random, per_day: float, days: int, *, nightly: bool) -> Iterator[float]:
    """Yield the times at which retrains come: at random, or all at midnight."""
    if nightly:
        yield from (day * DAY for day in range(days) for _ in range(round(per_day)))
        return
    now = rng.expovariate(per_day / DAY)
    while now < days * DAY:
        yield now
        now += rng.expovariate(per_day / DAY)


def service(rng: random.Random, seconds: float, variation: float) -> float:
    """Return a random time with this mean, log-normal."""
    spread = math.sqrt(math.log1p(variation**2))
    return seconds * rng.lognormvariate(-(spread**2) / 2, spread)


def waits(
    cards: int, seconds: float, per_day: float, *, nightly: bool = False, variation: float = VARIATION, days: int = DAYS
) -> list[float]:
    """Return how long each retrain waited for a card, in seconds, after the warm-up."""
    rng = random.Random(0)
    free = [0.0] * cards
    found = []
    for come in arrivals(rng, per_day, days, nightly=nightly):
        start = max(come, heapq.heappop(free))
        heapq.heappush(free, start + service(rng, seconds, variation))
        if come >= WARM_UP * DAY:
            found.append(start - come)
    return found


def share(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]


def cards_needed(minutes: float, *, nightly: bool) -> int:
    """Return the fewest cards with which 95 % of the retrains wait no longer than `PATIENCE`."""

    def enough(cards: int) -> bool:
        return share(waits(cards, 60 * minutes, RETRAINS, nightly=nightly), 0.95) <= PATIENCE

    few = math.ceil(RETRAINS * minutes / 1440)
    return bisect_left(range(RETRAINS), True, lo=few, key=enough)


def of_cards() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for minutes in MINUTES:
        busy = RETRAINS * minutes / 1440
        random_50 = waits(CARDS, 60 * minutes, RETRAINS) if busy < CARDS else None
        found[f"{minutes} minutes"] = {
            "cards busy": round(busy, 1),
            "cards, at random": cards_needed(minutes, nightly=False),
            "cards, all at midnight": cards_needed(minutes, nightly=True),
            "most retrains a day on 50 cards": int(CARDS * 1440 / minutes),
            "on 50 cards, at random: minutes waited by 95 %": None
            if random_50 is None
            else round(share(random_50, 0.95) / 60, 1),
            "on 50 cards, all at midnight: hours until the last starts": None
            if random_50 is None
            else round(max(waits(CARDS, 60 * minutes, RETRAINS, nightly=True)) / 3600, 1),
        }
    return found


def of_training() -> dict[str, Any]:
    """Return the days that one card needs for a billion tokens, once. Assumed, not measured."""
    return {
        f"{size}B, days on one {card}": round(PASSES * size * 1e9 * TOKENS / (speed * 1e12 * USED) / DAY, 1)
        for size in (8, 70)
        for card, speed in TERAFLOPS.items()
    }


# --- data, votes, store, database ---------------------------------------------------------------------------------


def of_ingestion() -> dict[str, Any]:
    """Return the growth of ingestion, from the difference of the two sizes measured, so without its start."""
    small, large = read("ingest_memory.json")["runs"][:2]
    rows = large["rows"] - small["rows"]
    seconds, stored, text = ((large[name] - small[name]) / rows for name in ("seconds", "artifact_bytes", "file_bytes"))
    pairs = TOKENS / TOKENS_PER_PAIR
    return {
        "milliseconds per pair": round(1000 * seconds, 3),
        "bytes per pair, raw": round(text),
        "bytes per pair, as a data set": round(stored),
        "most memory above the start, MB": max(small["resident_mb_above_floor"], large["resident_mb_above_floor"]),
        "a billion tokens": {
            "pairs": round(pairs),
            "hours": round(pairs * seconds / 3600, 1),
            "GB": round(pairs * stored / 1e9, 1),
        },
        **{
            f"{rows / 1e6:.0f} million pairs": {
                "hours": round(rows * seconds / 3600, 1),
                "GB": round(rows * stored / 1e9, 1),
            }
            for rows in ROWS
        },
    }


def of_votes() -> dict[str, Any]:
    """Return the growth of a feedback store. Votes before the newest model are ingested again by every retrain."""
    found = read("load.json")
    few, many = found["200000 votes"]["after"], found["1000000 votes"]["after"]

    def microseconds(command: str) -> float:
        return round((many[command]["cpu_seconds"] - few[command]["cpu_seconds"]) / 0.8, 1)

    ingested = of_ingestion()["milliseconds per pair"] / 1000
    return {
        "processor microseconds per vote, first key": microseconds("first key of the votes"),
        "processor microseconds per vote, `align feedback show`": microseconds("feedback show"),
        "seconds to plan with a million votes, the first time": many["first key of the votes"]["cpu_seconds"],
        "seconds to plan with a million votes, later": many["key of the votes"]["cpu_seconds"],
        "minutes to ingest a million older votes, in every retrain": round(1e6 * ingested / 60, 1),
    }


def lora_bytes(hidden: int, inner: int, key_value: int, layers: int) -> int:
    """Return the size of a float32 adapter on all linear layers of a Llama-like model."""
    shapes = [(hidden, hidden)] * 2 + [(hidden, key_value)] * 2 + [(hidden, inner)] * 3
    return 4 * LORA_RANK * layers * sum(one + other for one, other in shapes)


def nf4_gigabytes(hidden: int, inner: int, key_value: int, layers: int, vocabulary: int) -> float:
    """Return the weights of a Llama-like model: linear layers in 4.127 bits (double quantization), the rest in bf16."""
    linear = layers * (2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * inner)
    return round((linear * 4.127 / 8 + 2 * vocabulary * hidden * 2) / 1e9, 1)


def of_store() -> dict[str, Any]:
    """Return the growth of the store: artifacts, the bytes of adapters, and the time of `align artifacts list`."""
    load, growth = read("load.json"), read("retrain-growth.json")["a retrain"]["store"]
    commands = load["200000 votes"]["after"]
    each = (commands["artifacts list"]["cpu_seconds"] - commands["import"]["cpu_seconds"]) / load["artifacts"]
    adapters = {"8B": lora_bytes(4096, 14336, 1024, 32), "70B": lora_bytes(8192, 28672, 1024, 80)}
    year = 365 * RETRAINS * growth["artifacts"]
    return {
        "artifacts per retrain": growth["artifacts"],
        "artifacts in a year": round(year),
        "microseconds per artifact, `align artifacts list`": round(1e6 * each),
        "seconds of `align artifacts list` after a year": round(each * year),
        "MB per adapter, float32": {name: round(size / 1e6) for name, size in adapters.items()},
        "GB of the weights of 70B in NF4": nf4_gigabytes(8192, 28672, 1024, 80, 128256),
        "TB a day, two adapters per retrain": {
            name: round(2 * RETRAINS * size / 1e12, 2) for name, size in adapters.items()
        },
    }


def of_database() -> dict[str, Any]:
    """Return the growth of Prefect's database, and the processor time of its client."""
    growth, overhead = read("retrain-growth.json"), read("prefect-overhead.json")
    built, cached = (growth[name]["database"] for name in ("a retrain", "a run with nothing to build"))
    own = overhead["with Prefect"]["processor_seconds"] - overhead["without"]["processor_seconds"]
    hour = built["events"] + 60 * HEARTBEATS_PER_MINUTE
    return {
        "per retrain": built,
        "per run with nothing to build": cached,
        "task runs a day": round(RETRAINS * built["task_run"]),
        "events a day, retrains of an hour": round(RETRAINS * hour),
        "events kept, retrains of an hour": round(EVENT_DAYS * RETRAINS * hour),
        "GB a year": round(365 * RETRAINS * built["bytes"] / 1e9, 1),
        "processor hours of the client a day": round(RETRAINS * own / 3600, 2),
        "seconds between retrains": round(DAY / RETRAINS),
        "seconds of a submit, median": read("submits.json")["submits"]["seconds_median"],
    }


def computed() -> dict[str, Any]:
    """Return everything that the page says."""
    return {
        "what": "computed from the other results in this folder",
        "retrains a day": RETRAINS,
        "cards": of_cards(),
        "training on a billion tokens, assumed": of_training(),
        "ingestion": of_ingestion(),
        "votes": of_votes(),
        "store": of_store(),
        "database": of_database(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    report(computed(), parser.parse_args().out)


if __name__ == "__main__":
    main()
