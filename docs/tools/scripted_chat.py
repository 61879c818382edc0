"""Serve the chat page with models that give written answers, for its pictures: `scripted_chat.py FOLDER --port 0`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

from alignment_core.config import ChatConfig
from alignment_core.feedback import open_feedback
from alignment_core.feedback.pages import web
from alignment_core.feedback.pages.chat_model import PartialAnswer
from alignment_core.feedback.pages.chat_models import ChatModels

ANSWERS = {
    "production": [
        "Give it six hours of light, water it when the top of the soil is dry, and pinch off the tips every week.",
        "In winter it wants a warm window and less water. If the leaves turn yellow, move it closer to the light.",
    ],
    "base": [
        "Basil is a herb. Basil is grown in many countries. Basil is a herb that people like to grow.",
        "Winter is the coldest season of the year. Basil is a plant.",
    ],
}
LABELS = {"production": "production: kto 3f2a1b90", "base": "base: SmolLM2-135M-Instruct"}
SLOW = "Wait"
"""A question that begins so is never answered."""


class Scripted:
    """A model with written answers, with the interface of `ChatModel`."""

    is_loaded = is_answering = False

    def __init__(self, reference: str) -> None:
        self.reference, self.label = reference, LABELS[reference]

    def refresh(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def answer(
        self, messages: Sequence[dict[str, Any]], on_wait: Callable[[str], None]
    ) -> AsyncGenerator[PartialAnswer]:
        asked = [message["content"] for message in messages if message["role"] == "user"]
        if asked[-1].startswith(SLOW):
            on_wait("it is being loaded")
            await asyncio.sleep(3600)
        yield PartialAnswer(ANSWERS[self.reference][(len(asked) - 1) % 2], self.reference)


def main(folder: Path, port: int) -> None:
    models = ChatModels(["production", "base"], Scripted, lambda: list(LABELS))  # type: ignore[arg-type]
    with open_feedback(str(folder / "feedback.db")) as store:
        from alignment_core.feedback.pages.chat import chat_page

        page = chat_page(models, store, ChatConfig())
        web.serve(page, title="Chat", host="127.0.0.1", port=port, state=folder / "state", close=models.close)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[3]))
