"""Take a random sample of the rows of files that have one row per line, without parsing the others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from alignment_core.data.sources.inputs import Input
from alignment_core.data.sources.readers import decompressed
from alignment_core.data.sources.readers.lines import lines_of, utf8
from alignment_core.data.sources.readers.unreadable import Unreadable
from alignment_core.data.sources.source_file import SourceFile
from alignment_core.records.format import RecordFormat

CONTAINERS = (".jsonl", ".ndjson", ".txt")


@dataclass
class LineSample:
    """A random sample of the lines of several files, at most `size` in all. Every line is as likely as any other.

    Attributes:
        total: number of lines in the files so far, and of other records among which the sample is shared.
    """

    size: int
    total: int = 0
    _files: dict[SourceFile, tuple[int, list[tuple[int, bytes]]]] = field(default_factory=dict, init=False)

    @property
    def share(self) -> float:
        """The share of the records that is in the sample."""
        return min(1.0, self.size / max(1, self.total))

    def add(self, file: SourceFile) -> None:
        """Read the lines of a file.

        Raises:
            OSError, EOFError: the file cannot be read.
        """
        kept, count = self._drawn(file)
        self.total += count
        self._files[file] = count, kept
        # Every file gives the same share of its lines. They are in random order, so the first ones are a sample too.
        self._files = {one: (lines, kept[: self._share_of(lines)]) for one, (lines, kept) in self._files.items()}

    def content(self, file: SourceFile) -> bytes:
        """Return the part of the sample that is in a file, in the file's order. It is empty if there is none."""
        count, kept = self._files[file]
        return b"".join(line + b"\n" for _, line in sorted(kept[: self._share_of(count)]))

    def _share_of(self, lines: int) -> int:
        return round(lines * self.share)

    def _drawn(self, file: SourceFile) -> tuple[list[tuple[int, bytes]], int]:
        """Return up to `size` numbered lines of a file in random order, and the number of its lines."""
        drawn, count = random.Random(file.name), 0
        kept: list[tuple[int, bytes]] = []
        with file.open() as raw, decompressed(raw, file) as stream:
            for line in lines_of(file.name, utf8(stream)):
                if isinstance(line, Unreadable) or not line[1]:
                    continue
                count += 1
                if len(kept) < self.size:
                    kept.append(line)
                elif (place := int(drawn.random() * count)) < self.size:
                    kept[place] = line
        drawn.shuffle(kept)
        return kept, count


def has_separate_lines(inputs: Sequence[Input]) -> bool:
    """Return whether each line of the inputs is a row that is read without any other row."""
    return all(
        item.files
        and item.detection is not None
        and type(item.detection.format).records is RecordFormat.records
        and all(file.local and file.container in CONTAINERS and not _is_array(file) for file in item.files)
        for item in inputs
    )


def _is_array(file: SourceFile) -> bool:
    with file.open() as raw, decompressed(raw, file) as stream:
        return utf8(stream).peek(1).lstrip().startswith(b"[")
