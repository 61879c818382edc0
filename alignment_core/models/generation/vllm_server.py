"""Requests to vLLM's OpenAI-compatible server: its models, its LoRA adapters and completions of token ids.

Written for the interface of vLLM 0.10.2 and later, the first with `return_token_ids`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from alignment_core.config import VllmConfig
from alignment_core.errors import ConfigError, ModelError

WHERE = "vllm.url"
START = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {base} --enable-lora --max-lora-rank RANK"


@dataclass(frozen=True)
class ServedModel:
    """The base model of the server.

    Attributes:
        name: what requests call it.
        longest: most tokens of a prompt and its response; None if the server does not say.
    """

    name: str
    longest: int | None


class VllmServer:
    """A running server. Every error says what to change about it."""

    def __init__(self, settings: VllmConfig, base: str) -> None:
        """
        Args:
            settings: where the server is.
            base: folder or Hub id of the base model that it has to serve.
        """
        self.settings, self.base = settings, base
        self.start = START.format(base=base)

    def client(self) -> httpx.AsyncClient:
        """Return a client for as many requests at a time as the settings allow."""
        limits = httpx.Limits(max_connections=self.settings.parallel)
        timeout = httpx.Timeout(self.settings.timeout_seconds, pool=None)
        return httpx.AsyncClient(base_url=self.settings.url.rstrip("/") + "/", limits=limits, timeout=timeout)

    async def model(self, client: httpx.AsyncClient) -> ServedModel:
        """Return the base model.

        Raises:
            ConfigError: there is no server at the address, or it serves another model.
        """
        served = (await self._send(client, "GET", "models")).get("data", [])
        bases = [one for one in served if not one.get("parent")]
        for one in bases:
            if self.base in (one.get("root"), one["id"]):
                return ServedModel(one["id"], one.get("max_model_len"))
        raise ConfigError(
            "the vLLM server serves another base model",
            where=WHERE,
            got=", ".join(str(one.get("root") or one["id"]) for one in bases) or "none",
            expected=self.base,
            do=f"Start it with `{self.start}`",
        )

    async def load_adapter(self, client: httpx.AsyncClient, name: str, folder: str) -> None:
        """Load a PEFT folder, which the server must be able to read at the same path, under this name.

        Raises:
            ConfigError: the server cannot load adapters, or not this one.
        """
        answer = await self._reach(client, "POST", "load_lora_adapter", {"lora_name": name, "lora_path": folder})
        if answer.status_code in (404, 405):
            raise ConfigError(
                "the vLLM server does not load adapters while it runs", where=WHERE, do=f"Start it with `{self.start}`"
            )
        if answer.is_error:
            raise ConfigError(
                "the vLLM server does not load the adapter",
                where=WHERE,
                got=_message(answer),
                do=f"Start it with `{self.start}`, on a machine that reads {folder}, or leave `vllm` unset",
            )

    async def unload_adapter(self, client: httpx.AsyncClient, name: str) -> None:
        """Remove an adapter. A server that is gone has none."""
        await client.post("unload_lora_adapter", json={"lora_name": name})

    async def complete(self, client: httpx.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
        """Return the only choice of a completion.

        Raises:
            ConfigError: the server is gone, did not answer in time, or rejects the request.
        """
        answer = await self._send(client, "POST", "completions", request)
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    async def _send(self, client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = await self._reach(client, method, path, body)
        found = None if answer.is_error else _parsed(answer)
        if not isinstance(found, dict):
            raise ConfigError(
                f"the vLLM server rejects a request for `/{path}`",
                where=WHERE,
                got=f"HTTP {answer.status_code}: {_message(answer)}",
                do="Check the address, which ends with /v1, and the log of the server",
            )
        return found

    async def _reach(self, client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            return await client.request(method, path, json=body)
        except httpx.TimeoutException as error:
            raise ConfigError(
                f"the vLLM server did not answer within {self.settings.timeout_seconds:g} seconds",
                where=WHERE,
                do="Check its log, or raise `vllm.timeout_seconds`",
            ) from error
        except httpx.HTTPError as error:
            raise ConfigError(
                "the vLLM server does not answer",
                where=WHERE,
                got=f"{self.settings.url}: {error}",
                do=f"Start it with `{self.start}`, or leave `vllm` unset",
            ) from error


def tokens_of(choice: dict[str, Any], prompt: tuple[int, ...], longest: int, stop_ids: set[int]) -> tuple[int, ...]:
    """Return the token ids of a completion after checking that it is complete.

    Args:
        choice: the answer.
        prompt: the ids that were asked to be completed.
        longest: the tokens that were asked for.
        stop_ids: tokens that end a response.

    Raises:
        ModelError: the answer has no token ids, is cut off, or continues another prompt.
    """
    ids, reason = choice.get("token_ids"), choice.get("finish_reason")
    if not isinstance(ids, list):
        raise ModelError(
            "the answers of the vLLM server have no token ids", where=WHERE, do="Install vLLM 0.10.2 or newer there"
        )
    read = choice.get("prompt_token_ids")
    if read is not None and tuple(read) != prompt:
        raise ModelError(
            "the vLLM server changed a prompt", where=WHERE, got=f"{len(read)} tokens", expected=f"{len(prompt)} tokens"
        )
    stopped = bool(ids) and ids[-1] in stop_ids
    if not (stopped and reason == "stop") and not (len(ids) == longest and reason == "length"):
        raise ModelError(
            "the vLLM server cut an answer off",
            where=WHERE,
            got=f"{len(ids)} tokens, finish_reason {reason}",
            expected=f"{longest} tokens or a stop token",
            do="Check the log of the server, and its --max-model-len",
        )
    return tuple(ids)


def _message(answer: httpx.Response) -> str:
    """Return the message of an error as vLLM writes it, or the text of another server."""
    body = _parsed(answer)
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or answer.text.strip()[:500])


def _parsed(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None
