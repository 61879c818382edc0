"""A remote in a bucket of an object storage: `s3://`, `gs://` or `az://`, by the library obstore.

obstore is not part of a plain installation. It is the extra `s3`.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from alignment_core.addresses import hide_secrets
from alignment_core.artifacts.remote.objects import Conflict, Stored, Unreachable, Watch
from alignment_core.errors import ArtifactError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNK = 8 * 2**20
PIECE = 2**20
"""Bytes that are read at a time, and lost if an answer breaks off."""
PARTS = 9000
"""Parts of a large object. S3 allows 10,000."""
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
ENDPOINT = re.compile(r"https?://[^\s/?#<>\"{}|\\^`]+(/[^\s?#<>\"{}|\\^`]*)?")
RETRY_SECONDS, TRIES = 20, 8
CONNECT_SECONDS, SILENT_SECONDS = 10, 60
AWAY_SECONDS = 30
"""How long requests fail at once after one that failed in spite of all its tries."""


class BucketObjects:
    """Objects below a prefix of a bucket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._away: tuple[float, str] | None = None
        with self._request():
            self._store = _open(address)

    def read(self, name: str) -> tuple[bytes, str] | None:
        try:
            with self._request():
                answer = _Answer(self._store, name)
                return b"".join(answer), answer.tag
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes, replacing: str | None) -> str:
        try:
            return self._write(name, content, replacing)
        except Conflict:
            # A request that was repeated, because its answer was lost, meets its own object.
            there = self.read(name)
            if there is not None and there[0] == content:
                return there[1]
            raise

    def _write(self, name: str, content: bytes, replacing: str | None) -> str:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        for attempt in range(TRIES):
            try:
                with self._request(last=attempt == TRIES - 1):
                    put = obstore.put(
                        self._store, name, content, mode="create" if replacing is None else {"e_tag": replacing}
                    )
                    return str(put["e_tag"])
            except (AlreadyExistsError, PreconditionError) as error:
                raise Conflict(name) from error
            except Unreachable:  # the library repeats no conditional write
                if attempt == TRIES - 1:
                    raise
                time.sleep(min(0.1 * 2**attempt, 2))
        raise AssertionError("unreachable")

    def upload(self, name: str, path: Path, watch: Watch) -> None:
        import obstore

        size = path.stat().st_size
        with self._request():
            if size <= CHUNK:
                obstore.put(self._store, name, path.read_bytes())
                watch(size)
                return
            part = max(CHUNK, -(-size // PARTS))
            obstore.put(self._store, name, _parts(path, part, watch), chunk_size=part, max_concurrency=4)

    def fetch(self, name: str, path: Path | None, watch: Watch) -> str:
        digest = hashlib.sha256()
        with self._request(), open(path or os.devnull, "wb") as file:
            for piece in _Answer(self._store, name):
                digest.update(piece)
                file.write(piece)
                watch(len(piece))
        return digest.hexdigest()

    def list(self, prefix: str) -> Iterator[Stored]:
        import obstore

        with self._request():
            found = [
                Stored(str(meta["path"]), meta["size"], meta["last_modified"].timestamp())
                for chunk in obstore.list(self._store, prefix.rstrip("/") or None)
                for meta in chunk
            ]
        yield from found

    def delete(self, names: Iterable[str]) -> None:
        import obstore

        for name in names:
            try:
                with self._request():
                    obstore.delete(self._store, name)
            except FileNotFoundError:
                continue

    def now(self) -> float:
        import obstore

        name = f"clock/{uuid4().hex}"
        self.write(name, name.encode(), None)
        with self._request():
            written = obstore.head(self._store, name)["last_modified"].timestamp()
        self.delete([name])
        return float(written)

    @contextmanager
    def _request(self, *, last: bool = True) -> Iterator[None]:
        """Turn the library's errors into `Unreachable`, and fail at once for a while after one.

        Args:
            last: whether no further try of the same request follows.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        if self._away is not None and time.monotonic() < self._away[0]:
            raise Unreachable(self.address, self._away[1])
        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except (BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
                raise
            reason = str(error).partition("\n\nDebug source")[0].replace("\n", " ")
            if last:
                self._away = (time.monotonic() + AWAY_SECONDS, reason)
            raise Unreachable(self.address, reason) from error


class _Answer:
    """The content of an object, in pieces. An answer that breaks off is continued, which the library does not do.

    Attributes:
        tag: tag of the object.
    """

    def __init__(self, store: ObjectStore, name: str) -> None:
        import obstore

        self._store, self._name = store, name
        self._found = obstore.get(store, name)
        self.tag = str(self._found.meta["e_tag"])

    def __iter__(self) -> Iterator[bytes]:
        import obstore
        from obstore.exceptions import BaseError

        size, done, breaks = self._found.meta["size"], 0, 0
        while True:
            try:
                for piece in self._found.stream(min_chunk_size=PIECE):
                    done, breaks = done + len(piece), 0
                    yield bytes(piece)
                return
            except BaseError:
                breaks += 1
                if breaks == TRIES:
                    raise
            if done == size:
                return
            rest: Any = {"range": {"offset": done}, "if_match": self.tag}
            self._found = obstore.get(self._store, self._name, options=rest)


def _parts(path: Path, size: int, watch: Watch) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size):
            watch(len(chunk))
            yield chunk


def _open(address: str) -> ObjectStore:
    from obstore.store import from_url

    options: dict[str, Any] = {
        "client_options": {
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=SILENT_SECONDS),
            "timeout": timedelta(hours=1),
            "allow_http": True,  # of an endpoint in the environment
        },
        "retry_config": {
            "max_retries": TRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
        },
    }
    if address.startswith("s3://"):
        _check_endpoint(address)
        options["credential_provider"] = _aws(address)
    return from_url(address, **options)


def _check_endpoint(address: str) -> None:
    """Check the address of another server than Amazon's, which the library takes for granted.

    Raises:
        ArtifactError: it is none.
    """
    for variable in ENDPOINTS:
        given = os.environ.get(variable, "").strip()
        if given and not ENDPOINT.fullmatch(given):
            raise ArtifactError(
                "the server of the remote has no valid address",
                where=variable,
                got=hide_secrets(given),
                expected="an address such as https://HOST:PORT",
                do=f"Correct the variable, or unset it if {address} is a bucket of Amazon's",
            )


def _aws(address: str) -> Any:
    """Return what finds the credentials of S3: the environment, a profile, single sign-on, or the machine's role."""
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider(boto3.Session())
    except (ValueError, BotoCoreError) as error:
        raise ArtifactError(
            "there are no credentials for the remote of the store",
            where=address,
            got=None if isinstance(error, ValueError) else str(error),
            do="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment of the run",
        ) from error
