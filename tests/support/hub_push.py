"""A Hugging Face hub on this machine, as far as one is written to: repositories, and commits of small files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

COMMIT = "c" * 40


@dataclass
class Received:
    """What a client did.

    Attributes:
        url: the hub's address.
        repositories: settings of every repository that was made, by its name.
        files: what was committed, by repository and path.
        tokens: every `Authorization` header.
    """

    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)


@contextmanager
def hub(*, denied: bool = False) -> Iterator[Received]:
    """A hub that takes models; `denied`: it knows the token, and it may not write."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.tokens.add(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if denied:
                self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                received.repositories[name] = asked
                self._send(200, {"url": f"{received.url}/{name}", "name": name, "id": name})
            elif self.path == "/api/validate-yaml":
                self._send(200, {"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                # Kept in git rather than in large-file storage, which is another protocol.
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                self._send(200, {"files": files})
            elif "/commit/" in self.path:
                name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
                self._commit(name, [json.loads(line) for line in body.splitlines()])
            else:
                self._send(404, {"error": self.path})

        def do_GET(self) -> None:
            self._send(404, {"error": self.path})

        do_HEAD = do_GET

        def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
            there = received.files.setdefault(name, {})
            for line in lines:
                if line["key"] == "file":
                    there[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._send(200, {"commitUrl": f"{received.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
