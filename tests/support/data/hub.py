"""A local Hugging Face Hub that serves a data set: the HTTP endpoints that its client needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from local_server import serving


@contextmanager
def served(name: str, revisions: Mapping[str, tuple[str, Mapping[str, str]]]) -> Iterator[tuple[str, list[str]]]:
    """Serve a data set. Yield the hub's address and the list of requested paths.

    Args:
        name: owner/name of the only data set.
        revisions: commit and files (path to text) of each branch or tag.
    """
    requested: list[str] = []
    by_revision = {**revisions, **{commit: (commit, files) for commit, files in revisions.values()}}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            requested.append(self.path)
            path = unquote(urlsplit(self.path).path)
            if path.startswith(f"/api/datasets/{name}"):
                self._api(path.removeprefix(f"/api/datasets/{name}").strip("/"))
            elif path.startswith(f"/datasets/{name}/resolve/"):
                self._file(*path.removeprefix(f"/datasets/{name}/resolve/").split("/", 1))
            else:
                self._missing("RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            requested.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            revision = unquote(urlsplit(self.path).path).split("/paths-info/")[1]
            self._json(
                [
                    _entry(path, by_revision[revision][1][path])
                    for path in body["paths"]
                    if path in by_revision[revision][1]
                ]
            )

        def _api(self, rest: str) -> None:
            what, _, argument = rest.partition("/")
            revision = argument.split("/")[0] if argument else "main"
            if revision not in by_revision:
                self._missing("RevisionNotFound")
                return
            commit, files = by_revision[revision]
            if what == "tree":
                self._json([_entry(path, text) for path, text in files.items()])
            else:
                self._json({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files], "tags": []})

        def _file(self, revision: str, path: str) -> None:
            commit, files = by_revision.get(revision, ("", {}))
            if path not in files:
                self._missing("EntryNotFound")
                return
            self._send(
                files[path].encode(), "text/plain", {"X-Repo-Commit": commit, "ETag": f'"{_digest(files[path])}"'}
            )

        def _json(self, value: Any) -> None:
            self._send(json.dumps(value).encode(), "application/json", {})

        def _send(self, body: bytes, kind: str, headers: Mapping[str, str]) -> None:
            start = 0
            if wanted := self.headers.get("Range"):
                start, _, end = wanted.removeprefix("bytes=").partition("-")
                total, start = len(body), int(start)
                body = body[start : int(end) + 1 if end else None]
                headers = {**headers, "Content-Range": f"bytes {start}-{start + len(body) - 1}/{total}"}
            self.send_response(206 if wanted else 200)
            for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _missing(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with serving(Handler) as address:
        yield f"http://{address}", requested


def _entry(path: str, text: str) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(text.encode()), "oid": _digest(text)}


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()
