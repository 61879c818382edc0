"""Sampling with a vLLM server, against a stand-in: what it is sent, what is read, and what is said if it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import LORA, disturb, open_roles, sequences
from runs import OBJECTIVES, learn, make_world
from vllm_standin import StandIn, standing_in

from alignment_core.config import VllmConfig
from alignment_core.errors import AlignmentError, ConfigError
from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.vllm import VllmEngine
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence
from alignment_core.progress import Stopped
from alignment_core.seeds import seed_of

STOPS = (2, 7, 8, 9)


@pytest.fixture(scope="module")
def roles(tiny_model: Path) -> Roles:
    roles = open_roles(tiny_model)
    roles.add_new("policy", LORA, 0)
    roles.add_base("reference")
    return roles


@pytest.fixture
def server(tiny_model: Path) -> Iterator[tuple[StandIn, str]]:
    with standing_in(str(tiny_model)) as found:
        yield found


def engine(roles: Roles, url: str, base: str, **settings: Any) -> VllmEngine:
    return VllmEngine(VllmConfig(url=url, **settings), base, roles, STOPS)


def prompts(count: int) -> list[TokenSequence]:
    return [TokenSequence(one.prompt, one.start) for one in sequences(count)]


def sample(one: VllmEngine, count: int = 6, *, role: str = "policy", longest: int = 20) -> list[TokenSequence]:
    keys = [f"key {i}" for i in range(count)]
    found = one.generate(role, prompts(count), Sampling(longest, 0.8), keys, lambda _: None)
    return [response.sequence for response in found]


def test_responses_come_back_in_order_with_their_stop(roles: Roles, server: tuple[StandIn, str]) -> None:
    played, url = server
    one = engine(roles, url, played.base, parallel=3)
    responses = sample(one, 30)
    assert [response.prompt for response in responses] == [prompt.ids for prompt in prompts(30)]
    lengths = {len(response.completion) for response in responses}
    assert max(lengths) == 20
    assert len(lengths) > 3
    for response in responses:
        assert response.completion[-1] in STOPS or len(response.completion) == 20
        assert not set(response.completion[:-1]) & set(STOPS)
    assert sample(one, 30) == responses


def test_requests_say_everything_that_determines_a_response(roles: Roles, server: tuple[StandIn, str]) -> None:
    played, url = server
    sample(engine(roles, url, played.base), 3)
    by_seed = {request["seed"]: request for request in played.requests}
    for i, prompt in enumerate(prompts(3)):
        request = by_seed[seed_of(f"key {i}")]
        assert request["prompt"] == list(prompt.ids)
        assert (request["temperature"], request["top_p"], request["top_k"]) == (0.8, 1.0, -1)
        assert (request["max_tokens"], request["stop_token_ids"], request["ignore_eos"]) == (20, list(STOPS), True)
        assert (request["min_p"], request["repetition_penalty"]) == (0.0, 1.0)


def test_the_adapter_is_handed_over_for_each_rollout(tiny_model: Path, server: tuple[StandIn, str]) -> None:
    played, url = server
    roles = open_roles(tiny_model)
    roles.add_new("policy", LORA, 0)
    one = engine(roles, url, played.base)
    before = sample(one)
    disturb(roles, "policy", 3)
    assert sample(one) != before
    (first, weights), (second, others) = played.loaded
    assert first != second
    assert weights != others
    assert played.adapters == {}, "unloaded again"


def test_a_role_without_adapter_is_the_served_model(roles: Roles, server: tuple[StandIn, str]) -> None:
    played, url = server
    sample(engine(roles, url, played.base), role="reference")
    assert played.loaded == []
    assert {request["model"] for request in played.requests} == {"served"}


def test_sampling_can_be_stopped(roles: Roles, server: tuple[StandIn, str]) -> None:
    played, url = server
    played.pause = 0.3

    def on_step(done: int) -> None:
        if played.requests:
            raise Stopped

    one = engine(roles, url, played.base, parallel=1)
    with pytest.raises(Stopped):
        one.generate("policy", prompts(50), Sampling(5), [str(i) for i in range(50)], on_step)
    assert len(played.requests) < 10
    assert played.adapters == {}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"base": "org/other"}, "serves another base model. got org/other"),
        ({"lora": False}, "does not load adapters while it runs. Start it with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ({"longest": 25}, "reads fewer tokens than a prompt and its response have"),
        ({"change": {"token_ids": [5, 6], "finish_reason": "length"}}, "cut an answer off. got 2 tokens"),
        ({"change": {"token_ids": [5, 2], "finish_reason": "abort"}}, "cut an answer off"),
        ({"change": {"token_ids": [5, 6], "finish_reason": "stop"}}, "cut an answer off"),
        ({"change": {"token_ids": None}}, "have no token ids. Install vLLM 0.10.2 or newer"),
        ({"change": {"prompt_token_ids": [1]}}, "changed a prompt"),
        ({"pause": 2.0}, "did not answer within 0.5 seconds"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_mistakes_are_named(roles: Roles, server: tuple[StandIn, str], state: dict[str, Any], message: str) -> None:
    played, url = server
    base = played.base
    for name, value in state.items():
        setattr(played, name, value)
    with pytest.raises(AlignmentError) as caught:
        sample(engine(roles, url, base, timeout_seconds=0.5))
    assert message in str(caught.value)
    assert caught.value.where == "vllm.url"


def test_an_adapter_that_the_server_cannot_read_is_named(
    roles: Roles, server: tuple[StandIn, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    played, url = server
    refusal = '{"error":{"message":"LoRA rank 64 is greater than max_lora_rank 16.","code":400}}'
    monkeypatch.setattr(played, "load", lambda _: (400, refusal))
    with pytest.raises(ConfigError, match="LoRA rank 64 is greater than max_lora_rank 16"):
        sample(engine(roles, url, played.base))


def test_a_server_that_is_not_there_is_named(roles: Roles) -> None:
    with pytest.raises(ConfigError, match=r"does not answer.*vllm serve org/base --enable-lora"):
        sample(engine(roles, "http://127.0.0.1:9/v1", "org/base"))


def test_ppo_learns_from_its_responses(tiny_model: Path, tmp_path: Path, server: tuple[StandIn, str]) -> None:
    """Every rollout has the weights of its step, and log-probabilities are ours."""
    played, url = server
    world = make_world(tiny_model, tmp_path)
    run = world.open("ppo")
    run.engine = VllmEngine(VllmConfig(url=url), played.base, run.roles, run.vocabulary.stop_ids)
    learn(OBJECTIVES["ppo"](), run, tmp_path / "run")
    sums = [weights for _, weights in played.loaded]
    assert len(sums) >= 3
    assert len(set(sums)) > 1
    assert run.history
