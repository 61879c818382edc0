"""Measure large stores: a feedback store of many votes and an artifact store of many artifacts.

    python benchmarks/load.py [--votes 1000 200000 1000000] [--artifacts 3000] [--before FOLDER] [--stores FOLDER]
        [--model FOLDER] [--out results/load.json]

The stores are filled with bulk inserts. Every command runs in a new process, whose processor time and peak memory are
measured, with those of the processes that it starts. `--before` is a checkout of older code to compare with, in the
commands that it had and on stores of up to 200,000 votes. Each code gets its own copy of the stores. With `--stores`,
the filled stores are kept in a folder, and the next run takes them from there.
A third of the votes are rankings of four responses, and one vote in twenty supersedes an earlier one of the same rater.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from report import circumstances, report

from alignment_core.artifacts import ArtifactStore, Manifest, key_of
from alignment_core.feedback import open_feedback
from alignment_core.progress import Silent

ROOT = Path(__file__).resolve().parent.parent
MODEL = Path(os.environ.get("ALIGN_SHARED_DATA", ROOT.parent / "shared" / "data")) / "models" / "stories260k"
RATERS = 50
COMPARED = ("key of the votes", "feedback show", "feedback export", "artifacts list", "artifacts prune --dry-run")
COMPARED_UPTO = 200_000
"""What older code is measured on. With more votes, it takes minutes and gigabytes."""
BATCH = 10_000
KEY = (
    "from alignment_core.feedback.data_source import pin_source, source_key; "
    "from alignment_core.config import SourceConfig; source_key(pin_source(SourceConfig(path={path!r})))"
)
ALIGN = "import sys; sys.argv = ['align', *{arguments!r}]; from alignment_flows.cli.app import main; main()"


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def fill_feedback(place: Path, count: int) -> None:
    """Make a feedback store with `count` votes."""
    open_feedback(str(place)).close()
    drawn = random.Random(0)
    with contextlib.closing(sqlite3.connect(place)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        subjects: list[tuple[str, str, list[str]]] = []
        for number in range(count // 4):
            messages = [{"role": "user", "content": f"Question {number}: {drawn.random()} " + "what is it? " * 12}]
            asked = digest(messages)
            connection.execute("INSERT INTO prompts VALUES (?, ?)", (asked, json.dumps(messages)))
            texts = [f"Answer {place} to {number}. " + "It is so. " * 20 for place in range(4)]
            made = [(digest([asked, text, "m"]), asked, text, "m") for text in texts]
            connection.executemany("INSERT INTO responses VALUES (?, ?, ?, ?)", made)
            ids = [response[0] for response in made]
            task = digest(ids)
            connection.execute(
                "INSERT INTO ranking_tasks VALUES (?, ?, ?, ?)", (number + 1, task, asked, json.dumps(ids))
            )
            subjects += [("ranking", task, ids), *(("thumb", response, []) for response in ids[:2])]
        rows = _votes(drawn, subjects, count)
        columns = "kind, subject, rater, rater_kind, value, comment, time"
        connection.executemany(f"INSERT INTO votes ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def _votes(drawn: random.Random, subjects: list[tuple[str, str, list[str]]], count: int) -> Iterator[tuple[Any, ...]]:
    earlier: list[tuple[str, str, str, list[str]]] = []
    for number in range(count):
        if earlier and number % 20 == 0:
            kind, subject, rater, ids = drawn.choice(earlier)
        else:
            kind, subject, ids = subjects[number % len(subjects)]
            rater = f"rater {drawn.randrange(RATERS)}"
            earlier.append((kind, subject, rater, ids))
        ranks = {name: drawn.randint(1, 4) for name in ids}
        value = {"ranks": ranks} if ranks else {"up": drawn.random() < 0.6}
        yield kind, subject, rater, "human", json.dumps(value), "", float(number)


def fill_artifacts(root: Path, count: int) -> None:
    """Make an artifact store with `count` artifacts."""
    store = ArtifactStore(root)
    for number in range(count):
        config = {"number": number, "settings": {f"setting {place}": place for place in range(40)}}
        key = key_of(stage="sft", version=1, config=config, parents={})
        with store.building("sft", key, Silent()) as building:
            for place in range(8):
                (building.out / f"file-{place}").write_text("x")
            building.publish(Manifest(kind="sft", key=key, version=1, config=config, parents={}))


def measure(code: str, checkout: Path) -> dict[str, float]:
    """Run a program in a new process with the code of a checkout, and return what it took."""
    paths = os.pathsep.join(str(checkout / name) for name in ("", "flows", "plugins", "benchmarks"))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    started = time.monotonic()
    arguments = [sys.executable, "-c", code]
    child = os.posix_spawn(sys.executable, arguments, environment, file_actions=[(os.POSIX_SPAWN_DUP2, nowhere, 1)])
    _, status, usage = os.wait4(child, 0)
    os.close(nowhere)
    if status != 0:
        raise RuntimeError(f"{code} ended with {status}")
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "seconds": round(time.monotonic() - started, 2),
        "peak_mb": round(usage.ru_maxrss / 1024),
    }


def align(*arguments: str | Path) -> str:
    return ALIGN.format(arguments=[str(argument) for argument in arguments])


def plan(feedback: Path, model: Path, out: Path) -> str:
    """Return a program that plans a run of DPO on the votes. Its store is empty, so that every stage is predicted."""
    template = ROOT / "deployments" / "configs" / "stories260k.jinja"
    settings = {
        "model": {"base": str(model), "chat_template": str(template), "load_in": "fp32"},
        "data": {"sources": [{"path": str(feedback)}]},
        "sft": None,
        "optimizer": {"name": "dpo"},
        "store": str(out / "store"),
    }
    (out / "run.yaml").write_text(json.dumps(settings))
    return align("plan", out / "run.yaml")


def programs(feedback: Path, artifacts: Path, model: Path, out: Path) -> Iterator[tuple[str, str]]:
    yield "import", "import alignment_flows.cli.app, alignment_core.feedback.store"
    yield "first key of the votes", KEY.format(path=str(feedback))
    yield "key of the votes", KEY.format(path=str(feedback))
    planned = plan(feedback, model, out)
    yield "first plan", planned
    yield "plan", planned
    yield "feedback show", align("feedback", "show", "--store", feedback)
    yield "feedback export", align("feedback", "export", out / "exported", "--store", feedback)
    yield "artifacts list", align("artifacts", "list", "--store", artifacts)
    yield "artifacts prune --dry-run", align("artifacts", "prune", "--dry-run", "--store", artifacts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--votes", type=int, nargs="+", default=[1000, 200_000, 1_000_000])
    parser.add_argument("--artifacts", type=int, default=3000)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--stores", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {
        "what": "commands on large stores",
        **circumstances("sqlalchemy"),
        "artifacts": arguments.artifacts,
    }
    with tempfile.TemporaryDirectory(prefix="align-load-") as name:
        folder = Path(name)
        stores = arguments.stores or folder
        artifacts = stores / f"{arguments.artifacts} artifacts"
        fill("artifacts", artifacts, arguments.artifacts)
        for count in arguments.votes:
            place = stores / f"{count}.db"
            fill("feedback", place, count)
            found[f"{count} votes"] = {}
            for label, checkout in {"before": arguments.before, "after": ROOT}.items():
                older = label == "before"
                if checkout is None or (older and count > COMPARED_UPTO):
                    continue
                copy = folder / label
                copy.mkdir()
                shutil.copy(place, copy / "votes.db")
                found[f"{count} votes"][label] = {
                    what: measure(code, checkout)
                    for what, code in programs(copy / "votes.db", artifacts, arguments.model, copy)
                    if not older or what in COMPARED
                }
                shutil.rmtree(copy)
    report(found, arguments.out)


def fill(what: str, place: Path, count: int) -> None:
    """Make a store, if it does not exist, in another process: one that this one starts would count its memory."""
    if place.exists():
        return
    new = place.with_name(f"{place.name}.new")
    measure(f"from load import *; fill_{what}(Path({str(new)!r}), {count})", ROOT)
    new.rename(place)


if __name__ == "__main__":
    main()
