"""A judge behind an OpenAI-compatible endpoint, simulated by a small server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge import Judge, Reply, playing, reply_with

from alignment_core.chat_endpoint import verdict_of
from alignment_core.config import EndpointConfig
from alignment_core.errors import ConfigError
from alignment_core.evaluation.judge_endpoint import Answers, Endpoint, Question
from alignment_core.progress import Silent, Stopped

PROMPT = [{"role": "user", "content": "Say something."}]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Judge, str]]:
    """Start the simulated judge. Return it and its URL."""
    monkeypatch.setattr("alignment_core.chat_endpoint.FIRST_PAUSE", 0.001)
    with playing() as found:
        yield found


def ask(url: str, folder: Path, *pairs: tuple[str, str], **settings: Any) -> Answers:
    questions = [Question(PROMPT, ours, theirs) for ours, theirs in pairs]
    config = EndpointConfig(url=url, model="judge-1", **settings)
    return Endpoint(config, Silent()).compare(questions, folder / "kept.jsonl")


def test_verdict_counts_only_if_both_orders_agree(judge: tuple[Judge, str], tmp_path: Path) -> None:
    played, url = judge
    played.prefers("good")
    found = ask(url, tmp_path, ("good", "bad"), ("bad", "good"), ("bad", "worse"))
    assert [answer.verdict for answer in found.answers] == [1, -1, 0]
    assert found.counts() == {"agreed": 3, "disagreed": 0, "bad_answer": 0, "unreachable": 0, "retries": 0}
    played.reply = lambda first, second, number: reply_with("A")  # always the response shown first
    other = tmp_path / "other"
    other.mkdir()
    found = ask(url, other, ("good", "bad"))
    assert [(answer.verdict, answer.outcome) for answer in found.answers] == [(0, "disagreed")]


def test_requests_follow_the_openai_api(
    judge: tuple[Judge, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, url = judge
    monkeypatch.setenv("JUDGES_KEY", "sk-secret")
    ask(url + "/", tmp_path, ("one", "two"), key_variable="JUDGES_KEY")
    first, second = played.requests
    assert (first["path"], first["model"], first["temperature"]) == ("/v1/chat/completions", "judge-1", 0)
    assert "Say something." in first["messages"][1]["content"]
    assert first["messages"][1]["content"].index("one") < first["messages"][1]["content"].index("two")
    assert second["messages"][1]["content"].index("two") < second["messages"][1]["content"].index("one")
    assert played.keys == ["Bearer sk-secret"] * 2
    assert "sk-secret" not in (tmp_path / "kept.jsonl").read_text()
    (tmp_path / "new").mkdir()
    played.reply = lambda first, second, number: (401, {}, "Incorrect API key provided: sk-secret")
    with pytest.raises(ConfigError, match=r"got 401 Incorrect API key provided: \*\*\*"):
        ask(url, tmp_path / "new", ("one", "two"), key_variable="JUDGES_KEY")


def test_rate_limits_and_server_errors_are_retried(judge: tuple[Judge, str], tmp_path: Path) -> None:
    played, url = judge
    refusals = iter([(429, {"retry-after": "0.01"}, "slow down"), (503, {}, "busy")])

    def reply(first: str, second: str, number: int) -> Reply:
        return next(refusals, reply_with("TIE"))

    played.reply = reply
    found = ask(url, tmp_path, ("one", "two"))
    assert [(answer.verdict, answer.retries) for answer in found.answers] == [(0, 2)]


def test_missing_verdicts_are_counted_and_reported(judge: tuple[Judge, str], tmp_path: Path) -> None:
    played, url = judge
    release = threading.Event()

    def reply(first: str, second: str, number: int) -> Reply:
        if "slow" in first + second:
            release.wait(30)
        if "odd" in first + second:
            return reply_with("Both have merits: A is short, B is kind.")
        return (200, {}, "no json") if "broken" in first + second else reply_with("A" if "good" in first else "B")

    played.reply = reply

    class Listener(Silent):
        warned: list[str] = []  # noqa: RUF012 -- one test, one listener

        def warn(self, message: str) -> None:
            self.warned.append(message)

    pairs = [("good", "bad"), ("odd", "x"), ("slow", "x"), ("broken", "x")]
    config = EndpointConfig(url=url, model="m", timeout_seconds=2, retries=1)
    questions = [Question(PROMPT, ours, theirs) for ours, theirs in pairs]
    found = Endpoint(config, Listener()).compare(questions, tmp_path / "kept.jsonl")
    release.set()
    assert [answer.verdict for answer in found.answers] == [1, None, None, None]
    assert found.counts() == {"agreed": 1, "disagreed": 0, "bad_answer": 2, "unreachable": 1, "retries": 1}
    assert Listener.warned[0].startswith("the judge gave no verdict on 3 of 4 prompts")


@pytest.mark.parametrize(
    ("reply", "paragraph"),
    [
        (
            (401, {}, "wrong key"),
            r"rejected the request\. got 401 wrong key\. Check `url`, `model`, and the API key in the ",
        ),
        ((404, {}, "no such model"), r"rejected the request\. got 404"),
        (
            reply_with("I cannot say"),
            r"the judge gave no verdict\. got unanswered questions: 0, answers without A, B or TIE: 1",
        ),
    ],
)
def test_judge_that_does_not_work_is_reported(
    judge: tuple[Judge, str], tmp_path: Path, reply: Reply, paragraph: str
) -> None:
    played, url = judge
    played.reply = lambda first, second, number: reply
    with pytest.raises(ConfigError, match=paragraph):
        ask(url, tmp_path, ("one", "two"))


def test_unreachable_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_core.chat_endpoint.FIRST_PAUSE", 0.001)
    with pytest.raises(ConfigError, match=r"the judge gave no verdict\. got unanswered questions: 1"):
        ask("http://127.0.0.1:9/v1", tmp_path, ("one", "two"), retries=1)


def test_resumed_judging_repeats_no_finished_question(judge: tuple[Judge, str], tmp_path: Path) -> None:
    played, url = judge
    played.prefers("good")
    pairs = [("good", "bad"), ("bad", "good"), ("good", "worse")]

    class Stopping(Silent):
        @property
        def stopping(self) -> bool:  # type: ignore[override]
            return (tmp_path / "kept.jsonl").read_text().strip() != ""

    questions = [Question(PROMPT, ours, theirs) for ours, theirs in pairs]
    one_by_one = EndpointConfig(url=url, model="m", parallel=1)
    with pytest.raises(Stopped):
        Endpoint(one_by_one, Stopping()).compare(questions, tmp_path / "kept.jsonl")
    finished = (tmp_path / "kept.jsonl").read_text().strip().splitlines()
    (tmp_path / "kept.jsonl").write_text("".join(f"{line}\n" for line in finished) + '{"index": 2, "verd')  # cut off
    time.sleep(0.1)
    before = len(played.requests)
    found = ask(url, tmp_path, *pairs)
    assert [answer.verdict for answer in found.answers] == [1, -1, 1]
    assert len(played.requests) - before == 2 * (3 - len(finished))


def test_stop_does_not_wait_for_an_answer(judge: tuple[Judge, str], tmp_path: Path) -> None:
    """The judge takes up to ten minutes, which is within the timeout."""
    played, url = judge
    release = threading.Event()

    def reply(first: str, second: str, number: int) -> Reply:
        release.wait(600)
        return reply_with("TIE")

    played.reply = reply

    class Stopping(Silent):
        @property
        def stopping(self) -> bool:  # type: ignore[override]
            return len(played.requests) > 0

    started = time.monotonic()
    with pytest.raises(Stopped):
        Endpoint(EndpointConfig(url=url, model="m", timeout_seconds=600), Stopping()).compare(
            [Question(PROMPT, "one", "two")] * 9, tmp_path / "kept.jsonl"
        )
    release.set()
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A", 1), (" B.", -1), ("TIE", 0), ("tie", 0), ("**A**", 1), ("Response B", -1), ("Answer: A\n", 1),
        ("", None), ("A or B", None), ("Apple", None), ("neither", None), ("C", None),
    ],
)  # fmt: skip
def test_usual_forms_of_answers_are_read(text: str, found: int | None) -> None:
    swapped = {1: "B", -1: "A", 0: "TIE", None: "A"}[found]
    assert verdict_of(text, swapped) == (found, "bad_answer" if found is None else "agreed")
    assert verdict_of(text, text)[0] == (None if found is None else 0), "the order decided"
