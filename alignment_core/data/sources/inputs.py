"""Find the input files of each source, detect their formats, and name the plugins that these formats come from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from alignment_core.config import SourceConfig
from alignment_core.config.places import HUB
from alignment_core.data.sources.formats import NO_PLUGINS, SAMPLE, Detection, Plugged, detect
from alignment_core.data.sources.identity import content_digest, hub_commit
from alignment_core.data.sources.locate import files_and_other_splits, is_hub
from alignment_core.data.sources.readers import Unreadable, read_file, read_hub
from alignment_core.data.sources.source_file import SourceFile
from alignment_core.errors import DataError
from alignment_core.records import RawRow

QUARANTINE_KEYS = {"origin", "reason", "detail", "row"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Input:
    """The input of one shard: a file, several files whose rows must be joined, or a hub data set.

    Attributes:
        names: names of the files in reports.
        content: digest of each file, or the commit of a hub data set.
        source: settings used to read the input.
        index: position of the source in `data.sources`.
        files: the files to read. Empty for a hub data set.
        detection: the detected format. None if no format matches, or if it is not known yet (hub data set).
        problem: the error if no format matches.
        other_splits: splits of the source that are not read.
    """

    names: tuple[str, ...]
    content: tuple[str, ...]
    source: SourceConfig
    index: int
    files: tuple[SourceFile, ...] = ()
    detection: Detection | None = None
    problem: DataError | None = None
    other_splits: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} and {len(self.names) - 1} more"

    def rows(self) -> Iterator[RawRow | Unreadable]:
        """Yield the raw rows of all files."""
        if not self.files:
            return read_hub(self.source, self.content[0])
        return chain.from_iterable(read_file(file, self.source) for file in self.files)

    def plugins(self, plugged: Plugged) -> list[Mapping[str, str]]:
        """Return the identities of the plugins that can affect how the input is read.

        If the format is known, this is the plugin that provides it, if any. For a hub data set, whose format is not
        known yet, it is every plugin whose format may be used.
        """
        if self.detection is not None:
            return [plugged[self.detection.format]] if self.detection.format in plugged else []
        if self.files or self.source.columns:
            return []
        return [identity for format, identity in plugged.items() if self.source.format in (None, format.name)]


def find_inputs(sources: Sequence[SourceConfig], plugged: Plugged = NO_PLUGINS, *, strict: bool = True) -> list[Input]:
    """Return the inputs of all sources with their formats, ordered by source and then by content.

    Raises:
        DataError: a source does not exist, its `format` or `columns` fits none of its files, or (if `strict`) no format
            matches any of its files.
    """
    found = []
    for index, source in enumerate(sources):
        if is_hub(source.path):
            name, commit = source.path.removeprefix(HUB), hub_commit(source)
            found.append(Input((name,), (commit,), source, index))
        else:
            files, others = files_and_other_splits(source)
            items = [_input(file, source, index, plugged) for file in files]
            problems = [item.problem for item in items if item.problem is not None]
            set_by_hand = source.format is not None or source.columns
            if len(problems) == len(items) and (strict or set_by_hand):
                raise problems[0]
            found += [replace(item, other_splits=tuple(others)) for item in _joined(items)]
    return sorted(found, key=lambda item: (item.index, item.content, item.names))


def check_hub(source: SourceConfig, plugged: Plugged = NO_PLUGINS) -> None:
    """Check the subset, split, format and columns of a Hub data set by its first rows, if the Hub can be reached.

    Raises:
        DataError: it cannot be read, its `format` or `columns` does not exist, or no format matches.
    """
    import httpx

    name = source.path.removeprefix(HUB)
    try:
        first = list(islice(read_hub(source, hub_commit(source)), SAMPLE))
    except DataError as error:
        if not isinstance(error.__cause__, ConnectionError | httpx.TransportError):
            raise
        logger.warning("the rows of %s are not checked before the run: %s", source.path, error.got)
        return
    detect_first(first, source, name, plugged)


def detect_first(first: Sequence[RawRow | Unreadable], source: SourceConfig, name: str, plugged: Plugged) -> Detection:
    """Detect the format of a Hub data set from its first rows.

    Raises:
        DataError: as for `detect`.
    """
    return detect([row.value for row in first if isinstance(row, RawRow)], source, name, plugged)


def _input(file: SourceFile, source: SourceConfig, index: int, plugged: Plugged) -> Input:
    first = list(islice(read_file(file, source), SAMPLE))
    sample = [unwrap_quarantined(row).value for row in first if isinstance(row, RawRow)]
    item = Input((file.name,), (_content(file),), source, index, (file,))
    try:
        unreadable = next((row for row in first if isinstance(row, Unreadable)), None)
        if unreadable is not None and not sample:
            raise DataError("no row can be read", where=unreadable.origin, got=unreadable.detail)
        if not first:
            raise DataError("the file has no rows", where=file.name)
        detection = detect(sample, source, file.name, plugged)
    except DataError as error:
        return Input(item.names, item.content, source, index, item.files, problem=error)
    return Input(item.names, item.content, source, index, item.files, detection)


def _content(file: SourceFile) -> str:
    try:
        return content_digest(file)
    except DataError:
        return "unreadable"  # the reader reports the error, and the file is quarantined with the reason


def _joined(items: list[Input]) -> list[Input]:
    """Return the inputs of one source, with files merged if their format joins rows across files."""
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


def unwrap_quarantined(row: RawRow) -> RawRow:
    """Return the original row from a line of `quarantine.jsonl`, so that a fixed file can be used as a source."""
    if isinstance(row.value, Mapping) and set(row.value) == QUARANTINE_KEYS:
        return RawRow(row.value["row"], row.origin)
    return row
