"""Ranking tasks ranked by a judge endpoint: the ranks, the rater they are stored under, and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from local_server import serving

from alignment_core.config import EndpointConfig
from alignment_core.errors import ConfigError
from alignment_core.evaluation.judge_endpoint import Answer
from alignment_core.feedback import Rater, open_feedback
from alignment_core.progress import Silent
from alignment_core.stages.shared.ai_rater import rank_by_endpoint, ranks_of


class Shorter(BaseHTTPRequestHandler):
    """A judge that prefers the shorter response and calls equal lengths a tie."""

    requests = 0

    def do_POST(self) -> None:
        type(self).requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        first, second = body["messages"][1]["content"].split("[response A]\n")[1].split("\n\n[response B]\n")
        word = "TIE" if len(first) == len(second) else "A" if len(first) < len(second) else "B"
        answer = json.dumps({"choices": [{"message": {"content": word}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def judge() -> Iterator[EndpointConfig]:
    Shorter.requests = 0
    with serving(Shorter) as address:
        yield EndpointConfig(url=f"http://{address}/v1", model="judge-1", retries=0)


def test_ranks_follow_from_comparisons() -> None:
    """With three responses, 0 beats 1 and ties with 2, and 1 loses to 2. The scores are 1, -2 and 1."""
    verdicts = [Answer(1, "agreed", 0), Answer(0, "agreed", 0), Answer(-1, "agreed", 0)]
    assert ranks_of(3, verdicts) == [1, 2, 1]
    assert ranks_of(3, [Answer(None, "unreachable", 0), Answer(1, "agreed", 0), Answer(1, "agreed", 0)]) == [1, 1, 2]


def test_every_prompt_is_ranked_once_by_an_ai_rater(judge: EndpointConfig, tmp_path: Path) -> None:
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        for number in (1, 2):
            prompt = ({"role": "user", "content": f"Question {number}"},)
            store.add_ranking_tasks([(prompt, [(text, "m") for text in ("four", "a", "five", "eleven")])])
        store.rank(Rater("Ann"), store.ranking_tasks()[0], (1, 2, 3, 4))
        assert rank_by_endpoint(store, judge, tmp_path / "scratch", Silent()) == 2
        votes = [vote for vote in store.votes() if vote.rater.kind == "ai"]
        assert [vote.ranks for vote in votes] == [(2, 1, 2, 3)] * 2
        assert {vote.rater.name for vote in votes} == {f"judge-1 at {judge.url.split('/')[2]}"}
        requests = Shorter.requests
        assert requests == 2 * 6 * 2
        assert rank_by_endpoint(store, judge, tmp_path / "scratch", Silent()) == 0
        assert requests == Shorter.requests
        assert list((tmp_path / "scratch").iterdir()) == []


def test_unreachable_judge_is_reported(tmp_path: Path) -> None:
    unreachable = EndpointConfig(url="http://127.0.0.1:9/v1", model="judge-1", retries=0, timeout_seconds=5)
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        store.add_ranking_tasks([(({"role": "user", "content": "Hi"},), [("a", "m"), ("b", "m")])])
        with pytest.raises(ConfigError, match="no verdict"):
            rank_by_endpoint(store, unreachable, tmp_path / "scratch", Silent())
        assert store.newest() == 0
