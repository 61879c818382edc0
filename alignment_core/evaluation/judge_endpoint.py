"""A judge behind an OpenAI-compatible API.

The judge sees every two responses twice, the second time in swapped order. Its verdict counts only if both answers
agree, because judges prefer the response that is shown first (arXiv 2306.05685, section 3.4).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from alignment_core.chat_endpoint import ANSWER_TOKENS, ChatEndpoint, both_orders, conversation_text, verdict_of
from alignment_core.config import EndpointConfig
from alignment_core.errors import ConfigError
from alignment_core.progress import Progress, Stopped

LOOK_SECONDS = 0.2
"""How often the judge checks whether to stop."""


@dataclass(frozen=True)
class Question:
    """Two responses to one conversation."""

    prompt: Sequence[Mapping[str, Any]]
    ours: str
    theirs: str


@dataclass(frozen=True)
class Answer:
    """The judge's answer to one question.

    Attributes:
        verdict: 1 if ours is preferred, -1 if theirs is, 0 for a tie, None without a verdict.
        outcome: `agreed`, `disagreed` (a tie: the order decided), `bad_answer` or `unreachable` (no verdict).
        retries: total number of retries of the two requests.
    """

    verdict: int | None
    outcome: str
    retries: int


@dataclass(frozen=True)
class Answers:
    """The answers to all questions, in the same order."""

    answers: list[Answer]

    def counts(self) -> dict[str, int]:
        """Return the number of answers by outcome, and the total number of retries."""
        found = Counter(answer.outcome for answer in self.answers)
        outcomes = {name: found[name] for name in ("agreed", "disagreed", "bad_answer", "unreachable")}
        return {**outcomes, "retries": sum(answer.retries for answer in self.answers)}


class Endpoint:
    """The judge described by `settings`."""

    def __init__(self, settings: EndpointConfig, progress: Progress) -> None:
        self._settings = settings
        self._progress = progress
        self._chat = ChatEndpoint(settings, "evaluation.endpoint")

    def compare(self, questions: Sequence[Question], kept: Path) -> Answers:
        """Ask every question. Answers of an interrupted build are read from the file `kept` and not requested again.

        Raises:
            ConfigError: the server rejects the key, the model or the request, or no question got a verdict.
            Stopped: the stage was asked to stop. Pending answers are dropped.
        """
        known = _read(kept)
        with kept.open("a", encoding="utf-8") as file:
            file.write("\n")  # ends a line that a kill left incomplete
            asyncio.run(self._ask_all(questions, known, file))
        found = Answers([known[index] for index in range(len(questions))])
        self._report_lost(found)
        return found

    async def _ask_all(self, questions: Sequence[Question], known: dict[int, Answer], kept: IO[str]) -> None:
        at_once = asyncio.Semaphore(self._settings.parallel)
        async with self._chat.client() as client:

            async def ask(index: int) -> tuple[int, Answer]:
                async with at_once:
                    return index, await self._ask_twice(client, questions[index])

            tasks = [asyncio.create_task(ask(index)) for index in range(len(questions)) if index not in known]
            running = set(tasks)
            try:
                while running:
                    done, running = await asyncio.wait(
                        running, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        index, answer = task.result()
                        known[index] = answer
                        kept.write(json.dumps({"index": index, **asdict(answer)}) + "\n")
                        kept.flush()
                    self._progress.step(len(known), len(questions))
                    if self._progress.stopping:
                        raise Stopped
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _report_lost(self, found: Answers) -> None:
        counts = found.counts()
        bad, unanswered = counts["bad_answer"], counts["unreachable"]
        lost = bad + unanswered
        if lost and lost == len(found.answers):
            raise ConfigError(
                "the judge gave no verdict",
                where="evaluation.endpoint",
                got=f"unanswered questions: {unanswered}, answers without A, B or TIE: {bad}",
                do=f"Check that {self._settings.url} works, and check `evaluation.endpoint.instruction`",
            )
        if lost:
            self._progress.warn(f"the judge gave no verdict on {lost} of {len(found.answers)} prompts: {counts}")

    async def _ask_twice(self, client: httpx.AsyncClient, question: Question) -> Answer:
        retries, answers = 0, []
        for content in both_orders(conversation_text(question.prompt), question.ours, question.theirs):
            messages = [{"role": "system", "content": self._settings.instruction}, {"role": "user", "content": content}]
            reply = await self._chat.ask(client, messages, ANSWER_TOKENS)
            retries += reply.retries
            if reply.text is None:
                return Answer(None, "unreachable", retries)
            answers.append(reply.text)
        return Answer(*verdict_of(*answers), retries)


def _read(kept: Path) -> dict[int, Answer]:
    """Return the answers of an interrupted build. An incomplete line is skipped, so its question is asked again."""
    found: dict[int, Answer] = {}
    if kept.exists():
        for line in kept.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                index = entry.pop("index")
                found[index] = Answer(**entry)
            except (ValueError, TypeError, LookupError):
                continue
    return found
