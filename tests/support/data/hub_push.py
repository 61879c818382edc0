"""A local Hugging Face Hub that accepts uploads: repositories, and commits of small files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_server import serving

COMMIT = "c" * 40


@dataclass
class Received:
    """The requests of a client.

    Attributes:
        url: the hub's address.
        repositories: settings of every repository created, by its name.
        files: contents of committed files, by repository and path.
        tokens: every `Authorization` header.
    """

    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)


@contextmanager
def hub(*, denied: bool = False) -> Iterator[Received]:
    """Serve a hub that accepts models. If `denied`, the token is valid but may not write."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.tokens.add(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if denied:
                self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
            elif self.path == "/api/repos/create":
                settings = json.loads(body)
                name = f"{settings['organization']}/{settings['name']}"
                received.repositories[name] = settings
                self._send(200, {"url": f"{received.url}/{name}", "name": name, "id": name})
            elif self.path == "/api/validate-yaml":
                self._send(200, {"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                # Stored in git rather than in large-file storage, which uses another protocol.
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
            committed = received.files.setdefault(name, {})
            for line in lines:
                if line["key"] == "file":
                    committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
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

    with serving(Handler) as address:
        received.url = f"http://{address}"
        yield received
