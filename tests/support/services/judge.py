"""A small server that acts as a judge with an OpenAI-compatible API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_server import serving

Reply = tuple[int, dict[str, str], str]


def reply_with(word: str) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": word}}]})


class Judge:
    """Answers each request with `reply(first response, second response, number of the request)`."""

    def __init__(self) -> None:
        self.reply: Callable[[str, str, int], Reply] = lambda first, second, number: reply_with("TIE")
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    def prefers(self, word: str) -> None:
        """Prefer the response that contains this word, in either position."""
        self.reply = lambda first, second, number: reply_with(
            "A" if word in first else "B" if word in second else "TIE"
        )


@contextmanager
def playing() -> Iterator[tuple[Judge, str]]:
    """Start a judge. Yield the judge and its address."""
    played = Judge()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            played.requests.append({"path": self.path, **body})
            played.keys.append(self.headers["authorization"])
            content = body["messages"][-1]["content"]
            first, second = content.split("[response A]\n")[1].split("\n\n[response B]\n")
            status, headers, text = played.reply(first, second, len(played.requests))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with serving(Handler) as address:
        yield played, f"http://{address}/v1"
