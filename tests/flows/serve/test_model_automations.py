"""The automations of docs/how-to/automate-on-models.md: a promotion calls a webhook and runs a deployment."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from served import ALIGN, Served, until
from stored import add, named

from alignment_core.artifacts import ArtifactStore

A = named("a")

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "automate-on-models.md"
SCRIPT = re.compile(r'^```python title="([^"]+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)


@contextmanager
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the address of a web server and the list of JSON objects that were posted to it."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_promotion_calls_a_webhook_and_runs_a_deployment(served: Served, tmp_path: Path) -> None:
    """The deployment is `promote/promote`, which gives the model an alias that it already has."""
    add(ArtifactStore(tmp_path), A)
    scripts = dict(SCRIPT.findall(PAGE.read_text(encoding="utf-8")))
    with receiver() as (address, received):
        for script in (scripts["webhook.py"], scripts["deployment.py"]):
            text = script.replace("https://hooks.example.com/models", address)
            text = text.replace("serve/production", "promote/promote")
            done = served.run([sys.executable, "-P", "-c", text])
            assert done.returncode == 0, done.stderr
        try:
            promoted = served.run(ALIGN, "promote", A, "--reason", 'a "good" one', "--store", tmp_path)
            warning = f"align: the model optimize/{A[:12]} was not judged by a gate\n"
            assert (promoted.returncode, promoted.stderr) == (0, warning)
            chosen = {"event": {"prefix": ["alignment.model", "prefect.automation"]}}
            until(
                lambda: received and served.runs_of("promote/promote"),
                lambda: served.post("events/filter", filter=chosen),
            )
        finally:
            for name in ("models: tell the team", "models: serve the new one"):
                served.delete(f"automations/{served.automation(name)['id']}")
    assert received == [
        {"text": f'production: {A} (a "good" one)', "event": "alignment.model.promoted", "gate": None},
    ]
    (run,) = served.runs_of("promote/promote")
    assert run["parameters"].items() >= {"model": A, "store": str(tmp_path), "alias": "production"}.items()
    assert served.ended(run["id"])["type"] == "COMPLETED", served.state_and_log(run["id"])
