"""The contenders of a comparison: their settings, which errors are found before anything runs, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config_file import load_config
from alignment_core.errors import AlignmentError, ConfigError, PluginError
from alignment_core.planning.pipeline import Plan
from alignment_flows.contenders import MOST_CONTENDERS, MOST_SEEDS, Contest, contenders_of, plans_of

Write = Callable[..., Path]


def planned(path: Path, contest: Contest) -> dict[int, dict[str, Plan]]:
    return plans_of(contest.rounds(load_config(path)), contest)


def settings(path: Path, optimizers: tuple[str, ...], *changes: str, **more: Any) -> Mapping[str, Any]:
    """Return the settings of the contenders with the first seed."""
    return next(iter(Contest(optimizers, changes, **more).rounds(load_config(path)).values()))


def test_change_applies_to_all_optimizers_or_to_one(write: Write) -> None:
    config = load_config(write())
    found = settings(write(), ("dpo", "kto"), "kto.learning_rate=0.5", "seed=7", "dpo.beta=0.2")
    assert found["dpo"].optimizer == {**config.optimizer, "beta": 0.2}
    assert found["kto"].optimizer == {"name": "kto", "learning_rate": 0.5}
    assert (found["dpo"].seed, found["kto"].seed) == (7, 7)


def test_the_reward_model_scores_all_responses_if_it_rewards_those_of_any_optimizer(write: Write) -> None:
    rules = "reward.by=[{name: repetition}]"

    def scored(names: tuple[str, ...], *changes: str) -> list[bool]:
        return [each.evaluation.reward_model for each in settings(write(), names, *changes).values()]

    assert scored(("dpo", "ppo")) == [True, True]
    assert scored(("dpo", "kto")) == [False, False]
    assert scored(("dpo", "ppo"), rules) == [False, False]
    assert scored(("dpo", "ppo"), "evaluation.reward_model=false") == [False, False]


def test_every_combination_of_values_is_a_contender() -> None:
    found = contenders_of(["dpo", "kto"], ["optimizer.beta=0.05,1e-1", "kto.learning_rate=1e-4,2e-4", "max_length=64"])
    assert [(each.name, each.changes) for each in found] == [
        ("dpo beta=0.05 max_length=64", ("dpo.beta=0.05", "max_length=64")),
        ("dpo beta=1e-1 max_length=64", ('dpo.beta="1e-1"', "max_length=64")),
        *[
            (f"kto beta={beta} learning_rate={rate} max_length=64",
             (f"kto.beta={given}", f'kto.learning_rate="{rate}"', "max_length=64"))
            for beta, given in (("0.05", "0.05"), ("1e-1", '"1e-1"')) for rate in ("1e-4", "2e-4")
        ],
    ]  # fmt: skip


def test_values_are_read_as_those_of_set(write: Write) -> None:
    """A list of values, text, a number with an exponent and nothing are the same as with `--set`."""
    grid = ("optimizer.length_normalised=true,no", "optimizer.learning_rate=1e-4,2.5e-5")
    found = [each.optimizer for each in settings(write(), ("dpo",), grid=grid).values()]
    changed = [
        load_config(write(), [f"optimizer.length_normalised={a}", f"optimizer.learning_rate={b}"]).optimizer
        for a in ("true", "no")
        for b in ("1e-4", "2.5e-5")
    ]
    assert found == changed
    (one, two) = contenders_of(["dpo"], ["data.sources=[{path: a}],[{path: b}]"])
    assert one.changes == ('data.sources=[{"path": "a"}]',)
    assert two.name == 'dpo data.sources=[{"path": "b"}]'


def test_the_grid_overrides_a_change(write: Write) -> None:
    found = settings(write(), ("dpo",), "optimizer.beta=0.7", "dpo.epochs=3", grid=("optimizer.beta=0.1,0.2",))
    assert [(each.optimizer["beta"], each.optimizer["epochs"]) for each in found.values()] == [(0.1, 3), (0.2, 3)]


def test_the_optimizer_of_the_settings_is_compared_if_none_is_named(write: Write) -> None:
    rounds = Contest(grid=("optimizer.beta=0.1,0.2",), seeds=3).rounds(load_config(write(seed=5)))
    assert {seed: list(found) for seed, found in rounds.items()} == {
        seed: ["dpo beta=0.1", "dpo beta=0.2"] for seed in (5, 6, 7)
    }
    assert {seed: {each.seed for each in found.values()} for seed, found in rounds.items()} == {5: {5}, 6: {6}, 7: {7}}


def test_optimizers_share_every_stage_that_does_not_depend_on_them(write: Write) -> None:
    names = ("ppo", "grpo", "rloo", "online_dpo", "dpo", "kto")
    (plans,) = planned(write(), Contest(names)).values()
    keys = {name: {stage: call.key for stage, call in plan.calls().items()} for name, plan in plans.items()}
    for stage in ("ingest", "sft", "evaluate_sft"):
        assert len({stages[stage] for stages in keys.values()}) == 1, stage
    assert len({stages["optimize"] for stages in keys.values()}) == len(names)


def test_settings_share_every_stage_and_seeds_share_the_data(write: Write) -> None:
    """Every call counts once by its key: that is how often its stage is built."""
    rounds = planned(write(), Contest(("dpo", "ppo"), grid=("dpo.beta=0.1,0.2,0.3",), seeds=2))
    keys: dict[str, set[str]] = {}
    for plans in rounds.values():
        for plan in plans.values():
            for name, call in plan.calls().items():
                keys.setdefault(name, set()).add(call.key)
    assert {name: len(found) for name, found in keys.items()} == {
        "ingest": 1, "sft": 2, "reward": 2, "reference": 2, "evaluate_sft": 2, "optimize": 8, "evaluate": 8,
        "over_sft": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("contest", "kind", "messages"),
    [
        (Contest(("dpo", "ktoo")), PluginError, ["Did you mean `kto`?"]),
        (Contest(("dpo", "dpo")), ConfigError, ["Name each optimizer once"]),
        (Contest(("dpo",), grid=("optimizer.betta=1,2",)), ConfigError,
         ["`dpo betta=1`", "optimizer.betta: unknown setting", "Did you mean `beta`?"]),
        (Contest(("dpo",), grid=("optimizer.beta=0.1,-2",)), ConfigError, ["`dpo beta=-2`: optimizer.beta", "-2"]),
        (Contest(("dpo", "grpo"), grid=("optimizer.label_smoothing=0,0.1",)), ConfigError,
         ["`grpo label_smoothing=0`: optimizer.label_smoothing", "--grid NAME.SETTING=…"]),
        (Contest(("dpo",), grid=("optimizer.beta=[0.1,0.2",)), ConfigError, ["optimizer.beta", "not valid YAML"]),
        (Contest(("dpo",), grid=("optimizer.beta",)), ConfigError, ["the values are missing"]),
        (Contest(("dpo",), grid=("optimizer.beta=",)), ConfigError, ["wrong number of values"]),
        (Contest(("dpo",), grid=("optimizer.beta=0.1,0.10",)), ConfigError, ["a value is repeated"]),
        (Contest(("dpo",), grid=("dpo.beta=0.1", "optimizer.beta=0.2")), ConfigError, ["dpo.beta", "given twice"]),
        (Contest(("dpo",), grid=("seed=1,2",)), ConfigError, ["Use --seeds"]),
        (Contest(("dpo",), grid=("optimizer.name=dpo,kto",)), ConfigError, ["Use --optimizers"]),
        (Contest(("dpo",), grid=("optimizer.beta=1,2,3,4,5", "optimizer.epochs=1,2,3,4,5")), ConfigError,
         ["too many contenders", "got 25", f"at most {MOST_CONTENDERS}"]),
        (Contest(("dpo",), seeds=MOST_SEEDS + 1), ConfigError, ["wrong number of seeds"]),
        (Contest(("dpo",), seeds=2, stop_losers=True), ConfigError, ["nobody would judge who loses"]),
        (Contest(("dpo",), grid=("sft.epochs=1,2",)), ConfigError, ["the same SFT model", "dpo sft.epochs=2"]),
        (Contest(("dpo",), grid=("checkpoint_seconds=60,70",)), ConfigError, ["these contenders are the same"]),
    ],
)  # fmt: skip
def test_errors_are_found_before_anything_runs(
    write: Write, contest: Contest, kind: type[AlignmentError], messages: list[str]
) -> None:
    with pytest.raises(kind) as caught:
        planned(write(), contest)
    assert not [message for message in messages if message not in str(caught.value)], str(caught.value)


def test_no_value_of_a_grid_shows_a_secret() -> None:
    (one, two) = contenders_of(["dpo"], ["feedback=postgresql://ann:s3cret@db/votes,./votes.db"])
    assert "s3cret" not in one.name
    assert "s3cret" in one.changes[0]
    assert two.name == "dpo feedback=./votes.db"


def test_labels_tell_contenders_and_seeds_apart(write: Write) -> None:
    plans = planned(write(), Contest(("dpo",), grid=("optimizer.beta=0.1,0.2",), seeds=2))
    labels = {call.key: call.label for of_seed in plans.values() for plan in of_seed.values() for call in
              plan.calls().values()}  # fmt: skip
    names = sorted(label.partition(" · ")[0] for label in labels.values())
    assert names == sorted([
        "ingest",
        *(f"{stage}, seed {seed}" for seed in (0, 1) for stage in ("sft", "reference", "evaluate sft")),
        *(
            f"{stage}dpo beta={beta}, seed {seed}"
            for seed in (0, 1)
            for beta in ("0.1", "0.2")
            for stage in ("", "evaluate ", "versus sft of ")
        ),
    ])  # fmt: skip
    assert all(label.endswith(f" · {key[:4]}") for key, label in labels.items())
    (one,) = planned(write(), Contest(("dpo", "kto"))).values()
    assert [plan.optimize.label.partition(" · ")[0] for plan in one.values()] == ["dpo", "kto"]
    assert [plan.evaluate.label.partition(" · ")[0] for plan in one.values()] == ["evaluate dpo", "evaluate kto"]
