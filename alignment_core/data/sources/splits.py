"""Tell the splits of a stored data set apart, and its rows from the files that only describe them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from alignment_core.data.sources.source_file import SourceFile

DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json"})
"""Files of the `datasets` library that describe a data set. `state.json` is one beside `dataset_info.json`."""
PART = re.compile(r"(?:^|/)((?:train|test|valid|val|validation|dev|eval)(?:_\w+)?)-\d{5}-of-\d{5}\.")
"""Matches `train-00000-of-00002.parquet`, as the Hub stores the parts of a split."""


def without_descriptions(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Return the files without those that `datasets` writes beside the rows: descriptions and caches."""
    saved = {_folder(file) for file in files if _name(file) == "dataset_info.json"}

    def describes(file: SourceFile) -> bool:
        beside = _name(file) == "state.json" or _name(file).startswith("cache-")
        return _name(file) in DESCRIPTIONS or (beside and _folder(file) in saved)

    return [file for file in files if not describes(file)]


def files_by_split(files: Sequence[SourceFile]) -> dict[str, list[SourceFile]]:
    """Return the files of each split of a DatasetDict or a copy of a Hub data set, or {} if the files have no splits.

    The files that belong to no split are under an empty name.
    """
    dictionaries = {_folder(file) for file in files if _name(file) == "dataset_dict.json"}
    found: dict[str, list[SourceFile]] = {}
    for file in without_descriptions(files):
        part = PART.search(file.name)
        name = part.group(1) if part else ""
        if str(PurePosixPath(_folder(file)).parent) in dictionaries:
            name = PurePosixPath(_folder(file)).name
        found.setdefault(name, []).append(file)
    return found if len(set(found) - {""}) > 1 else {}


def _name(file: SourceFile) -> str:
    return PurePosixPath(file.name).name


def _folder(file: SourceFile) -> str:
    return str(PurePosixPath(file.name).parent)
