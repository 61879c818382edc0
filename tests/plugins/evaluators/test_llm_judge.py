"""A language model as a judge: grades, pairs, failures, the facts that it sees, and questions that repeat."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from local_server import serving
from pydantic import ValidationError

from alignment_core.errors import ConfigError, DataError
from alignment_plugins.evaluators.llm_judge import LlmJudge, LlmPairJudge

PROMPT = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who are you?"})


class Server:
    """Answers each question with `reply(the user's turn)`: a text, or a status code."""

    def __init__(self) -> None:
        self.reply: Callable[[str], str | int] = lambda asked: "5"
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []


@contextmanager
def playing() -> Iterator[tuple[Server, str]]:
    played = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            played.bodies.append(body)
            played.asked.append(body["messages"][-1]["content"])
            found = played.reply(played.asked[-1])
            self.send_response(found if isinstance(found, int) else 200)
            self.end_headers()
            if isinstance(found, str):
                self.wfile.write(json.dumps({"choices": [{"message": {"content": found}}]}).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with serving(Handler) as address:
        yield played, f"http://{address}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, str]]:
    monkeypatch.setattr("alignment_core.chat_endpoint.FIRST_PAUSE", 0.001)
    with playing() as found:
        yield found


def grades(url: str, *responses: str, **settings: Any) -> list[float | None]:
    return list(
        LlmJudge(url=url, model="m", **settings).scores([PROMPT] * len(responses), responses, [{}] * len(responses))
    )


def test_grades_become_scores(server: tuple[Server, str]) -> None:
    played, url = server
    played.reply = lambda asked: {"a": "7", "b": "Grade: 2.5", "c": "10", "d": "0"}[asked[-1]]
    assert grades(url, "a", "b", "c", "d") == [0.7, 0.25, 1, 0]
    assert played.bodies[0]["temperature"] == 0
    assert "Answer with the number only" in played.bodies[0]["messages"][0]["content"]
    assert played.asked[0].startswith("[system]\nBe kind.\n\n[user]\nWho are you?\n\n[response]\n")


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("First I thought 3, but it is worth 8", 0.8),
        ("8.", 0.8),
        ("**8**", 0.8),
        ("11", None),
        ("-1", None),
        ("eight", None),
        ("", None),
        ("80%", None),
        ("v8", None),
    ],
)
def test_the_last_number_is_the_grade(server: tuple[Server, str], said: str, score: float | None) -> None:
    played, url = server
    played.reply = lambda asked: said
    assert grades(url, "x") == [score]


def test_the_scale_can_be_changed_and_reversed(server: tuple[Server, str]) -> None:
    played, url = server
    played.reply = lambda asked: "2"
    assert grades(url, "x", worst=1, best=5) == [0.25]
    assert grades(url, "x", worst=6, best=1) == [0.8]
    with pytest.raises(ValidationError, match="the same"):
        LlmJudge(url=url, model="m", worst=1, best=1)


def test_failures_give_no_score_and_are_asked_again(server: tuple[Server, str]) -> None:
    played, url = server
    rule = LlmJudge(url=url, model="m", retries=1)
    played.reply = lambda asked: 500 if asked.endswith("b") else "5"
    assert rule.scores([PROMPT] * 2, ["a", "b"], [{}] * 2) == [0.5, None]
    assert [asked[-1] for asked in played.asked].count("b") == 2
    played.reply = lambda asked: "9"
    assert rule.scores([PROMPT] * 2, ["a", "b"], [{}] * 2) == [0.5, 0.9]  # the first is remembered
    played.reply = lambda asked: 401
    with pytest.raises(ConfigError, match="llm_judge: the judge rejected the request"):
        rule.scores([PROMPT], ["c"], [{}])


def test_equal_questions_are_asked_once(server: tuple[Server, str]) -> None:
    played, url = server
    rule = LlmJudge(url=url, model="m")
    assert rule.scores([PROMPT] * 3, ["a", "a", "b"], [{}] * 3) == [0.5] * 3
    assert len(played.asked) == 2
    rule.scores([PROMPT], ["b"], [{}])
    assert len(played.asked) == 2


def test_questions_run_in_parallel_up_to_the_limit(server: tuple[Server, str]) -> None:
    played, url = server
    running, most, lock = [0], [0], threading.Lock()

    def reply(asked: str) -> str:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.1)
        with lock:
            running[0] -= 1
        return "5"

    played.reply = reply
    grades(url, *"abcdefgh", parallel=3)
    assert most == [3]


def test_the_judge_sees_facts(server: tuple[Server, str]) -> None:
    played, url = server
    rule = LlmJudge(url=url, model="m", facts=["answer", "meta.tests"])
    assert rule.needed_facts() == ["answer", "meta"]
    rule.scores([PROMPT], ["x"], [{"answer": "7", "meta": {"tests": [1]}}])
    assert "\n\n[answer]\n7\n\n[meta.tests]\n[1]\n\n[response]\nx" in played.asked[0]
    with pytest.raises(DataError, match="answer"):
        rule.scores([PROMPT], ["x"], [{}])
    played.reply = lambda asked: "TIE"
    pairs = LlmPairJudge(url=url, model="m", facts=["response"])
    assert pairs.prefers([PROMPT], ["x"], ["y"], [{"response": "The best."}]) == [0.5]
    expected = "[user]\nWho are you?\n\n[response]\nThe best.\n\n[response A]\nx\n\n[response B]\ny"
    assert any(asked.endswith(expected) for asked in played.asked[1:]), "the two orders are asked at the same time"


def test_pairs_are_asked_in_both_orders(server: tuple[Server, str]) -> None:
    played, url = server
    rule = LlmPairJudge(url=url, model="m", retries=0)
    a, b = ["good", "bad", "same", "first", "odd", "down"], ["bad", "good", "same", "other", "even", "up"]

    def reply(asked: str) -> str | int:
        one, other = asked.split("[response A]\n")[1].split("\n\n[response B]\n")
        if {one, other} == {"odd", "even"}:
            return "both"
        if {one, other} == {"down", "up"}:
            return 503 if one == "up" else "A"
        if {one, other} == {"first", "other"}:
            return "A"  # always the one that is shown first
        return "A" if one == "good" else "B" if other == "good" else "TIE"

    played.reply = reply
    found = rule.prefers([PROMPT] * 6, a, b, [{}] * 6)
    assert found == [1.0, 0.0, 0.5, 0.5, None, None]
