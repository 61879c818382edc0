"""A model that answers on the chat page, loaded in a separate process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import IO, Any

from pydantic import BaseModel, ConfigDict

from alignment_core.config import ChatConfig
from alignment_core.errors import AlignmentError, StageCrashed
from alignment_core.inference.model_parts import ModelParts, NamedModel
from alignment_core.processes.start import environment

LOG_LINES = 8
STOP_SECONDS = 5.0
LONGEST_LINE = 16 * 1024 * 1024


class LoadRequest(BaseModel):
    """The first request to the process: the model to load.

    Attributes:
        parts: what the model is loaded from.
        device: as in the settings of a run.
        settings: the chat settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: ModelParts
    device: str
    settings: ChatConfig


@dataclass(frozen=True, slots=True)
class PartialAnswer:
    """The text of an answer so far, and the key of the model that generates it."""

    text: str
    model: str


class ChatModel:
    """Answers with the model that `find` currently returns. A promotion takes effect with the next answer.

    Answers are generated one at a time. Other requests wait.
    """

    def __init__(self, reference: str, find: Callable[[], NamedModel], device: str, settings: ChatConfig) -> None:
        """
        Args:
            reference: how the user named the model, such as `production`.
            find: returns the model with that name.
            device: as in the settings of a run.
            settings: the chat settings.

        Raises:
            ArtifactError: there is no such model.
        """
        self.reference = reference
        self._find, self._device, self._settings = find, device, settings
        self._turn = asyncio.Lock()
        self._process: _Process | None = None
        self._model = find()

    @property
    def label(self) -> str:
        """How the page names the model."""
        return self._model.label

    @property
    def is_loaded(self) -> bool:
        """Whether a process holds the model."""
        return self._process is not None and not self._process.ended

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being generated, or the model is being loaded for one."""
        return self._turn.locked()

    def refresh(self) -> None:
        """Find the model again.

        Raises:
            ArtifactError: there is no such model.
        """
        self._model = self._find()

    async def answer(
        self, messages: Sequence[dict[str, Any]], on_wait: Callable[[str], None] = lambda reason: None
    ) -> AsyncGenerator[PartialAnswer]:
        """Yield the answer while it is generated. Closing the generator stops the model.

        Args:
            messages: the conversation.
            on_wait: called with what the answer waits for.

        Raises:
            AlignmentError: the model does not load, or its process exited. The next answer starts a new process.
        """
        if self._turn.locked():
            on_wait("it answers another message first")
        async with self._turn:
            self.refresh()
            if self._process is None or self._process.ended or self._process.model != self._model:
                on_wait("it is being loaded")
            key, process = self._model.key, await self._running()
            on_wait("it reads the conversation")
            try:
                async with aclosing(process.answer(list(messages))) as texts:
                    async for text in texts:
                        yield PartialAnswer(text, key)
            except (AlignmentError, OSError):
                await self._end()
                raise

    async def close(self) -> None:
        """Terminate the process."""
        await self._end()

    async def _running(self) -> _Process:
        if self._process is not None and (self._process.model != self._model or self._process.ended):
            await self._end()
        if self._process is None:
            self._process = await _Process.start(self._model, self._device, self._settings)
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.end()


class _Process:
    """Handle of the model process in the parent."""

    def __init__(
        self, model: NamedModel, child: asyncio.subprocess.Process, events: asyncio.StreamReader, log: IO[bytes]
    ) -> None:
        self.model, self._child, self._events, self._log = model, child, events, log
        self._answers = 0

    @classmethod
    async def start(cls, model: NamedModel, device: str, settings: ChatConfig) -> _Process:
        reading, writing = os.pipe()
        log = tempfile.TemporaryFile()  # noqa: SIM115 - open while the process runs; its last lines explain a crash
        try:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "alignment_core.feedback.pages.chat_process", str(writing)),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                env=environment(),
            )
        finally:
            os.close(writing)
        events = asyncio.StreamReader(limit=LONGEST_LINE)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(events), os.fdopen(reading, "rb")
        )
        process = cls(model, child, events, log)
        loading = LoadRequest(parts=model.parts, device=device, settings=settings)
        await process._send(loading.model_dump(mode="json"))
        try:
            await process._next()
        except BaseException:
            await process.end()
            raise
        return process

    @property
    def ended(self) -> bool:
        return self._child.returncode is not None

    async def answer(self, messages: list[dict[str, Any]]) -> AsyncGenerator[str]:
        self._answers += 1
        number = self._answers
        await self._send({"answer": number, "messages": messages})
        over = False
        try:
            while True:
                event = await self._next()
                if "end" in event:
                    over = True
                    return
                yield event["text"]
        finally:
            if not over and not self.ended:
                await self._stop(number)

    async def _stop(self, number: int) -> None:
        """Stop an answer early and discard its remaining events."""
        with suppress(AlignmentError, OSError):
            await self._send({"stop": number})
            while "end" not in await self._next():
                pass

    async def end(self) -> None:
        if not self.ended:
            self._child.terminate()
            try:
                await asyncio.wait_for(self._child.wait(), STOP_SECONDS)
            except TimeoutError:
                self._child.kill()
                await self._child.wait()
        self._log.close()

    async def _send(self, request: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        with suppress(ConnectionError):  # the process has exited: `_next` reports the reason
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            await self._child.stdin.drain()

    async def _next(self) -> dict[str, Any]:
        line = await self._events.readline()
        if not line:
            code = await self._child.wait()
            raise StageCrashed(
                f"the model process exited with code {code}",
                where=self.model.label,
                do=f"End of its log:\n{self._log_tail()}",
            )
        event: dict[str, Any] = json.loads(line)
        if "error" in event:
            raise AlignmentError.from_json(event["error"])
        return event

    def _log_tail(self) -> str:
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-LOG_LINES:])
