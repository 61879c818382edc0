"""A process that holds one model and answers: its memory is returned when it ends, and it ends with its parent.

Reads JSON lines from stdin: first what to load (`chat_model.Loading`), then `{"answer": n, "messages": …}` and
`{"stop": n}`. Writes JSON lines to the pipe named by its argument: `{"ready": true}`, `{"answer": n, "text": …}` with
all that was said so far, `{"answer": n, "end": …}`, and `{"error": …}`.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any

from alignment_core.artifacts.manifest import read_manifest
from alignment_core.data.rendering import Renderer, generation_stops, load_tokenizer
from alignment_core.errors import AlignmentError
from alignment_core.feedback.chat_model import Loading
from alignment_core.models.generate import Sampling, generate
from alignment_core.models.load import choose_device, load_base
from alignment_core.models.logps import Budget
from alignment_core.models.roles import Roles
from alignment_core.plugin_api import TokenSequence

UNFINISHED = "\ufffd"
"""What a token that is only a part of a character decodes to."""


class _Stop(Exception):
    """The person has read enough."""


class Voice:
    """A loaded model that answers one conversation at a time."""

    def __init__(self, loading: Loading) -> None:
        folder = Path(loading.folder)
        manifest = read_manifest(folder)
        config, model = manifest.config, manifest.inputs["model"]
        self._settings = loading.settings
        self._renderer = Renderer(
            load_tokenizer(model["path"], model["revision"]),
            chat_template=config["chat_template"],
            max_length=config["max_length"],
            generation_stops=generation_stops(model["path"], model["revision"]),
        )
        device = choose_device(loading.device)
        base = load_base(model["path"], revision=model["revision"], load_in=config["load_in"], device=device)
        self._roles = Roles(base, model["path"], model["revision"])
        self._roles.add_saved("policy", folder)

    def answer(self, number: int, messages: list[dict[str, Any]], say: Any, stopped: threading.Event) -> str:
        """Say an answer token by token; returns why it ended: `finished`, `length` or `stopped`."""
        prompt = self._renderer.prompt(tuple(messages))
        spoken: list[int] = []

        def heard(_: int, token: int) -> None:
            spoken.append(token)
            # All of it each time: a token can complete a character that an earlier one began.
            say({"answer": number, "text": self._renderer.decode(spoken).rstrip(UNFINISHED)})

        def tick(_: int) -> None:
            if stopped.is_set():
                raise _Stop

        try:
            self._generate(prompt, heard, tick)
        except _Stop:
            return "stopped"
        return "finished" if spoken and spoken[-1] in self._renderer.stop_ids else "length"

    def _generate(self, prompt: TokenSequence, heard: Any, tick: Any) -> None:
        settings = self._settings
        generate(
            self._roles,
            "policy",
            [prompt],
            noise_keys=[os.urandom(16).hex()],  # asked again, it answers anew
            sampling=Sampling(settings.max_new_tokens, settings.temperature, settings.top_p),
            stop_ids=self._renderer.stop_ids,
            pad_id=self._renderer.pad_id,
            budget=Budget(len(prompt.ids) + settings.max_new_tokens),
            tick=tick,
            heard=heard,
        )


class _Requests:
    """What the parent asks for. A thread reads it, so that a stop arrives while an answer is being given."""

    def __init__(self, lines: IO[bytes]) -> None:
        self.waiting: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stopped = threading.Event()
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()

    def _read(self, lines: IO[bytes]) -> None:
        for line in lines:
            request = json.loads(line)
            if "stop" in request:
                self.stopped.set()
            else:
                self.waiting.put(request)
        os._exit(0)  # the parent is gone


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    pipe = os.fdopen(int(sys.argv[1]), "wb", buffering=0)

    def say(event: dict[str, Any]) -> None:
        pipe.write(json.dumps(event).encode() + b"\n")

    loading = Loading.model_validate_json(sys.stdin.buffer.readline())
    requests = _Requests(sys.stdin.buffer)
    try:
        voice = Voice(loading)
        say({"ready": True})
        while True:
            request = requests.waiting.get()
            requests.stopped.clear()
            end = voice.answer(request["answer"], request["messages"], say, requests.stopped)
            say({"answer": request["answer"], "end": end})
    except AlignmentError as error:
        say({"error": error.to_json()})
    except Exception as error:
        traceback.print_exc()
        say({"error": AlignmentError(f"the model failed: {type(error).__name__}: {error}").to_json()})


if __name__ == "__main__":
    main()
