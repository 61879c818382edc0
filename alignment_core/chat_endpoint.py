"""Ask a model behind an OpenAI-compatible API, several questions at a time.

This module imports httpx when it is used, because the plugin API exports it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignment_core.addresses import HIDDEN
from alignment_core.config.evaluation import ChatEndpointSettings
from alignment_core.errors import ConfigError

if TYPE_CHECKING:
    import httpx

AGAIN = (408, 409, 425, 429)
"""Status codes that are retried, in addition to server errors (5xx)."""
LONGEST_PAUSE = 60.0
FIRST_PAUSE = 1.0
ANSWER_TOKENS = 16
"""Length of an answer of one word."""
SAYS = {"A": 1, "B": -1, "TIE": 0}


@dataclass(frozen=True)
class Reply:
    """The answer to one question.

    Attributes:
        text: what the model wrote, or None if every try failed.
        retries: number of tries after the first.
    """

    text: str | None
    retries: int


class ChatEndpoint:
    """A model behind an OpenAI-compatible API.

    Args:
        settings: where it is and how to ask.
        where: the setting that an error names.
    """

    def __init__(self, settings: ChatEndpointSettings, where: str) -> None:
        self._settings, self._where = settings, where
        self._url = settings.url.rstrip("/") + "/chat/completions"

    def ask_all(self, conversations: Sequence[Sequence[Mapping[str, Any]]], max_tokens: int) -> list[Reply]:
        """Return the reply to each conversation, in order.

        Raises:
            ConfigError: the server rejects the key, the model or the request.
        """
        return asyncio.run(self._ask_all(conversations, max_tokens))

    async def _ask_all(self, conversations: Sequence[Sequence[Mapping[str, Any]]], max_tokens: int) -> list[Reply]:
        at_once = asyncio.Semaphore(self._settings.parallel)
        async with self.client() as client:

            async def ask(conversation: Sequence[Mapping[str, Any]]) -> Reply:
                async with at_once:
                    return await self.ask(client, conversation, max_tokens)

            return list(await asyncio.gather(*map(ask, conversations)))

    def client(self) -> httpx.AsyncClient:
        """Return a client with the key from the environment. Close it after use."""
        import httpx

        key = os.environ.get(self._settings.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(headers=headers, timeout=self._settings.timeout_seconds)

    async def ask(self, client: httpx.AsyncClient, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> Reply:
        """Return the reply to a conversation. Timeouts, rate limits and server errors are retried.

        Raises:
            ConfigError: the server rejects the key, the model or the request.
        """
        import httpx

        body = {"model": self._settings.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        for tried in range(self._settings.retries + 1):
            pause = min(FIRST_PAUSE * 2**tried, LONGEST_PAUSE)
            try:
                response = await client.post(self._url, json=body)
            except httpx.InvalidURL as error:
                raise self._refused(str(error)) from error
            except httpx.TransportError:
                pass
            else:
                if response.is_success:
                    return Reply(_content(response), tried)
                if response.status_code < 500 and response.status_code not in AGAIN:
                    raise self._refused(f"{response.status_code} {self._without_key(response.text)[:200]}")
                pause = min(_asked_pause(response, pause), LONGEST_PAUSE)
            if tried < self._settings.retries:
                await asyncio.sleep(pause)
        return Reply(None, tried)

    def _without_key(self, text: str) -> str:
        """Return the text of a response without the API key, which some servers repeat."""
        key = os.environ.get(self._settings.key_variable)
        return text.replace(key, HIDDEN) if key else text

    def _refused(self, got: str) -> ConfigError:
        return ConfigError(
            "the judge rejected the request",
            where=self._where,
            got=got,
            do=f"Check `url`, `model`, and the API key in the environment variable {self._settings.key_variable}",
        )


def conversation_text(prompt: Sequence[Mapping[str, Any]], sections: Sequence[tuple[str, str]] = ()) -> str:
    """Return a conversation as a judge reads it, followed by sections: pairs of a heading and a text."""
    parts = [*((turn["role"], turn["content"]) for turn in prompt), *sections]
    return "\n\n".join(f"[{heading}]\n{text}" for heading, text in parts)


def both_orders(conversation: str, a: str, b: str) -> tuple[str, str]:
    """Return two questions about two responses to a conversation: `a` is shown first, then `b` is.

    Judges prefer the response that is shown first (arXiv 2306.05685, section 3.4).
    """
    straight, swapped = (
        f"{conversation}\n\n[response A]\n{first}\n\n[response B]\n{second}" for first, second in ((a, b), (b, a))
    )
    return straight, swapped


def verdict_of(straight: str, swapped: str) -> tuple[int | None, str]:
    """Return the verdict of the answers to the questions of `both_orders`, and its outcome.

    The verdict is 1 if both answers prefer `a`, -1 if both prefer `b`, else 0. It is None if an answer names none of A,
    B and TIE, or several. The outcome is `agreed`, `disagreed` (the order decided) or `bad_answer`.
    """
    first, second = _choice(straight), _choice(swapped)
    if first is None or second is None:
        return None, "bad_answer"
    return (first, "agreed") if first == -second else (0, "disagreed")


def _choice(answer: str) -> int | None:
    """Return 1 for A, -1 for B, 0 for a tie, and None if the answer names none of them or several."""
    choices = set(re.findall(r"(?<![A-Za-z])(A|B|TIE|Tie|tie)(?![A-Za-z])", answer))
    return SAYS[choices.pop().upper()] if len(choices) == 1 else None


def _content(response: httpx.Response) -> str:
    """Return the text of the response, or an empty string if the response is malformed."""
    try:
        return str(response.json()["choices"][0]["message"]["content"])
    except (ValueError, LookupError, TypeError):
        return ""


def _asked_pause(response: httpx.Response, otherwise: float) -> float:
    """Return the number of seconds that the server asks to wait, or `otherwise` if it does not."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return otherwise
