"""A judge behind an OpenAI-compatible address, played by a small server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge import Judge, Reply, playing, said

from alignment_core.config import EndpointConfig
from alignment_core.errors import ConfigError
from alignment_core.evaluation import endpoint
from alignment_core.evaluation.endpoint import Answers, Endpoint, Question, parse
from alignment_core.progress import Silent, Stopped

PROMPT = [{"role": "user", "content": "Say something."}]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Judge, str]]:
    """The judge and its address."""
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.001)
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
    played.reply = lambda first, second, number: said("A")  # whatever stands first
    other = tmp_path / "other"
    other.mkdir()
    found = ask(url, other, ("good", "bad"))
    assert [(answer.verdict, answer.outcome) for answer in found.answers] == [(0, "disagreed")]


def test_it_is_asked_as_openai_is(judge: tuple[Judge, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_rate_limits_and_faults_of_the_server_are_tried_again(judge: tuple[Judge, str], tmp_path: Path) -> None:
    played, url = judge
    refusals = iter([(429, {"retry-after": "0.01"}, "slow down"), (503, {}, "busy")])

    def reply(first: str, second: str, number: int) -> Reply:
        return next(refusals, said("TIE"))

    played.reply = reply
    found = ask(url, tmp_path, ("one", "two"))
    assert [(answer.verdict, answer.retries) for answer in found.answers] == [(0, 2)]


def test_what_gives_no_verdict_is_counted_and_told(judge: tuple[Judge, str], tmp_path: Path) -> None:
    played, url = judge
    mute = threading.Event()

    def reply(first: str, second: str, number: int) -> Reply:
        if "slow" in first + second:
            mute.wait(30)
        if "odd" in first + second:
            return said("Both have merits: A is short, B is kind.")
        return (200, {}, "no json") if "broken" in first + second else said("A" if "good" in first else "B")

    played.reply = reply

    class Listener(Silent):
        warned: list[str] = []  # noqa: RUF012 -- one test, one listener

        def warn(self, message: str) -> None:
            self.warned.append(message)

    pairs = [("good", "bad"), ("odd", "x"), ("slow", "x"), ("broken", "x")]
    config = EndpointConfig(url=url, model="m", timeout_seconds=2, retries=1)
    questions = [Question(PROMPT, ours, theirs) for ours, theirs in pairs]
    found = Endpoint(config, Listener()).compare(questions, tmp_path / "kept.jsonl")
    mute.set()
    assert [answer.verdict for answer in found.answers] == [1, None, None, None]
    assert found.counts() == {"agreed": 1, "disagreed": 0, "bad_answer": 2, "unreachable": 1, "retries": 1}
    assert Listener.warned[0].startswith("the judge gave no verdict on 3 of 4 prompts")


@pytest.mark.parametrize(
    ("reply", "paragraph"),
    [
        (
            (401, {}, "wrong key"),
            r"refuses the request\. got 401 wrong key\. Check `url`, `model`, and the key in the ",
        ),
        ((404, {}, "no such model"), r"refuses the request\. got 404"),
        (
            said("I cannot say"),
            r"the judge gave no verdict\. got 0 questions unanswered, 1 not answered by A, B or TIE",
        ),
    ],
)
def test_judge_that_does_not_work_is_told_in_words(
    judge: tuple[Judge, str], tmp_path: Path, reply: Reply, paragraph: str
) -> None:
    played, url = judge
    played.reply = lambda first, second, number: reply
    with pytest.raises(ConfigError, match=paragraph):
        ask(url, tmp_path, ("one", "two"))


def test_nobody_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.001)
    with pytest.raises(ConfigError, match=r"the judge gave no verdict\. got 1 questions unanswered"):
        ask("http://127.0.0.1:9/v1", tmp_path, ("one", "two"), retries=1)


def test_interrupted_judging_pays_for_no_answer_twice(judge: tuple[Judge, str], tmp_path: Path) -> None:
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
    kept = (tmp_path / "kept.jsonl").read_text().strip().splitlines()
    (tmp_path / "kept.jsonl").write_text("".join(f"{line}\n" for line in kept) + '{"index": 2, "verd')  # cut by a kill
    time.sleep(0.1)
    before = len(played.requests)
    found = ask(url, tmp_path, *pairs)
    assert [answer.verdict for answer in found.answers] == [1, -1, 1]
    assert len(played.requests) - before == 2 * (3 - len(kept))


def test_a_stop_waits_for_no_answer(judge: tuple[Judge, str], tmp_path: Path) -> None:
    """The judge thinks for ten minutes, and may."""
    played, url = judge
    mute = threading.Event()

    def reply(first: str, second: str, number: int) -> Reply:
        mute.wait(600)
        return said("TIE")

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
    mute.set()
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A", 1), (" B.", -1), ("TIE", 0), ("tie", 0), ("**A**", 1), ("Response B", -1), ("Answer: A\n", 1),
        ("", None), ("A or B", None), ("Apple", None), ("neither", None), ("C", None),
    ],
)  # fmt: skip
def test_answers_as_judges_give_them(text: str, found: int | None) -> None:
    assert parse(text) == found
