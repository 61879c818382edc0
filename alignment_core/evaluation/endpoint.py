"""A judge behind an OpenAI-compatible address.

It is shown each two responses twice, the second time with their places swapped, and its verdict counts only where both
answers say the same: judges prefer what stands first (arXiv 2306.05685, section 3.4).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from alignment_core.config import EndpointConfig
from alignment_core.errors import ConfigError
from alignment_core.progress import Progress, Stopped

AGAIN = (408, 409, 425, 429)
"""Refusals that another try may overcome, besides the server's own faults (5xx)."""
LONGEST_PAUSE = 60.0
FIRST_PAUSE = 1.0
LOOK_SECONDS = 0.2
"""How often it looks whether it shall stop."""
ANSWER_TOKENS = 16
SAYS = {"A": 1, "B": -1, "TIE": 0}


@dataclass(frozen=True)
class Question:
    """Two responses to one conversation."""

    prompt: Sequence[Mapping[str, Any]]
    ours: str
    theirs: str


@dataclass(frozen=True)
class Answer:
    """What the judge makes of one question.

    Attributes:
        verdict: 1 where ours is preferred, -1 where theirs is, 0 for a tie; None where there is no verdict.
        outcome: `agreed`, `disagreed` (a tie: the order decided), `bad_answer` or `unreachable` (no verdict).
        retries: further tries that the two requests took.
    """

    verdict: int | None
    outcome: str
    retries: int


@dataclass(frozen=True)
class Answers:
    """The answers to all questions, in their order."""

    answers: list[Answer]

    def counts(self) -> dict[str, int]:
        """How often each outcome occurred, and how many further tries it took."""
        found = Counter(answer.outcome for answer in self.answers)
        outcomes = {name: found[name] for name in ("agreed", "disagreed", "bad_answer", "unreachable")}
        return {**outcomes, "retries": sum(answer.retries for answer in self.answers)}


class Endpoint:
    """The judge that `settings` describe."""

    def __init__(self, settings: EndpointConfig, progress: Progress) -> None:
        self._settings = settings
        self._progress = progress
        self._url = settings.url.rstrip("/") + "/chat/completions"

    def compare(self, questions: Sequence[Question], kept: Path) -> Answers:
        """Ask every question; answers that `kept` has from an interrupted build are not paid for again.

        Raises:
            ConfigError: the address refuses the key, the model or the request, or not one question got a verdict.
            Stopped: the stage was asked to stop; what the judge has not answered by then is not waited for.
        """
        known = _read(kept)
        with kept.open("a", encoding="utf-8") as file:
            file.write("\n")  # what a kill cut short stands on a line of its own
            asyncio.run(self._ask_all(questions, known, file))
        found = Answers([known[index] for index in range(len(questions))])
        self._tell(found)
        return found

    async def _ask_all(self, questions: Sequence[Question], known: dict[int, Answer], kept: IO[str]) -> None:
        key = os.environ.get(self._settings.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        at_once = asyncio.Semaphore(self._settings.parallel)
        async with httpx.AsyncClient(headers=headers, timeout=self._settings.timeout_seconds) as client:

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

    def _tell(self, found: Answers) -> None:
        counts = found.counts()
        lost = counts["bad_answer"] + counts["unreachable"]
        if lost == len(found.answers):
            raise ConfigError(
                "the judge gave no verdict",
                where="evaluation.endpoint",
                got=f"{counts['unreachable']} questions unanswered, {counts['bad_answer']} not answered by A, B or TIE",
                do=f"Look whether {self._settings.url} works, and at `evaluation.endpoint.instruction`",
            )
        if lost:
            self._progress.warn(f"the judge gave no verdict on {lost} of {len(found.answers)} prompts: {counts}")

    async def _ask_twice(self, client: httpx.AsyncClient, question: Question) -> Answer:
        retries, said = 0, []
        for first, second in ((question.ours, question.theirs), (question.theirs, question.ours)):
            text, tries = await self._ask(client, question.prompt, first, second)
            retries += tries
            if text is None:
                return Answer(None, "unreachable", retries)
            said.append(parse(text))
        straight, swapped = said
        if straight is None or swapped is None:
            return Answer(None, "bad_answer", retries)
        agreed = straight == -swapped
        return Answer(straight if agreed else 0, "agreed" if agreed else "disagreed", retries)

    async def _ask(
        self, client: httpx.AsyncClient, prompt: Sequence[Mapping[str, Any]], first: str, second: str
    ) -> tuple[str | None, int]:
        """The judge's words, or None where no try got any, and the number of further tries."""
        shown = "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in prompt)
        content = f"{shown}\n\n[response A]\n{first}\n\n[response B]\n{second}"
        messages = [{"role": "system", "content": self._settings.instruction}, {"role": "user", "content": content}]
        body = {"model": self._settings.model, "messages": messages, "temperature": 0, "max_tokens": ANSWER_TOKENS}
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
                    return _words(response), tried
                if response.status_code < 500 and response.status_code not in AGAIN:
                    raise self._refused(f"{response.status_code} {response.text[:200]}")
                pause = min(_asked_pause(response, pause), LONGEST_PAUSE)
            if tried < self._settings.retries:
                await asyncio.sleep(pause)
        return None, tried

    def _refused(self, got: str) -> ConfigError:
        return ConfigError(
            "the judge refuses the request",
            where="evaluation.endpoint",
            got=got,
            do=f"Check `url`, `model`, and the key in the variable {self._settings.key_variable}",
        )


def parse(text: str) -> int | None:
    """1 for A, -1 for B, 0 for a tie; None where the answer names none of them, or several."""
    said = set(re.findall(r"(?<![A-Za-z])(A|B|TIE|Tie|tie)(?![A-Za-z])", text))
    return SAYS[said.pop().upper()] if len(said) == 1 else None


def _words(response: httpx.Response) -> str:
    """What the model said; nothing where the answer has not the form that it should have."""
    try:
        return str(response.json()["choices"][0]["message"]["content"])
    except (ValueError, LookupError, TypeError):
        return ""


def _asked_pause(response: httpx.Response, otherwise: float) -> float:
    """Seconds that the server asks to wait, where it does."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return otherwise


def _read(kept: Path) -> dict[int, Answer]:
    """Answers of an interrupted build; a line that a kill cut short is asked again."""
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
