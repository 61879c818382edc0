"""A feedback store as a source of data: its votes become files before ingestion reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.identity import UNIDENTIFYING, source_identity
from alignment_core.errors import DataError
from alignment_core.feedback.exchange import digest_of, write_training_rows
from alignment_core.feedback.schema import database_url, shown
from alignment_core.feedback.store import open_feedback
from alignment_core.feedback.votes import Vote

ENDINGS = (".db", ".sqlite", ".sqlite3")
SCHEMES = ("sqlite://", "postgresql://", "postgresql+psycopg://")


def is_store(source: SourceConfig) -> bool:
    """Whether the source is a feedback store, by the looks of its path."""
    return source.path.startswith(SCHEMES) or ("://" not in source.path and source.path.lower().endswith(ENDINGS))


def pinned(source: SourceConfig) -> SourceConfig:
    """The source as it is now: of a feedback store, the votes that there are, whatever comes later.

    Raises:
        DataError: there is no such store.
        FeedbackError: it cannot be read.
    """
    if not is_store(source) or source.votes_upto is not None:
        return source
    return source.model_copy(update={"votes_upto": _newest(source)})


def pinned_data(data: DataConfig) -> DataConfig:
    """The data as they are now: votes that come in while a run goes on wait for the next.

    Raises:
        DataError, FeedbackError: as for `pinned`.
    """
    return data.model_copy(update={"sources": [pinned(source) for source in data.sources]})


def identity_of(source: SourceConfig) -> dict[str, Any]:
    """The part of a cache key that stands for the source's records: of a feedback store, what its votes say.

    Raises:
        DataError, FeedbackError: as for `source_identity` and `pinned`.
    """
    if not is_store(source):
        return source_identity(source).key
    settings = source.model_dump(mode="json", exclude=UNIDENTIFYING)
    return {"votes": digest_of(_votes(source)), **settings}


def as_files(sources: Sequence[SourceConfig], folder: Path) -> list[SourceConfig]:
    """The sources, with the votes of each feedback store written to a folder inside `folder`.

    Raises:
        DataError: there is no such store, or no vote in it.
        FeedbackError: it cannot be read.
    """
    return [_as_files(source, folder / f"votes-{place}") for place, source in enumerate(sources)]


@contextmanager
def stores_as_files(paths: Sequence[str]) -> Iterator[list[str]]:
    """Paths of sources, those of feedback stores as folders of files that last as long as the block.

    Raises:
        DataError, FeedbackError: as for `as_files`.
    """
    with tempfile.TemporaryDirectory(prefix="align-votes-") as folder:
        yield [source.path for source in as_files([SourceConfig(path=path) for path in paths], Path(folder))]


def _as_files(source: SourceConfig, folder: Path) -> SourceConfig:
    if not is_store(source):
        return source
    votes = _votes(source)
    if not votes:
        raise DataError(
            "the feedback store holds no votes",
            where=shown(database_url(source.path)),
            do="Collect some with `align chat` or `align rank`, or leave it out of data.sources",
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_training_rows(votes, folder)
    return source.model_copy(update={"path": str(folder)})


def _votes(source: SourceConfig) -> list[Vote]:
    check_is_there(source.path)
    with open_feedback(source.path) as store:
        last = source.votes_before
        votes = store.votes(source.votes_after, source.votes_upto)
        return [vote for vote in votes if last is None or vote.number <= last]


def _newest(source: SourceConfig) -> int:
    check_is_there(source.path)
    with open_feedback(source.path) as store:
        return store.newest()


def check_is_there(place: str) -> None:
    """Opening would make a new store where the path is mistyped.

    Raises:
        DataError: there is none.
    """
    url = database_url(place)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise DataError("there is no such feedback store", where=place, do=f"Check the path, relative to {Path.cwd()}")
