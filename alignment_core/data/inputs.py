"""What there is to read: files of one format each, and which plugins' formats they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from alignment_core.config import SourceConfig
from alignment_core.data.formats import NO_PLUGINS, SAMPLE, Detection, Plugged, detect
from alignment_core.data.identity import content_digest, hub_commit
from alignment_core.data.locate import HUB, SourceFile, is_hub, source_files
from alignment_core.data.readers import Unreadable, read_file, read_hub
from alignment_core.errors import DataError
from alignment_core.records import RawRow

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

    def plugins(self, plugged: Plugged) -> list[Mapping[str, str]]:
        """Identities of the plugins that decide what is read: of the format's, or of all while that is not known."""
        if self.detection is not None:
            return [plugged[self.detection.format]] if self.detection.format in plugged else []
        if self.files or self.source.columns:
            return []
        return [identity for format, identity in plugged.items() if self.source.format in (None, format.name)]


def find_inputs(sources: Sequence[SourceConfig], plugged: Plugged = NO_PLUGINS, *, strict: bool = True) -> list[Input]:
    """All files of all sources with their formats, in an order that depends on their content alone.

    Raises:
        DataError: a source is not there, its settings fit none of its files, or (strict) nothing in it is recognised.
    """
    found = []
    for index, source in enumerate(sources):
        if is_hub(source.path):
            name, commit = source.path.removeprefix(HUB), hub_commit(source)
            found.append(Input((name,), (commit,), source, index))
        else:
            items = [_input(file, source, index, plugged) for file in source_files(source)]
            problems = [item.problem for item in items if item.problem is not None]
            set_by_hand = source.format is not None or source.columns
            if len(problems) == len(items) and (strict or set_by_hand):
                raise problems[0]
            found += _joined(items)
    return sorted(found, key=lambda item: (item.index, item.content, item.names))


def _input(file: SourceFile, source: SourceConfig, index: int, plugged: Plugged) -> Input:
    first = list(islice(read_file(file, source), SAMPLE))
    sample = [mended(row).value for row in first if isinstance(row, RawRow)]
    item = Input((file.name,), (_content(file),), source, index, (file,))
    try:
        unreadable = next((row for row in first if isinstance(row, Unreadable)), None)
        if unreadable is not None and not sample:
            raise DataError("nothing can be read", where=unreadable.origin, got=unreadable.detail)
        if not first:
            raise DataError("the file holds no rows", where=file.name)
        detection = detect(sample, source, file.name, plugged)
    except DataError as error:
        return Input(item.names, item.content, source, index, item.files, problem=error)
    return Input(item.names, item.content, source, index, item.files, detection)


def _content(file: SourceFile) -> str:
    try:
        return content_digest(file)
    except DataError:
        return "unreadable"  # the reader says so, and the file's name and reason go into the quarantine


def _joined(items: list[Input]) -> list[Input]:
    """The inputs of one source, with files whose rows need one another as one."""
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


def mended(row: RawRow) -> RawRow:
    """The row inside a line of `quarantine.jsonl`, so that a mended one can be handed in as it is."""
    if isinstance(row.value, Mapping) and set(row.value) == QUARANTINE_KEYS:
        return RawRow(row.value["row"], row.origin)
    return row
