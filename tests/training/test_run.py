"""The interface for plugins: cached references, shuffles, keyed noise, rollouts, and errors for undeclared needs."""

from pathlib import Path

import pytest
import torch
from engine import naive_logps, sequences
from hypothesis import given
from hypothesis import strategies as st
from runs import Listener, World, feedback_rows, make_world, prompt_rows, weights_of
from scripted import ScriptedRun, micro

from alignment_core.errors import PluginError
from alignment_core.plugin_api import Rollout, Row, TokenSequence
from alignment_core.progress import Stopped
from alignment_core.training.reference import CachedReference
from alignment_core.training.run import Run


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny_model, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world: World) -> Run:
    return world.open("dpo")


def test_cached_reference(run: Run) -> None:
    """A cached sequence needs no forward pass. A missing one is computed live and counted."""
    found = sequences(4)
    reference = run.reference.live
    expected = reference.logps(found)
    cached = CachedReference(reference, {found[0].digest(): -123.0, found[2].digest(): float(expected[2])})
    logps = cached.logps(found)
    assert logps.tolist() == pytest.approx([-123.0, *expected[1:].tolist()], rel=1e-5)
    assert (logps.dtype, cached.missed, logps.requires_grad) == (torch.float32, 2, False)
    # The same tokens with another prompt boundary are a different sequence.
    assert cached.logps([TokenSequence(found[0].ids, max(1, found[0].start - 1))])[0] != -123.0
    assert torch.equal(cached.token_logps(found).logps, reference.token_logps(found).logps)


def test_run_without_a_cache_uses_the_frozen_role(run: Run, world: World) -> None:
    found = sequences(3)
    with run.roles.use("reference"), torch.no_grad():
        expected = naive_logps(run.roles.model, found)
    torch.testing.assert_close(run.reference.logps(found).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "use", "declaration"),
    [
        ("sft", lambda run: run.reference.logps([]), "Return `Needs(reference=True, …)`"),
        ("dpo", lambda run: run.rewards([]), "Return `Needs(reward=True, …)`"),
        ("dpo", lambda run: run.value.values([]), "Return `Needs(value=True, …)`"),
    ],
)
def test_error_for_an_undeclared_role_names_the_declaration(
    world: World, kind: str, use: object, declaration: str
) -> None:
    assert callable(use)
    with pytest.raises(PluginError) as error:
        use(world.open(kind))
    assert declaration in str(error.value)


@given(count=st.integers(1, 20), batch_size=st.integers(1, 9), epochs=st.integers(1, 3), seed=st.integers(0, 3))
def test_shuffles_depend_only_on_seed_and_epoch(count: int, batch_size: int, epochs: int, seed: int) -> None:
    rows = prompt_rows(count)
    run = ScriptedRun(seed=seed)
    batches = list(run.shuffled(rows, batch_size, epochs))
    orders = [
        [row.id for batch in batches[i : i + len(batches) // epochs] for row in batch]
        for i in range(0, len(batches), len(batches) // epochs)
    ]
    assert all(sorted(order) == sorted(row.id for row in rows) for order in orders)
    assert orders[0] == [row.id for batch in ScriptedRun(seed=seed).shuffled(rows, count, 1) for row in batch]
    if count > 8:
        assert len({tuple(order) for order in orders}) == epochs
        other = [row.id for batch in ScriptedRun(seed=seed + 1).shuffled(rows, count, 1) for row in batch]
        assert other != orders[0]


def test_rollouts_have_text_and_a_finished_flag(run: Run) -> None:
    """Responses to a prompt are adjacent and differ in their noise, and the text is the response only."""
    prompts = prompt_rows(3)
    rollouts = run.generate(prompts, max_new_tokens=5, samples=2)
    assert [rollout.prompt.id for rollout in rollouts] == [
        "prompt-0",
        "prompt-0",
        "prompt-1",
        "prompt-1",
        "prompt-2",
        "prompt-2",
    ]
    stops = set(run.vocabulary.stop_ids)
    for rollout in rollouts:
        assert rollout.sequence.prompt == rollout.prompt.sequences["prompt"].ids
        completion = rollout.sequence.completion
        assert rollout.finished == (completion[-1] in stops)
        assert rollout.finished or len(completion) == 5
        assert rollout.text == " ".join(map(str, completion))
    assert {rollout.finished for rollout in rollouts} == {True, False}
    pairs = zip(rollouts[::2], rollouts[1::2], strict=True)
    assert any(one.sequence != other.sequence for one, other in pairs)
    again = run.generate(prompts, max_new_tokens=5, samples=2)
    assert [rollout.sequence for rollout in again] == [rollout.sequence for rollout in rollouts]


def test_noise_depends_on_seed_step_and_row(world: World) -> None:
    def responses(step: int, seed: int, prompts: list[Row]) -> list[tuple[int, ...]]:
        run = world.open("dpo")
        run.step, run.seed = step, seed
        return [rollout.sequence.completion for rollout in run.generate(prompts, max_new_tokens=8, temperature=2.0)]

    prompts = prompt_rows(6)
    base = responses(0, 5, prompts)
    assert responses(0, 5, prompts[::-1]) == base[::-1]
    assert responses(1, 5, prompts) != base
    assert responses(0, 6, prompts) != base
    # A prompt that occurs twice in one call gets two different responses.
    twice = responses(0, 5, [prompts[0], prompts[1], prompts[0]])
    assert twice[:2] == base[:2]
    assert twice[2] != base[0]


def test_another_role_can_generate(run: Run) -> None:
    prompts = prompt_rows(4)
    greedy = run.generate(prompts, max_new_tokens=6, temperature=0, role="reference")
    for rollout in greedy:
        with run.roles.use("reference"), torch.no_grad():
            first = run.roles.model(torch.tensor([rollout.sequence.prompt])).logits[0, -1].argmax()
        assert rollout.sequence.completion[0] == first


def test_stop_is_checked_between_forward_passes(world: World) -> None:
    """Scoring a rollout takes many passes without sampling a token, and must not ignore a stop for minutes."""
    listener = Listener(stop_at=3)
    run = world.open("dpo", progress=listener, budget=30)
    with pytest.raises(Stopped), torch.no_grad():
        run.policy.logps(sequences(12))
    assert listener.looks == 3


def test_micro_batch_values(run: Run) -> None:
    rows = feedback_rows(1, 1)
    part = micro(rows, {"rows": 2.0})
    assert part.sequences("response") == [row.sequences["response"] for row in rows]
    assert torch.equal(part.values("desirable"), torch.tensor([1.0, 0.0]))
    tokens = micro([Row("a", {}, {"x": [1.0, 2.0]}), Row("b", {}, {"x": [3.0]})], {}).token_values("x")
    assert torch.equal(tokens, torch.tensor([[1.0, 2.0], [3.0, 0.0]]))


def test_random_streams_depend_on_name_and_seed(world: World) -> None:
    one, other = world.open("dpo"), world.open("dpo")
    assert one.random("a").random() == other.random("a").random()
    assert one.random("a").random() != one.random("b").random()
    other.seed += 1
    assert one.random("a").random() != other.random("a").random()


def test_warnings_and_reports_are_recorded(world: World) -> None:
    listener = Listener()
    run = world.open("dpo", progress=listener)
    run.step, run.total = 4, 9
    run.warn("look here")
    run.report({"score": 1.5})
    assert run.warnings == listener.warnings == ["look here"]
    assert run.history == [{"step": 4, "score": 1.5}]
    assert listener.steps == [(4, 9, {"score": 1.5})]


def test_evaluator_scores_rollouts(world: World) -> None:
    run = world.open("dpo")
    (prompt,) = prompt_rows(1)
    rollouts = [Rollout(prompt, prompt.sequences["prompt"], True, text) for text in ("a", "abc")]
    run.judges["measure"] = lambda found: [float(len(rollout.text)) for rollout in found]
    assert run.judge("measure", rollouts) == [1.0, 3.0]
    with pytest.raises(PluginError, match="evaluator that it did not declare") as error:
        run.judge("other", rollouts)
    assert 'evaluators: ClassVar = ("other",)' in str(error.value)


def test_restore_needs_kept_weights(world: World) -> None:
    run = world.open("dpo")
    with pytest.raises(PluginError, match="no weights were kept"):
        run.restore()
    run.keep()
    before = weights_of(run)
    with torch.no_grad():
        for parameter in run.roles.parameters().values():
            parameter.add_(1.0)
    run.restore()
    assert all(torch.equal(weights_of(run)[name], weight) for name, weight in before.items())
