"""A random sample of the sources of a run, to predict what a run on all of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.sources.inputs import find_inputs
from alignment_core.data.sources.line_sample import LineSample, has_separate_lines
from alignment_core.data.sources.locate import is_hub
from alignment_core.data.sources.source_file import SourceFile
from alignment_core.errors import DataError
from alignment_core.feedback.data_source import count_votes, is_store, write_sample
from alignment_core.registry import load_registry

RECORDS = 2000
"""Records in a sample. Mean lengths are known to 2 or 3 %, and reading them takes a second."""


@dataclass(frozen=True)
class Sample:
    """Files with a part of the records.

    Attributes:
        sources: the sources to read in place of those of the run.
        read: number of records in the sample.
        of: number of records in the sources of the run.
    """

    sources: list[SourceConfig]
    read: int
    of: int


def sample_of(sources: Sequence[SourceConfig], data: DataConfig, folder: Path) -> Sample | None:
    """Write a random sample of the sources to files. The same sources give the same sample.

    Of a feedback store, all votes on some of the prompts are drawn, and of other files some of the lines. None: all
    must be read, because there are few records, a limit selects the first ones, or a row cannot be read alone.

    Args:
        sources: the sources of the run.
        data: the other settings of the data.
        folder: an empty folder.

    Raises:
        DataError, FeedbackError: a source cannot be read.
    """
    limits = [data.max_records, *(source.max_records for source in sources)]
    if any(limit is not None for limit in limits) or any(is_hub(source.path) for source in sources):
        return None
    votes = sum(count_votes(source) for source in sources if is_store(source))
    places = [place for place, source in enumerate(sources) if not is_store(source)]
    inputs = find_inputs([sources[place] for place in places], load_registry().formats())
    if not has_separate_lines(inputs):
        return None
    lines = LineSample(RECORDS, total=votes)
    for item in inputs:
        for file in item.files:
            lines.add(file)
    if lines.share == 1:
        return None
    read, sampled = round((lines.total - votes) * lines.share), list(sources)
    for place, source in enumerate(sources):
        if is_store(source):
            try:
                sampled[place], drawn = write_sample(source, folder / f"votes-{place}", lines.share)
            except DataError:
                return None  # there are votes, but on few prompts
            read += drawn
    for number, place in enumerate(places):
        files = [file for item in inputs if item.index == number for file in item.files]
        sampled[place] = _written(sources[place], files, lines, folder / f"files-{place}")
    return Sample(sampled, read, lines.total)


def _written(source: SourceConfig, files: Sequence[SourceFile], lines: LineSample, folder: Path) -> SourceConfig:
    folder.mkdir()
    for number, file in enumerate(files):
        if content := lines.content(file):
            (folder / f"{number}{file.container}").write_bytes(content)
    return source.model_copy(update={"path": str(folder)})
