"""Ingest raw feedback: read the sources, and write a data set and a report."""

from __future__ import annotations

import gc
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import DataConfig
from alignment_core.data.dataset.kinds import KINDS
from alignment_core.data.ingestion.counts import counted
from alignment_core.data.ingestion.remedies import TOO_LONG, Ratings, remedies
from alignment_core.data.ingestion.report.contents import Outcome, make_report
from alignment_core.data.ingestion.report.page import html_report, markdown_report
from alignment_core.data.ingestion.report.used import used_line
from alignment_core.data.ingestion.selection.select import select
from alignment_core.data.ingestion.shard_cache import BAD, RECORDS, ShardFolder, shard
from alignment_core.data.ingestion.shards import Shards, origin
from alignment_core.data.ingestion.writing import write_split
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.data.sources.formats import NO_PLUGINS, Plugged
from alignment_core.data.sources.inputs import Input, find_inputs
from alignment_core.data.sources.locate import unread_files
from alignment_core.errors import DataError
from alignment_core.progress import Progress
from alignment_core.texts import percent

CHECK_ROWS = (
    "Run `align data check` on the config file to list the bad rows, and fix them or raise data.max_bad_fraction"
)
EXAMPLES = 3
"""Number of quarantined rows per reason that the report shows."""
NAMED = 5
"""Number of files that are not read which the report names."""


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
    pages: bool = True,
) -> dict[str, Any]:
    """Read, convert, deduplicate, split and write all sources.

    Args:
        data: the sources, and how to read them.
        renderer: tokenizes the records.
        out: existing folder for the output: `train/`, `held_out/`, `report.json`, `quarantine.jsonl`, and the pages.
        progress: receives steps, log lines and warnings.
        store: caches each file's shard, so that a later ingestion reads only the files that changed. None: no cache.
        identity: identifies the renderer, as plain JSON. Required with a store.
        unit: name of the renderer's tokens in the report.
        plugged: record formats of plugins, in addition to the built-in ones.
        strict: raise an error if too many or all rows cannot be used. False: only report them.
        pages: write `report.md` and `report.html`.

    Returns:
        The report, as in `report.json`.

    Raises:
        DataError: a source is missing, or (if strict) no row can be used, or more than `max_bad_fraction` are bad.
    """
    scratch = out / ".scratch"
    scratch.mkdir()
    try:
        with ExitStack() as held:
            held.enter_context(_libraries_frozen())
            files = find_inputs(data.sources, plugged, strict=strict)
            folders: list[ShardFolder] = []
            limits = _Limits(data, files)
            for done, item in enumerate(files):
                progress.step(done, len(files))
                limit = limits.next()
                if limit == 0:
                    continue
                shard_of = shard(item, renderer, identity or {}, store, scratch, progress, plugged, limit)
                folder = held.enter_context(shard_of)
                stats = folder.stats()
                limits.used(stats["records"])
                progress.log(f"{item.name}: {counted(stats['rows'], 'row')}, format {stats['format']} ({stats['why']})")
                folders.append(folder)
            progress.step(len(files), len(files))
            # Without a model, the renderer has no controls at all.
            controls = renderer.warnings if unit == "tokens" else ()
            warnings = [*controls, *_of_what_is_not_read(files), *_of_limits(folders)]
            report = _merge(data, renderer, folders, out, scratch, unit, strict, warnings)
            for warning in report["warnings"]:
                progress.warn(warning)
            progress.log(used_line(report["used"]))
            if pages:
                _write_pages(report, out)
            return report
    finally:
        shutil.rmtree(scratch)


@contextmanager
def _libraries_frozen() -> Iterator[None]:
    """Keep the garbage collector from looking at all loaded libraries again and again while rows are read.

    Objects that are frozen already, as in a forked stage, stay so.
    """
    thaw = gc.get_freeze_count() == 0
    gc.freeze()
    try:
        yield
    finally:
        if thaw:
            gc.unfreeze()


class _Limits:
    """The number of records to read from each input. `max_records` is shared equally, and so is what is left over."""

    def __init__(self, data: DataConfig, inputs: Sequence[Input]) -> None:
        self._sources = [item.index for item in inputs]
        self._total = data.max_records
        self._left = {index: source.max_records for index, source in enumerate(data.sources)}

    def next(self) -> int | None:
        """Return the limit of the next input. None: there is none. 0: leave the input out."""
        own = self._left[self._sources[0]]
        shares = (_share(self._total, len(self._sources)), _share(own, self._sources.count(self._sources[0])))
        limit = min((share for share in shares if share is not None), default=None)
        if limit == 0:
            self.used(0)
        return limit

    def used(self, records: int) -> None:
        """Take the records of the input off what is left."""
        source = self._sources.pop(0)
        self._total = None if self._total is None else self._total - records
        own = self._left[source]
        self._left[source] = None if own is None else own - records


def _share(left: int | None, inputs: int) -> int | None:
    return None if left is None else -(-left // inputs)


def _merge(
    data: DataConfig,
    renderer: Renderer,
    folders: Sequence[ShardFolder],
    out: Path,
    scratch: Path,
    unit: str,
    strict: bool,
    warnings: Sequence[str],
) -> dict[str, Any]:
    shards = Shards([folder.path / RECORDS for folder in folders], [folder.input.names for folder in folders], scratch)
    _check_kept(data, folders)
    quarantined, examples, thresholds = _quarantine(data, folders, shards, out)
    if strict:
        _check(data, folders, quarantined, examples, thresholds, shards)
    weights = np.array([folder.input.source.weight for folder in folders])
    train, held_out, counts = select(shards, weights, data.held_out_fraction, data.near_duplicates, scratch)
    chosen = {"train": train, "held_out": held_out}
    written = {
        "train": write_split(out / "train", shards, train, renderer.max_length, weights),
        "held_out": write_split(out / "held_out", shards, held_out, renderer.max_length),
    }
    outcome = Outcome(folders, shards, counts, quarantined, examples, thresholds, chosen, written, warnings)
    text = json.dumps(make_report(outcome, renderer, unit), ensure_ascii=False)
    report: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
    (out / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    return report


def _of_what_is_not_read(inputs: Sequence[Input]) -> Iterator[str]:
    for item in {item.index: item for item in inputs}.values():
        source = item.source
        if item.other_splits:
            yield f"Of {source.path}, only the split {source.split} is read, not {', '.join(item.other_splits)}"
        if unread := unread_files(source):
            more = f" and {len(unread) - NAMED} more" if len(unread) > NAMED else ""
            yield f"Of {source.path}, files of other types are not read: {', '.join(unread[:NAMED])}{more}"


def _of_limits(folders: Sequence[ShardFolder]) -> Iterator[str]:
    cut = [folder for folder in folders if folder.stats()["cut"]]
    if cut:
        records = sum(folder.stats()["records"] for folder in cut)
        yield f"Stopped after {records} records of {', '.join(folder.input.name for folder in cut)} (max_records)"


def _write_pages(report: Mapping[str, Any], out: Path) -> None:
    (out / "report.html").write_text(html_report(report), encoding="utf-8")
    (out / "report.md").write_text(markdown_report(report), encoding="utf-8")


def _quarantine(
    data: DataConfig, folders: Sequence[ShardFolder], shards: Shards, out: Path
) -> tuple[Counter[str], dict[str, list[dict[str, str]]], list[float | None]]:
    """Write the rows that cannot be used to `quarantine.jsonl`.

    Returns:
        Counts and a few examples by reason, and for each source the threshold that its ratings need and lack.
    """
    counts: Counter[str] = Counter()
    ratings = [Ratings() for _ in data.sources]
    examples: dict[str, list[dict[str, str]]] = defaultdict(list)
    with (out / "quarantine.jsonl").open("w", encoding="utf-8") as target:
        for source, row in _quarantined_rows(folders, shards):
            counts[row["reason"]] += 1
            if row["reason"] == "no_threshold" and source is not None:
                ratings[source].add(row["detail"])
            if len(examples[row["reason"]]) < EXAMPLES:
                examples[row["reason"]].append({"origin": row["origin"], "detail": row["detail"]})
            text = json.dumps(row, ensure_ascii=False) + "\n"
            target.write(text.encode("utf-8", "backslashreplace").decode())  # lone surrogates are escaped
    return counts, dict(examples), [each.threshold() for each in ratings]


def _quarantined_rows(folders: Sequence[ShardFolder], shards: Shards) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """Yield the rows that could not be read with their source, then the records that could not be tokenized."""
    for folder in folders:
        with (folder.path / BAD).open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                place, number = row["origin"]
                yield folder.input.index, {**row, "origin": origin(folder.input.names[place], number)}
    for index in shards.unfit():
        row = {
            "origin": shards.origin(index),
            "reason": shards.value(index, "reason"),
            "detail": shards.value(index, "detail"),
            "row": _as_standard(shards, index),
        }
        yield None, row


def _as_standard(shards: Shards, index: int) -> dict[str, Any]:
    """Return a record in a format that can be ingested again."""
    prompt, first, second = (
        json.loads(shards.value(index, f"{name}_text") or "[]") for name in ("prompt", "first", "second")
    )
    kind = KINDS[int(shards.numbers["kind"][index])]
    if kind == "preferences":
        return {"prompt": prompt, "chosen": first, "rejected": second}
    if kind == "feedback":
        return {"prompt": prompt, "completion": first, "label": bool(shards.numbers["sign"][index] > 0)}
    return {"messages": [*prompt, *first]} if first else {"prompt": prompt}


def _check_kept(data: DataConfig, folders: Sequence[ShardFolder]) -> None:
    for index, source in enumerate(data.sources):
        stats = [folder.stats() for folder in folders if folder.input.index == index]
        if missing := [name for name in source.keep if stats and not any(name in item["kept"] for item in stats)]:
            columns = sorted({column for item in stats for column in item["columns"]})
            raise DataError(
                "no row has a column that should be kept",
                where=f"data.sources.{index}.keep",
                got=", ".join(missing),
                expected=f"columns of {source.path}: {', '.join(columns)}",
            )


def _check(
    data: DataConfig,
    folders: Sequence[ShardFolder],
    quarantined: Counter[str],
    examples: Mapping[str, list[dict[str, str]]],
    thresholds: Sequence[float | None],
    shards: Shards,
) -> None:
    rows = sum(folder.stats()["rows"] for folder in folders)
    where = ", ".join(dict.fromkeys(source.path for source in data.sources))
    # Rows that are too long are not bad: the limit is a setting.
    bad = sum(count for reason, count in quarantined.items() if reason not in TOO_LONG)
    dropped: Counter[str] = Counter()
    for folder in folders:
        dropped.update(folder.stats()["dropped"])
    reasons = ", ".join(f"{reason} {count}" for reason, count in (quarantined + dropped).most_common())
    first = next((f", for example {found[0]['origin']}: {found[0]['detail']}" for found in examples.values()), "")
    if bad > data.max_bad_fraction * rows:
        raise DataError(
            "too many rows cannot be used",
            where=where,
            got=f"{bad} of {counted(rows, 'row')} ({reasons}{first})",
            expected=f"at most {percent(data.max_bad_fraction)}",
            do="; or: ".join((*remedies(quarantined, thresholds), CHECK_ROWS)),
        )
    if not shards.numbers["fits"].any():
        raise DataError(
            "no row can be used",
            where=where,
            got=counted(rows, "row") + (f" ({reasons}{first})" if reasons else ""),
            do="; or: ".join(remedies(quarantined, thresholds))
            or "Run `align data check` on the config file to see why",
        )
