"""The process that loads one model and answers. Its exit frees the memory, and it exits with its parent.

It reads JSON lines from stdin: first a `chat_model.LoadRequest`, then `{"answer": n, "messages": …}` and `{"stop": n}`.
It writes JSON lines to the pipe whose descriptor is its argument: `{"ready": true}`, `{"answer": n, "text": …}` with
the complete text so far, `{"answer": n, "end": …}`, and `{"error": …}`.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import IO, Any

from alignment_core.config import ChatConfig
from alignment_core.errors import AlignmentError
from alignment_core.feedback.pages.chat_model import LoadRequest
from alignment_core.inference.loaded_model import LoadedModel


class _Requests:
    """Requests of the parent. A thread reads them, so a stop arrives while an answer is generated."""

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


def _answer(
    model: LoadedModel,
    settings: ChatConfig,
    request: dict[str, Any],
    send: Callable[[dict[str, Any]], None],
    stopped: threading.Event,
) -> str:
    """Send an answer token by token, and return why it ended."""
    answer = model.answer(
        request["messages"],
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        on_text=lambda text: send({"answer": request["answer"], "text": text}),
        stopping=stopped.is_set,
    )
    return answer.end


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    pipe = os.fdopen(int(sys.argv[1]), "wb", buffering=0)

    def send(event: dict[str, Any]) -> None:
        pipe.write(json.dumps(event).encode() + b"\n")

    loading = LoadRequest.model_validate_json(sys.stdin.buffer.readline())
    requests = _Requests(sys.stdin.buffer)
    try:
        model = LoadedModel(loading.parts, loading.device)
        send({"ready": True})
        while True:
            request = requests.waiting.get()
            requests.stopped.clear()
            end = _answer(model, loading.settings, request, send, requests.stopped)
            send({"answer": request["answer"], "end": end})
    except AlignmentError as error:
        send({"error": error.to_json()})
    except Exception as error:
        traceback.print_exc()
        send({"error": AlignmentError(f"the model failed: {type(error).__name__}: {error}").to_json()})


if __name__ == "__main__":
    main()
