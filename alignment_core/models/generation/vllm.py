"""Sample with a vLLM server: it gets the role's adapter before every rollout, and answers with token ids."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from alignment_core.config import VllmConfig
from alignment_core.errors import ConfigError
from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.response import Response
from alignment_core.models.generation.vllm_server import WHERE, VllmServer, tokens_of
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence
from alignment_core.ranks import ALONE, Ranks
from alignment_core.seeds import seed_of
from alignment_core.temporary import temporary_folder

LOOK_SECONDS = 0.2
"""Seconds between two checks of whether to stop."""


@dataclass(frozen=True)
class VllmEngine:
    """Samples with a server.

    Its noise is not ours: a row's seed depends only on its key, but vLLM's numbers may differ with the other requests.
    Log-probabilities are not taken from it.

    Attributes:
        settings: where the server is.
        base: folder or Hub id of the base model.
        roles: whose adapters are sampled.
        stop_ids: tokens that end a response.
        ranks: the processes that share the stage. Rank 0 alone asks the server.
    """

    settings: VllmConfig
    base: str
    roles: Roles
    stop_ids: Sequence[int]
    ranks: Ranks = ALONE

    def generate(
        self,
        role: str,
        prompts: Sequence[TokenSequence],
        sampling: Sampling,
        noise_keys: Sequence[str],
        on_step: Callable[[float], None],
    ) -> list[Response]:
        """Sample one response per prompt (`Engine`).

        Raises:
            ConfigError: the server is not there, serves another model or refuses the adapter.
            ModelError: an answer is incomplete.
        """
        rollout = _Rollout(self, prompts, sampling, noise_keys, on_step)
        return self.ranks.from_first("responses of vLLM", lambda: self._ask(role, rollout))

    def _ask(self, role: str, rollout: _Rollout) -> list[Response]:
        with temporary_folder("adapter") as folder:
            adapter = folder if role in self.roles.adapters else None
            if adapter is not None:
                self.roles.save(role, adapter)
            return asyncio.run(rollout.sample(adapter))


@dataclass(frozen=True)
class _Rollout:
    engine: VllmEngine
    prompts: Sequence[TokenSequence]
    sampling: Sampling
    noise_keys: Sequence[str]
    on_step: Callable[[float], None]

    async def sample(self, adapter: Path | None) -> list[Response]:
        server = VllmServer(self.engine.settings, self.engine.base)
        async with server.client() as client:
            model = await server.model(client)
            self._check_length(model.longest)
            if adapter is None:
                return await self._all(server, client, model.name)
            # A name of its own, because vLLM keeps what it computed from prompts under the name of an adapter.
            name = f"alignment-{uuid.uuid4().hex}"
            await server.load_adapter(client, name, str(adapter))
            try:
                return await self._all(server, client, name)
            finally:
                with suppress(httpx.HTTPError):
                    await server.unload_adapter(client, name)

    async def _all(self, server: VllmServer, client: httpx.AsyncClient, name: str) -> list[Response]:
        async def one(i: int) -> Response:
            prompt = self.prompts[i].ids
            choice = await server.complete(client, self._request(i, name))
            stops = set(self.engine.stop_ids)
            response = tokens_of(choice, prompt, self.sampling.max_new_tokens, stops)
            return Response(TokenSequence((*prompt, *response), len(prompt)))

        tasks = [asyncio.create_task(one(i)) for i in range(len(self.prompts))]
        running = set(tasks)
        try:
            while running:
                self.on_step(len(tasks) - len(running))
                done, running = await asyncio.wait(running, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.on_step(len(tasks))
        return [task.result() for task in tasks]

    def _request(self, i: int, name: str) -> dict[str, Any]:
        """Return the request for one response. A request has one seed, so responses cannot share one.

        Everything that vLLM would otherwise take from the model's `generation_config.json` is given.
        """
        sampling = self.sampling
        return {
            "model": name,
            "prompt": list(self.prompts[i].ids),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed_of(self.noise_keys[i]),
            "stop_token_ids": list(self.engine.stop_ids),
            "ignore_eos": True,  # only the stop ids end a response
            "skip_special_tokens": False,
            "return_token_ids": True,
        }

    def _check_length(self, longest: int | None) -> None:
        needed = max(len(prompt.ids) for prompt in self.prompts) + self.sampling.max_new_tokens
        if longest is not None and needed > longest:
            raise ConfigError(
                "the vLLM server reads fewer tokens than a prompt and its response have",
                where=WHERE,
                got=longest,
                expected=f"at least {needed}",
                do=f"Start it with --max-model-len {needed}",
            )
