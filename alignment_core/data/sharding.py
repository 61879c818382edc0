"""Reads source files into shards: the part of ingestion that can be kept from run to run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from alignment_core.artifacts import ArtifactStore, Manifest, key_of
from alignment_core.config import SourceConfig
from alignment_core.data.formats import SAMPLE, Detection, detect
from alignment_core.data.formats.base import Dropped, Outcome, Quarantined, Reading
from alignment_core.data.identity import content_digest, hub_commit
from alignment_core.data.locate import HUB, SourceFile, is_hub, source_files
from alignment_core.data.readers import RawRow, Unreadable, read_file, read_hub
from alignment_core.data.rendering import Renderer
from alignment_core.data.shards import ShardWriter
from alignment_core.errors import DataError
from alignment_core.progress import Progress, Stopped

VERSION = 2
"""Raised when the same files and settings give another shard."""
RECORDS, BAD, STATS = "records.arrow", "quarantine.jsonl", "stats.json"
QUARANTINE_KEYS = {"origin", "reason", "detail", "row"}


@dataclass(frozen=True)
class Input:
    """What becomes one shard: a file, files whose rows need one another, or a hub data set.

    Attributes:
        names: how reports call the files.
        content: what identifies their content.
        source: the settings that they are read with.
        index: of the source in the settings.
        files: empty for a hub data set.
        detection: their format; None where nothing in them was recognised, or it is not known yet (hub).
        problem: why nothing was recognised.
    """

    names: tuple[str, ...]
    content: tuple[str, ...]
    source: SourceConfig
    index: int
    files: tuple[SourceFile, ...] = ()
    detection: Detection | None = None
    problem: DataError | None = None

    @property
    def name(self) -> str:
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} and {len(self.names) - 1} more"

    def rows(self) -> Iterator[RawRow | Unreadable]:
        """The raw rows of all files."""
        if not self.files:
            return read_hub(self.source, self.content[0])
        return chain.from_iterable(read_file(file, self.source) for file in self.files)


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


def find_inputs(sources: Sequence[SourceConfig]) -> list[Input]:
    """All files of all sources with their formats, in an order that depends on their content alone.

    Raises:
        DataError: a source is not there, or nothing in it is recognised.
    """
    found = []
    for index, source in enumerate(sources):
        if is_hub(source.path):
            name, commit = source.path.removeprefix(HUB), hub_commit(source)
            found.append(Input((name,), (commit,), source, index))
        else:
            found += _joined([_input(file, source, index) for file in source_files(source)])
    return sorted(found, key=lambda item: (item.index, item.content, item.names))


def _input(file: SourceFile, source: SourceConfig, index: int) -> Input:
    sample = [_mended(row).value for row in islice(read_file(file, source), SAMPLE) if isinstance(row, RawRow)]
    item = Input((file.name,), (_content(file),), source, index, (file,))
    try:
        detection = detect(sample, source, file.name)
    except DataError as error:
        return Input(item.names, item.content, source, index, item.files, problem=error)
    return Input(item.names, item.content, source, index, item.files, detection)


def _content(file: SourceFile) -> str:
    try:
        return content_digest(file)
    except DataError:
        return "unreadable"  # the reader says so, and the file's name and reason go into the quarantine


def _joined(items: list[Input]) -> list[Input]:
    """The inputs of one source, with files whose rows need one another as one.

    Raises:
        DataError: none was recognised.
    """
    known = [item for item in items if item.detection is not None]
    if not known:
        assert items[0].problem is not None
        raise items[0].problem
    groups: dict[str, list[Input]] = {}
    for place, item in enumerate(items):
        whole = item.detection is not None and item.detection.format.whole_source
        group = item.detection.format.name if item.detection is not None and whole else f"\0{place}"
        groups.setdefault(group, []).append(item)
    return [_merged(sorted(group, key=lambda item: (item.content, item.names))) for group in groups.values()]


def _merged(items: list[Input]) -> Input:
    first = items[0]
    if len(items) == 1:
        return first
    names, content, files = (
        tuple(value for item in items for value in getattr(item, name)) for name in ("names", "content", "files")
    )
    return Input(names, content, first.source, first.index, files, first.detection)


@contextmanager
def shard(
    item: Input,
    renderer: Renderer,
    identity: Mapping[str, Any],
    store: ArtifactStore | None,
    scratch: Path,
    progress: Progress,
) -> Iterator[ShardFolder]:
    """The shard of an input: from the store if it is there, else made.

    Args:
        item: the input.
        renderer: makes its tokens.
        identity: what identifies the renderer, as plain JSON.
        store: where shards are kept; None: in `scratch`.
        scratch: a folder for temporary files.
        progress: where to report.
    """
    if store is None:
        folder = scratch / f"shard-{len(list(scratch.iterdir()))}"
        folder.mkdir()
        _make(item, renderer, folder, progress)
        yield ShardFolder(item, folder, reused=False)
        return
    config = {
        "content": item.content,
        "containers": [file.container for file in item.files],
        "source": item.source.model_dump(mode="json", exclude={"path", "revision", "weight"}),
        "renderer": dict(identity),
    }
    key = key_of(stage="shard", version=VERSION, config=config, parents={})
    with store.building("shard", key, progress) as building:
        artifact = building.found
        if artifact is None:
            _make(item, renderer, building.out, progress)
            artifact = building.publish(Manifest(kind="shard", key=key, version=VERSION, config=config, parents={}))
        yield ShardFolder(item, artifact.path, reused=building.found is not None)


def _make(item: Input, renderer: Renderer, folder: Path, progress: Progress) -> None:
    rows = item.rows()
    detection = item.detection
    if detection is None and not item.files:
        first = list(islice(rows, SAMPLE))
        detection = detect([row.value for row in first if isinstance(row, RawRow)], item.source, item.name)
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
                yield _mended(row)
            else:
                self._unreadable.append(row)

    def outcomes(self, detection: Detection | None, item: Input) -> Iterator[Outcome]:
        if detection is None:
            problem = str(item.problem)
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


def _mended(row: RawRow) -> RawRow:
    """The row inside a line of `quarantine.jsonl`, so that a mended one can be handed in as it is."""
    if isinstance(row.value, Mapping) and set(row.value) == QUARANTINE_KEYS:
        return RawRow(row.value["row"], row.origin)
    return row


def _quarantine_line(bad: Quarantined, places: Mapping[str, int]) -> str:
    """A line whose origin is [file's place, line]: the same file may have another name in another run."""
    file, _, line = bad.origin.rpartition(":")
    place = places.get(file, places.get(bad.origin, 0))
    fields = {"origin": [place, line if file in places else ""], "reason": bad.reason, "detail": bad.detail}
    text = json.dumps({**fields, "row": bad.raw}, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"
