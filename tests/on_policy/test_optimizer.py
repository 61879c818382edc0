"""The on-policy base on scripted rollouts: prompts, penalties, passes, and rollouts from which nothing is learned."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any, ClassVar

import pytest
from grouped import CUT, GROUPS, LONG, OTHER, SHORT, Reinforce, grouped_run
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from runs import prompt_rows
from scripted import ScriptedRun

from alignment_core.on_policy.rollout import rows_from_json, rows_to_json
from alignment_core.plugin_api import Row, TokenSequence

SCORES = (4.0, 2.0, 1.0, 3.0)


def learned(objective: Reinforce, run: ScriptedRun) -> list[list[str]]:
    """Return the ids of the rows of each step."""
    steps = []
    for batch in objective.batches(run):
        steps.append([row.id for row in batch.rows])
        run.step += 1
    return steps


def test_a_rollout_by_hand() -> None:
    """Scores 4, 2, 1 and 3 - 1 (missing end): mean 2.25. KL 0, 1, 1, -1. Ten tokens of entropy 0.7."""
    run = grouped_run(SCORES)
    (batch,) = Reinforce(**GROUPS).batches(run)
    found = {row.sequences["response"].ids: row.values["advantage"] for row in batch.rows}
    assert found == {SHORT.ids: 1.75, LONG.ids: -0.25, OTHER.ids: -1.25, CUT.ids: -0.25}
    assert batch.denominators == {"tokens": 10}
    assert run.reports == [
        pytest.approx(
            {
                "score": 2.25, "raw_score": 2.5, "kl": 0.25, "response_length": 2.5, "unfinished_share": 0.25,
                "entropy": 0.7,
            }
        )
    ]  # fmt: skip


def test_policy_is_sampled_with_the_training_settings() -> None:
    run = grouped_run(SCORES)
    next(Reinforce(**GROUPS, temperature=0.8, max_new_tokens=33).batches(run))
    ((names, settings),) = run.asked_to_generate
    assert sorted(names) == ["a", "b"]
    assert settings == {"max_new_tokens": 33, "temperature": 0.8, "samples": 2, "logps": True}


def test_responses_to_a_prompt_are_learned_from_together() -> None:
    """Rows 0 and 1 have one prompt, 2 and 3 another. In each pass a step has both rows of one of them, in any order."""
    run = grouped_run(SCORES)
    steps = learned(Reinforce(**GROUPS | {"batch_size": 2, "epochs": 12}), run)
    assert {tuple(sorted(step)) for step in steps} == {("0", "1"), ("2", "3")}
    first = [step[0] for step in steps[::2]]
    assert {"0", "2"} <= set(first), "passes begin with different prompts"


def test_penalties_for_length_by_hand() -> None:
    """Limit 4 and buffer 2: 2 tokens cost nothing, 3 half of the penalty of 1, a missing end all of it.

    With 0.25 per token: 4 - 0.5, 2 - 0.75 - 0.5, 1 - 0.5 and 3 - 0.75 - 1, so 3.5, 0.75, 0.5, 1.25 and the mean 1.5.
    """
    run = grouped_run(SCORES)
    (batch,) = Reinforce(**GROUPS, max_new_tokens=4, overlong_buffer=2, length_cost=0.25).batches(run)
    found = {row.sequences["response"].ids: row.values["advantage"] for row in batch.rows}
    assert found == {SHORT.ids: 2.0, LONG.ids: -0.75, OTHER.ids: -1.0, CUT.ids: -0.25}


def generated_prompts(seed: int, *, backwards: bool = False) -> list[str]:
    """Return the prompts of four rollouts of three, drawn from five, in the order of generation."""
    run = grouped_run(SCORES)
    run.seed, run.prompts = seed, prompt_rows(5)[:: -1 if backwards else 1]
    run.rollouts = [*run.rollouts, *run.rollouts[:2]]
    learned(Reinforce(rollout_size=6, samples=2, rollouts=4, batch_size=4, epochs=1), run)
    return [name for names, _ in run.asked_to_generate for name in names]


def test_each_pass_uses_each_prompt_once() -> None:
    """Each pass uses each prompt once, even if it ends within a rollout. The order depends only on the seed."""
    generated = generated_prompts(seed=0)
    assert len(generated) == 12
    assert sorted(generated[:5]) == sorted(generated[5:10]) == [f"prompt-{i}" for i in range(5)]
    assert len(set(generated[10:])) == 2
    assert generated[:5] != generated[5:10]
    assert generated == generated_prompts(seed=0, backwards=True)
    assert len({tuple(generated_prompts(seed)) for seed in range(5)}) == 5


@given(size=st.integers(1, 9), batch_size=st.integers(1, 5), epochs=st.integers(1, 3), rollouts=st.integers(1, 3))
def test_each_pass_uses_each_response_once(size: int, batch_size: int, epochs: int, rollouts: int) -> None:
    run = grouped_run(SCORES)
    run.rollouts = [run.rollouts[i % 4] for i in range(size)]
    objective = Reinforce(rollout_size=size, batch_size=batch_size, epochs=epochs, rollouts=rollouts)
    batches = learned(objective, run)
    assert len(batches) == objective.total_steps(run)
    per_pass = math.ceil(size / batch_size)
    for start in range(0, len(batches), per_pass):
        seen = [row for batch in batches[start : start + per_pass] for row in batch]
        assert sorted(seen) == sorted(map(str, range(size)))
    assert len(run.asked_to_generate) == rollouts


def test_every_pass_is_reshuffled() -> None:
    run = grouped_run(SCORES)
    run.rollouts = [run.rollouts[i % 4] for i in range(12)]
    orders = learned(Reinforce(rollout_size=12, batch_size=12, epochs=2, rollouts=2), run)
    assert len({tuple(order) for order in orders}) == len(orders) == 4


def steps(objective: Reinforce, step_kl: list[float]) -> int:
    """Return the number of steps that the objective takes with these KLs per step."""
    run, taken = grouped_run(SCORES), 0
    for _ in objective.batches(run):
        run.metrics = {"step_kl": step_kl[taken]}
        run.step += 1
        taken += 1
    return taken


def test_step_kl_ends_the_passes_over_its_rollout() -> None:
    """Two rollouts of up to four steps: the first ends after its second step, which does not affect the second."""
    twice = GROUPS | {"batch_size": 2, "epochs": 2, "rollouts": 2}
    objective = Reinforce(**twice, step_kl=0.1)
    assert steps(objective, [0.05, 0.11, 0.0, 0.0, 0.1, 0.05]) == 6  # 0.1 itself is still allowed
    assert steps(objective, [0.0] * 8) == 8
    assert steps(Reinforce(**twice, step_kl=None), [9.0] * 8) == 8


class Picky(Reinforce):
    nothing_in: ClassVar[set[int]] = {0, 1, 3}


def test_a_rollout_without_rows_is_skipped_and_its_noise_is_not_used_again() -> None:
    """Four rollouts, the third with two steps. The noise depends on step and row, so idle rollouts ask by other ids."""
    run = grouped_run(SCORES)
    assert len(learned(Picky(**GROUPS | {"batch_size": 2, "rollouts": 4}), run)) == 2
    assert run.state["rollouts_done"] == 4
    asked = [tuple(sorted(names)) for names, _ in run.asked_to_generate]
    assert asked == [("a", "b"), ("a 1", "b 1"), ("a 2", "b 2"), ("a", "b")]


def test_responses_of_an_idle_rollout_belong_to_their_prompts() -> None:
    seen = []

    class Looking(Picky):
        def experience(self, run: Any, sampled: Any) -> Any:
            seen.append([rollout.prompt.id for rollout in sampled.rollouts])
            return super().experience(run, sampled)

    run = grouped_run(SCORES)
    learned(Looking(**GROUPS | {"rollouts": 2}), run)
    second, _ = run.asked_to_generate[1]
    assert [name.split()[0] for name in second] == [seen[1][0], seen[1][2]]
    assert sorted(seen[1]) == ["a", "a", "b", "b"]


def test_training_that_never_learns_warns() -> None:
    run = grouped_run(SCORES)
    assert learned(Picky(**GROUPS | {"rollouts": 2}), run) == []
    assert run.warnings[0] == "nothing was learned, because no rollout gave anything to learn from"


@pytest.mark.parametrize("truncated", [{"top_p": 0.9}, {"top_k": 50}])
def test_a_truncated_distribution_is_refused(truncated: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="whole distribution"):
        Reinforce(**truncated)
    assert Reinforce(top_p=1, top_k=0) == Reinforce()


def test_groups_are_complete() -> None:
    with pytest.raises(ValidationError, match="rollout_size must be a multiple of samples, but is 6 with 4 samples"):
        Reinforce(rollout_size=6, samples=4)


sequences = st.builds(
    lambda ids, share, masked: TokenSequence(
        tuple(ids),
        start := int(share * (len(ids) - 1)),
        tuple(i % 2 == 0 for i in range(len(ids) - start)) if masked else None,
    ),
    st.lists(st.integers(0, 99), min_size=1, max_size=6),
    st.floats(0, 1),
    st.booleans(),
)
values = st.floats(-1e9, 1e9) | st.lists(st.floats(-1e9, 1e9), max_size=4)
names = st.text("abc", min_size=1, max_size=3)


@settings(max_examples=25)
@given(
    rows=st.lists(st.builds(Row, names, st.dictionaries(names, sequences), st.dictionaries(names, values)), max_size=3)
)
def test_rows_survive_json(rows: list[Row]) -> None:
    assert rows_from_json(json.loads(json.dumps(rows_to_json(rows)))) == rows


def test_the_base_loads_no_torch() -> None:
    code = "import sys; import alignment_core.on_policy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
