"""Read source files into shards, the part of ingestion that is cached between runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from alignment_core.artifacts import ArtifactStore, Manifest, key_of
from alignment_core.data.ingestion.kept_columns import Kept
from alignment_core.data.ingestion.shards import ShardWriter
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.data.sources.formats import NO_PLUGINS, SAMPLE, UNREAD, Detection, Plugged
from alignment_core.data.sources.identity import UNIDENTIFYING
from alignment_core.data.sources.inputs import Input, detect_first, unwrap_quarantined
from alignment_core.data.sources.readers import RawRow, Unreadable
from alignment_core.data.sources.reading import outcomes_of
from alignment_core.progress import Progress, Stopped
from alignment_core.records.format import Dropped, Outcome, Quarantined, Reading, RecordFormat, Unread, is_kept

VERSION = 10
"""Increment it when the same files and settings give a different shard."""
EXAMPLE = 80
"""Characters of a column's value that the report shows."""
RECORDS, BAD, STATS = "records.arrow", "quarantine.jsonl", "stats.json"


@dataclass(frozen=True)
class ShardFolder:
    """A finished shard: `records.arrow`, `quarantine.jsonl` and `stats.json` in one folder."""

    input: Input
    path: Path
    reused: bool

    def stats(self) -> dict[str, Any]:
        """Return `format`, `why` it was detected, `rows` and `records` read, whether the limit `cut` it, and counts.

        `kept` counts the rows that have each column of `data.sources[].keep`. `columns` lists the columns there are.
        The counts are `dropped` and `quarantined` by reason, `ignored` by column, and `left_out` (turns) and `thoughts`
        by what happened to them.
        """
        result: dict[str, Any] = json.loads((self.path / STATS).read_text(encoding="utf-8"))
        return result


@contextmanager
def shard(
    item: Input,
    renderer: Renderer,
    identity: Mapping[str, Any],
    store: ArtifactStore | None,
    scratch: Path,
    progress: Progress,
    plugged: Plugged = NO_PLUGINS,
    limit: int | None = None,
) -> Iterator[ShardFolder]:
    """Provide the shard of an input. It is taken from the store if it is cached there, otherwise it is built.

    Args:
        item: the input.
        renderer: tokenizes the records.
        identity: identifies the renderer, as plain JSON.
        store: caches shards. None: the shard is built in `scratch`.
        scratch: a folder for temporary files.
        progress: can request a stop, and is passed to the store.
        plugged: record formats of plugins, in addition to the built-in ones.
        limit: stop after this many records. None: read all.
    """
    if store is None:
        folder = scratch / f"shard-{len(list(scratch.iterdir()))}"
        folder.mkdir()
        _make(item, renderer, folder, progress, plugged, limit)
        yield ShardFolder(item, folder, reused=False)
        return
    config: dict[str, Any] = {
        "content": item.content,
        "containers": [file.container for file in item.files],
        "source": item.source.model_dump(mode="json", exclude={*UNIDENTIFYING, "weight", "max_records"}),
        "renderer": dict(identity),
    }
    if limit is not None:
        config["limit"] = limit
    if plugins := item.plugins(plugged):
        config["plugins"] = [dict(plugin) for plugin in plugins]
    key = key_of(stage="shard", version=VERSION, config=config, parents={})
    with store.building("shard", key, progress) as building:
        artifact = building.found
        if artifact is None:
            _make(item, renderer, building.out, progress, plugged, limit)
            inputs = {"sources": [{"path": item.name}]}
            manifest = Manifest(kind="shard", key=key, version=VERSION, config=config, parents={}, inputs=inputs)
            artifact = building.publish(manifest)
        yield ShardFolder(item, artifact.path, reused=building.found is not None)


def _make(
    item: Input, renderer: Renderer, folder: Path, progress: Progress, plugged: Plugged, limit: int | None
) -> None:
    rows = item.rows()
    detection = item.detection
    if detection is None and not item.files:
        first = list(islice(rows, SAMPLE))
        detection = detect_first(first, item.source, item.name, plugged)
        rows = chain(first, rows)
    counts: dict[str, Counter[str]] = {"dropped": Counter(), "quarantined": Counter(), "ignored": Counter()}
    joins = detection is not None and type(detection.format).records is not RecordFormat.records
    read, added = _Read(rows, progress, Kept(item.source.keep, joins=joins)), 0
    ignored: dict[str, list[Any]] = {}
    places = {name: index for index, name in enumerate(item.names)}
    with ShardWriter(folder / RECORDS, renderer) as records, (folder / BAD).open("w", encoding="utf-8") as bad:
        for found in read.outcomes(detection, item):
            outcome = found
            if isinstance(found, Reading):
                file, _, line = found.record.origin.rpartition(":")
                outcome = records.add(found, line, places[file]) or found
            if isinstance(outcome, Reading):
                added += 1
                if added == limit:
                    break
            elif isinstance(outcome, Dropped):
                counts["dropped"][outcome.reason] += 1
            elif isinstance(outcome, Unread):
                unread = {name for name in outcome.columns if not is_kept(name, item.source.keep)}
                counts["ignored"].update(unread)
                for name in unread - ignored.keys():
                    ignored[name] = [*_place(outcome.origin, places), str(outcome.columns[name])[:EXAMPLE]]
            else:
                counts["quarantined"][outcome.reason] += 1
                bad.write(_quarantine_line(outcome, places))
    stats = {
        "format": detection.format.name if detection else "unknown",
        "why": detection.why if detection else str(item.problem),
        "rows": read.rows,
        "records": added,
        "cut": added == limit,
        "ignored_examples": ignored,
        "kept": dict(read.kept.found),
        "columns": sorted(read.kept.columns),
        **records.rendering,
        **counts,
    }
    (folder / STATS).write_text(json.dumps(stats, ensure_ascii=False), encoding="utf-8")


class _Read:
    """Iterates over the readable rows of an input. Unreadable rows are set aside and appear among the outcomes."""

    def __init__(self, rows: Iterator[RawRow | Unreadable], progress: Progress, kept: Kept) -> None:
        self.rows = 0
        self.kept = kept
        self._rows = rows
        self._progress = progress
        self._unreadable: list[Unreadable] = []

    def __iter__(self) -> Iterator[RawRow]:
        for row in self._rows:
            self.rows += 1
            if self._progress.stopping:
                raise Stopped
            if isinstance(row, RawRow):
                raw = unwrap_quarantined(row)
                self.kept.note(raw)
                yield raw
            else:
                self._unreadable.append(row)

    def outcomes(self, detection: Detection | None, item: Input) -> Iterator[Outcome]:
        if detection is None:
            error = item.problem
            problem = "" if error is None else f"{error.what}: {error.got}" if error.got else error.what
            reason = "unread_column" if error is not None and error.what == UNREAD else "unknown_format"
            outcomes: Iterator[Outcome] = (Quarantined(r.origin, reason, problem, r.value) for r in self)
        else:
            outcomes = self.kept.attach(outcomes_of(detection.format, self, item.source, item.names))
        for outcome in outcomes:
            yield from self._bad()
            yield outcome
        yield from self._bad()

    def _bad(self) -> Iterator[Quarantined]:
        for bad in self._unreadable:
            yield Quarantined(bad.origin, bad.reason, bad.detail, bad.raw)
        self._unreadable.clear()


def _place(origin: str, places: Mapping[str, int]) -> list[Any]:
    """Return [file index, line] of an origin, because a file may have another name in another run."""
    file, _, line = origin.rpartition(":")
    return [places.get(file, places.get(origin, 0)), line if file in places else ""]


def _quarantine_line(bad: Quarantined, places: Mapping[str, int]) -> str:
    """Return a JSON line with the origin as `_place` returns it."""
    fields = {"origin": _place(bad.origin, places), "reason": bad.reason, "detail": bad.detail}
    text = json.dumps({**fields, "row": bad.raw}, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"
