"""The feedback store as a data source: votes are written to files, which ingestion then reads.

Every plan and every check of data asks whether a source is a store. What opens one is imported where one is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.config.places import names_feedback_store
from alignment_core.data.sources.identity import UNIDENTIFYING, source_identity
from alignment_core.errors import DataError
from alignment_core.temporary import temporary_folder


def is_store(source: SourceConfig) -> bool:
    """Return whether the source is a feedback store, judging by its path."""
    return names_feedback_store(source.path)


def pin_source(source: SourceConfig) -> SourceConfig:
    """Limit a feedback store to the votes that it holds now. Other sources are returned unchanged.

    Raises:
        DataError: the store does not exist.
        FeedbackError: the store cannot be read.
    """
    if not is_store(source) or source.votes_upto is not None:
        return source
    return source.model_copy(update={"votes_upto": _newest(source)})


def pin_data(data: DataConfig) -> DataConfig:
    """Limit every feedback store to the votes that it holds now. Votes that arrive during a run are left for the next.

    Raises:
        DataError, FeedbackError: as for `pin_source`.
    """
    return data.model_copy(update={"sources": [pin_source(source) for source in data.sources]})


def source_key(source: SourceConfig) -> dict[str, Any]:
    """Return the part of a cache key that identifies the source's records. For a feedback store it hashes the votes.

    Raises:
        DataError, FeedbackError: as for `source_identity` and `pin_source`.
    """
    if not is_store(source):
        return source_identity(source).key
    from alignment_core.feedback.store import open_feedback

    check_exists(source.path)
    settings = source.model_dump(mode="json", exclude=UNIDENTIFYING)
    with open_feedback(source.path) as store:
        return {"votes": store.digest(source.votes_after, source.votes_upto, source.votes_before), **settings}


def write_stores_as_files(sources: Sequence[SourceConfig], folder: Path) -> list[SourceConfig]:
    """Write the votes of each feedback store to a folder inside `folder`, and return the sources with these paths.

    Raises:
        DataError: a store does not exist or holds no votes.
        FeedbackError: a store cannot be read.
    """
    return [_as_files(source, folder / f"votes-{place}")[0] for place, source in enumerate(sources)]


def write_sample(source: SourceConfig, folder: Path, share: float) -> tuple[SourceConfig, int]:
    """Write the votes on a share of a store's prompts to a folder. Return the source with this path, and their number.

    Raises:
        DataError: the store does not exist, or there are no votes on these prompts.
        FeedbackError: the store cannot be read.
    """
    return _as_files(source, folder, share)


def count_votes(source: SourceConfig) -> int:
    """Return the number of votes that a source selects from a store, with withdrawn votes and skipped rankings.

    Raises:
        DataError: the store does not exist.
        FeedbackError: the store cannot be read.
    """
    from alignment_core.feedback.store import open_feedback

    check_exists(source.path)
    with open_feedback(source.path) as store:
        return store.count_current(source.votes_after, source.votes_upto, source.votes_before)


@contextmanager
def stores_as_files(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yield the paths with each feedback store replaced by a temporary folder of files, removed after the block.

    Raises:
        DataError, FeedbackError: as for `write_stores_as_files`.
    """
    with temporary_folder("votes") as folder:
        yield [source.path for source in write_stores_as_files([SourceConfig(path=path) for path in paths], folder)]


def _as_files(source: SourceConfig, folder: Path, share: float = 1.0) -> tuple[SourceConfig, int]:
    """Write the votes of a source to a folder. Return the source with this path, and the number of sampled votes."""
    if not is_store(source):
        return source, 0
    from alignment_core.feedback.database import database_url, without_password
    from alignment_core.feedback.import_export import write_training_rows
    from alignment_core.feedback.store import open_feedback

    check_exists(source.path)
    folder.mkdir(parents=True, exist_ok=True)
    selected = (source.votes_after, source.votes_upto, source.votes_before)
    with open_feedback(source.path) as store:
        read, rows = (0, store.training_rows(*selected)) if share == 1 else store.sample(*selected, share)
        counts = write_training_rows(rows, folder)
    if not sum(counts.values()):
        raise DataError(
            "the feedback store holds no votes",
            where=without_password(database_url(source.path)),
            do="Collect votes with `align chat` or `align rank`, or remove the store from data.sources",
        )
    unlimited = {"path": str(folder), "votes_after": 0, "votes_before": None, "votes_upto": None}
    return source.model_copy(update=unlimited), read


def _newest(source: SourceConfig) -> int:
    from alignment_core.feedback.store import open_feedback

    check_exists(source.path)
    with open_feedback(source.path) as store:
        return store.newest()


def check_exists(place: str) -> None:
    """Check that the store exists, because opening a mistyped path would create a new one.

    Raises:
        DataError: the store does not exist.
    """
    from alignment_core.feedback.database import database_url

    url = database_url(place)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise DataError(
            "there is no such feedback store",
            where=place,
            do=f"Collect votes with `align chat` or `align rank`, or check the path. It is relative to {Path.cwd()}",
        )
