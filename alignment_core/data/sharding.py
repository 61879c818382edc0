"""Reads source files into shards: the part of ingestion that can be kept from run to run."""

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
from alignment_core.data.formats import NO_PLUGINS, SAMPLE, Detection, Plugged, detect
from alignment_core.data.identity import UNIDENTIFYING
from alignment_core.data.inputs import Input, mended
from alignment_core.data.readers import RawRow, Unreadable
from alignment_core.data.rendering import Renderer
from alignment_core.data.shards import ShardWriter
from alignment_core.progress import Progress, Stopped
from alignment_core.record_format import Dropped, Outcome, Quarantined, Reading

VERSION = 4
"""Raised when the same files and settings give another shard."""
RECORDS, BAD, STATS = "records.arrow", "quarantine.jsonl", "stats.json"


@dataclass(frozen=True)
class ShardFolder:
    """A finished shard: `records.arrow`, `quarantine.jsonl` and `stats.json` in one folder."""

    input: Input
    path: Path
    reused: bool

    def stats(self) -> dict[str, Any]:
        """Detected format and why, rows read, and counts of what was dropped and quarantined, by reason."""
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
) -> Iterator[ShardFolder]:
    """The shard of an input: from the store if it is there, else made.

    Args:
        item: the input.
        renderer: makes its tokens.
        identity: what identifies the renderer, as plain JSON.
        store: where shards are kept; None: in `scratch`.
        scratch: a folder for temporary files.
        progress: where to report.
        plugged: record formats that plugins bring.
    """
    if store is None:
        folder = scratch / f"shard-{len(list(scratch.iterdir()))}"
        folder.mkdir()
        _make(item, renderer, folder, progress, plugged)
        yield ShardFolder(item, folder, reused=False)
        return
    config: dict[str, Any] = {
        "content": item.content,
        "containers": [file.container for file in item.files],
        "source": item.source.model_dump(mode="json", exclude={*UNIDENTIFYING, "weight"}),
        "renderer": dict(identity),
    }
    if plugins := item.plugins(plugged):
        config["plugins"] = [dict(plugin) for plugin in plugins]
    key = key_of(stage="shard", version=VERSION, config=config, parents={})
    with store.building("shard", key, progress) as building:
        artifact = building.found
        if artifact is None:
            _make(item, renderer, building.out, progress, plugged)
            artifact = building.publish(Manifest(kind="shard", key=key, version=VERSION, config=config, parents={}))
        yield ShardFolder(item, artifact.path, reused=building.found is not None)


def _make(item: Input, renderer: Renderer, folder: Path, progress: Progress, plugged: Plugged) -> None:
    rows = item.rows()
    detection = item.detection
    if detection is None and not item.files:
        first = list(islice(rows, SAMPLE))
        detection = detect([row.value for row in first if isinstance(row, RawRow)], item.source, item.name, plugged)
        rows = chain(first, rows)
    counts: dict[str, Counter[str]] = {"dropped": Counter(), "quarantined": Counter()}
    read = _Read(rows, progress)
    places = {name: index for index, name in enumerate(item.names)}
    with ShardWriter(folder / RECORDS, renderer) as records, (folder / BAD).open("w", encoding="utf-8") as bad:
        for outcome in read.outcomes(detection, item):
            if isinstance(outcome, Reading):
                file, _, line = outcome.record.origin.rpartition(":")
                records.add(outcome, line, places[file])
            elif isinstance(outcome, Dropped):
                counts["dropped"][outcome.reason] += 1
            else:
                counts["quarantined"][outcome.reason] += 1
                bad.write(_quarantine_line(outcome, places))
    stats = {
        "format": detection.format.name if detection else "unknown",
        "why": detection.why if detection else str(item.problem),
        "rows": read.rows,
        **counts,
    }
    (folder / STATS).write_text(json.dumps(stats, ensure_ascii=False), encoding="utf-8")


class _Read:
    """The readable rows of an input; what is unreadable waits aside, to come out among the outcomes."""

    def __init__(self, rows: Iterator[RawRow | Unreadable], progress: Progress) -> None:
        self.rows = 0
        self._rows = rows
        self._progress = progress
        self._unreadable: list[Unreadable] = []

    def __iter__(self) -> Iterator[RawRow]:
        for row in self._rows:
            self.rows += 1
            if self._progress.stopping:
                raise Stopped
            if isinstance(row, RawRow):
                yield mended(row)
            else:
                self._unreadable.append(row)

    def outcomes(self, detection: Detection | None, item: Input) -> Iterator[Outcome]:
        if detection is None:
            problem = "" if item.problem is None else item.problem.what
            outcomes: Iterator[Outcome] = (Quarantined(r.origin, "unknown_format", problem, r.value) for r in self)
        else:
            outcomes = detection.format.records(self, item.source)
        for outcome in outcomes:
            yield from self._bad()
            yield outcome
        yield from self._bad()

    def _bad(self) -> Iterator[Quarantined]:
        for bad in self._unreadable:
            yield Quarantined(bad.origin, bad.reason, bad.detail, bad.raw)
        self._unreadable.clear()


def _quarantine_line(bad: Quarantined, places: Mapping[str, int]) -> str:
    """A line whose origin is [file's place, line]: the same file may have another name in another run."""
    file, _, line = bad.origin.rpartition(":")
    place = places.get(file, places.get(bad.origin, 0))
    fields = {"origin": [place, line if file in places else ""], "reason": bad.reason, "detail": bad.detail}
    text = json.dumps({**fields, "row": bad.raw}, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"
