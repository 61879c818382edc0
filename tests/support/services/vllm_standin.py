"""A small server that acts as vLLM: token ids in and out, adapters loaded from folders, and its errors."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from local_server import serving
from safetensors.torch import load_file

VOCABULARY = 250


class StandIn:
    """Answers with random tokens, which depend on the seed, the prompt and the weights of the adapter.

    Attributes:
        base: the model that it was started with.
        longest: its context.
        lora: whether it loads adapters while it runs.
        adapters: the weights of each loaded adapter, summed.
        loaded: the adapters that were loaded, with their sums.
        requests: the bodies of all requests for completions.
        change: keys of a choice to replace.
        pause: seconds before every completion.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        self.longest = 4096
        self.lora = True
        self.adapters: dict[str, float] = {}
        self.loaded: list[tuple[str, float]] = []
        self.requests: list[dict[str, Any]] = []
        self.change: dict[str, Any] = {}
        self.pause = 0.0

    def models(self) -> dict[str, Any]:
        base = {"id": "served", "root": self.base, "parent": None, "max_model_len": self.longest}
        adapters = [{"id": name, "root": "/", "parent": "served", "max_model_len": None} for name in self.adapters]
        return {"object": "list", "data": [base, *adapters]}

    def load(self, body: dict[str, Any]) -> tuple[int, str]:
        folder = Path(body["lora_path"])
        if not (folder / "adapter_config.json").exists():
            return 404, error(f"Loading lora {body['lora_name']} failed: No adapter found for {folder}", 404)
        weights = load_file(folder / "adapter_model.safetensors")
        self.adapters[body["lora_name"]] = sum(float(weight.sum()) for weight in weights.values())
        self.loaded.append((body["lora_name"], self.adapters[body["lora_name"]]))
        return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."

    def complete(self, body: dict[str, Any]) -> tuple[int, str]:
        self.requests.append(body)
        if body["model"] not in ("served", *self.adapters):
            return 404, error(f"The model `{body['model']}` does not exist.", 404)
        time.sleep(self.pause)
        rng = random.Random(repr((body["seed"], body["prompt"], self.adapters.get(body["model"]))))
        ids: list[int] = []
        while len(ids) < body["max_tokens"] and not set(ids[-1:]) & set(body["stop_token_ids"]):
            ids.append(rng.randrange(3, VOCABULARY))
        stopped = ids[-1] in body["stop_token_ids"]
        choice = {"index": 0, "text": "", "finish_reason": "stop" if stopped else "length"}
        if body["return_token_ids"]:
            choice |= {"token_ids": ids, "prompt_token_ids": body["prompt"]}
        return 200, json.dumps({"object": "text_completion", "choices": [choice | self.change]})


def error(message: str, code: int) -> str:
    return json.dumps({"error": {"message": message, "type": "BadRequestError", "param": None, "code": code}})


@contextmanager
def standing_in(base: str) -> Iterator[tuple[StandIn, str]]:
    """Start a server for this base model. Yield it and its address."""
    server_state = StandIn(base)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, json.dumps(server_state.models()))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/v1/completions":
                self._answer(*server_state.complete(body))
            elif not server_state.lora:
                self._answer(404, '{"detail":"Not Found"}')
            elif self.path == "/v1/load_lora_adapter":
                self._answer(*server_state.load(body))
            else:
                server_state.adapters.pop(body["lora_name"])
                self._answer(200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully.")

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with serving(Handler) as address:
        yield server_state, f"http://{address}/v1"
