"""Raw feedback in, a data set and a report out."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import DataConfig
from alignment_core.data.formats import NO_PLUGINS, Plugged
from alignment_core.data.inputs import find_inputs
from alignment_core.data.parts import KINDS
from alignment_core.data.rendering import Renderer
from alignment_core.data.report import TOO_LONG, Outcome, make_report
from alignment_core.data.report_page import draw_lengths, page
from alignment_core.data.selection import select
from alignment_core.data.sharding import BAD, RECORDS, ShardFolder, shard
from alignment_core.data.shards import Shards, origin
from alignment_core.data.writing import write_split
from alignment_core.errors import DataError
from alignment_core.progress import Progress

EXAMPLES = 3
"""Quarantined rows of each reason that the report shows."""


def ingest(
    data: DataConfig,
    renderer: Renderer,
    out: Path,
    progress: Progress,
    *,
    store: ArtifactStore | None = None,
    identity: Mapping[str, Any] | None = None,
    unit: str = "tokens",
    plugged: Plugged = NO_PLUGINS,
    strict: bool = True,
) -> dict[str, Any]:
    """Read, convert, de-duplicate, split and write all sources.

    Args:
        data: what to read, and how.
        renderer: makes the tokens.
        out: folder to fill: `train/`, `held_out/`, `report.json`, `.md`, `.html`, `quarantine.jsonl`.
        progress: where to report.
        store: where each file's shard is kept, so that a later ingestion reads only what changed.
        identity: what identifies the renderer, as plain JSON; needed with a store.
        unit: what the report calls the renderer's tokens.
        plugged: record formats that plugins bring, beside ours.
        strict: rows that cannot be used are an error where they are too many or all; else they are only reported.

    Returns:
        The report, as in `report.json`.

    Raises:
        DataError: a source is not there, or (strict) more than `max_bad_fraction` of the rows cannot be used, or none.
    """
    scratch = out / ".scratch"
    scratch.mkdir()
    try:
        with ExitStack() as held:
            files = find_inputs(data.sources, plugged, strict=strict)
            folders = []
            for done, item in enumerate(files):
                progress.step(done, len(files))
                folder = held.enter_context(shard(item, renderer, identity or {}, store, scratch, progress, plugged))
                stats = folder.stats()
                progress.log(f"{item.name}: {stats['rows']} rows, {stats['format']} ({stats['why']})")
                folders.append(folder)
            progress.step(len(files), len(files))
            report = _merge(data, renderer, folders, out, scratch, unit, strict)
            for warning in report["warnings"]:
                progress.warn(warning)
            return report
    finally:
        shutil.rmtree(scratch)


def _merge(
    data: DataConfig,
    renderer: Renderer,
    folders: Sequence[ShardFolder],
    out: Path,
    scratch: Path,
    unit: str,
    strict: bool,
) -> dict[str, Any]:
    shards = Shards([folder.path / RECORDS for folder in folders], [folder.input.names for folder in folders], scratch)
    quarantined, examples = _quarantine(folders, shards, out)
    if strict:
        _check(data, folders, quarantined, examples, shards)
    weights = np.array([folder.input.source.weight for folder in folders])
    train, held_out, facts = select(shards, weights, data.held_out_fraction, data.near_duplicates, scratch)
    chosen = {"train": train, "held_out": held_out}
    written = {
        "train": write_split(out / "train", shards, train, renderer.max_length, weights),
        "held_out": write_split(out / "held_out", shards, held_out, renderer.max_length),
    }
    outcome = Outcome(folders, shards, facts, quarantined, examples, chosen, written)
    text = json.dumps(make_report(outcome, renderer, unit), ensure_ascii=False)
    report: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
    (out / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    picture = draw_lengths(report["lengths"])
    (out / "report.html").write_text(page(report, "html", picture), encoding="utf-8")
    (out / "report.md").write_text(page(report, "markdown", picture), encoding="utf-8")
    return report


def _quarantine(
    folders: Sequence[ShardFolder], shards: Shards, out: Path
) -> tuple[Counter[str], dict[str, list[dict[str, str]]]]:
    """Gather what could not be used in `quarantine.jsonl`; counts and a few examples by reason."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = defaultdict(list)
    with (out / "quarantine.jsonl").open("w", encoding="utf-8") as target:
        for row in _quarantined_rows(folders, shards):
            counts[row["reason"]] += 1
            if len(examples[row["reason"]]) < EXAMPLES:
                examples[row["reason"]].append({"origin": row["origin"], "detail": row["detail"]})
            text = json.dumps(row, ensure_ascii=False) + "\n"
            target.write(text.encode("utf-8", "backslashreplace").decode())  # a lone surrogate becomes its escape
    return counts, dict(examples)


def _quarantined_rows(folders: Sequence[ShardFolder], shards: Shards) -> Iterator[dict[str, Any]]:
    """What could not be read, and then what could not become tokens."""
    for folder in folders:
        with (folder.path / BAD).open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                place, number = row["origin"]
                yield {**row, "origin": origin(folder.input.names[place], number)}
    for index in shards.unfit():
        yield {
            "origin": shards.origin(index),
            "reason": shards.value(index, "reason"),
            "detail": shards.value(index, "detail"),
            "row": _as_standard(shards, index),
        }


def _as_standard(shards: Shards, index: int) -> dict[str, Any]:
    """A record in a shape that can be handed in again."""
    prompt, first, second = (
        json.loads(shards.value(index, f"{name}_text") or "[]") for name in ("prompt", "first", "second")
    )
    kind = KINDS[int(shards.numbers["kind"][index])]
    if kind == "preferences":
        return {"prompt": prompt, "chosen": first, "rejected": second}
    if kind == "feedback":
        return {"prompt": prompt, "completion": first, "label": bool(shards.numbers["sign"][index] > 0)}
    return {"messages": [*prompt, *first]} if first else {"prompt": prompt}


def _check(
    data: DataConfig,
    folders: Sequence[ShardFolder],
    quarantined: Counter[str],
    examples: Mapping[str, list[dict[str, str]]],
    shards: Shards,
) -> None:
    rows = sum(folder.stats()["rows"] for folder in folders)
    where = ", ".join(dict.fromkeys(source.path for source in data.sources))
    bad = sum(count for reason, count in quarantined.items() if reason not in TOO_LONG)  # the settings' fault
    dropped: Counter[str] = Counter()
    for folder in folders:
        dropped.update(folder.stats()["dropped"])
    reasons = ", ".join(f"{reason} {count}" for reason, count in (quarantined + dropped).most_common())
    first = next((f"; {found[0]['origin']}: {found[0]['detail']}" for found in examples.values()), "")
    if bad > data.max_bad_fraction * rows:
        raise DataError(
            "too many rows cannot be used",
            where=where,
            got=f"{bad} of {rows} ({reasons}{first})",
            expected=f"at most {data.max_bad_fraction:.0%}",
            do="Run `align data check` on it to see them, mend them, or raise data.max_bad_fraction",
        )
    if not shards.numbers["fits"].any():
        raise DataError(
            "no row can be used",
            where=where,
            got=f"{rows} rows" + (f" ({reasons}{first})" if reasons else ""),
            do="Raise model.max_length" if TOO_LONG & set(quarantined) else "Run `align data check` on it",
        )
