"""Which settings trust the code of a model, what it changes in the keys, and who may say so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from classifiers import save_classifier
from own_model import PLACES, processes, save_own_model

from alignment_core.config_file import load_config
from alignment_core.errors import AlignmentError, ConfigError, ModelError
from alignment_core.execution.stage import StageCall
from alignment_core.own_code import may_run
from alignment_core.planning.moved_inputs import check_moved
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry
from alignment_flows.contenders import Contest
from alignment_flows.form.settings import PipelineForm, read_settings
from alignment_flows.quick import read_quick
from alignment_flows.serve.deployments.declared import own

TRUST = "model.trust_remote_code=true"
Calls = Callable[..., dict[str, StageCall]]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return save_own_model(tiny_model, tmp_path / "own")


@pytest.fixture
def calls(write: Callable[..., Path]) -> Calls:
    """Return a function that plans a small run on a model, with changes."""

    def planned(model: Path, *changes: str) -> dict[str, StageCall]:
        config = load_config(write(), [f"model.base={model}", *changes])
        return plan_pipeline(config, load_registry()).calls()

    return planned


def keys(calls: dict[str, StageCall]) -> dict[str, str]:
    return {name: call.key for name, call in calls.items()}


def trusting(config: Path, model: Path) -> Path:
    """Let a config file name this model, and trust its code."""
    edit(config, lambda settings: settings["model"].update(base=str(model), trust_remote_code=True))
    return config


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_code_is_refused_by_name_before_anything_starts(calls: Calls, model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"model\.base: .*code of its own.*OwnConfig.*`model\.trust_remote_code: true`"
    ):
        calls(model)
    reward = save_own_model(save_classifier(tmp_path / "plain"), tmp_path / "reward")
    with pytest.raises(ModelError, match=r"reward\.model: .*code of its own.*`reward\.trust_remote_code: true`"):
        calls(model, TRUST, f"reward.model={reward}")
    assert not processes(model)
    assert not processes(reward)


def test_a_changed_line_of_code_gives_other_keys(calls: Calls, model: Path, tmp_path: Path) -> None:
    before = keys(calls(model, TRUST))
    (model / "notes.txt").write_text("not code")
    assert keys(calls(model, TRUST)) == before
    (model / "deeper").mkdir()
    for file in (model / "traces.py", model / "tokenization_own.py", model / "deeper" / "new.py"):
        with file.open("a") as text:
            text.write("\n# changed\n")
        after = keys(calls(model, TRUST))
        assert not set(after.values()) & set(before.values()) - {before.get("gate")}, file
        before = after
    assert not processes(model), "no code runs to make a plan"


def test_code_of_a_reward_model_is_in_the_keys_of_what_reads_it(calls: Calls, tiny_model: Path, tmp_path: Path) -> None:
    reward = save_own_model(save_classifier(tmp_path / "plain"), tmp_path / "reward")
    given = (f"reward.model={reward}", "reward.trust_remote_code=true", "optimizer={name: ppo}")
    before = keys(calls(tiny_model, *given))
    (reward / "modeling_own.py").write_text((reward / "modeling_own.py").read_text() + "# changed\n")
    after = keys(calls(tiny_model, *given))
    changed = {name for name in before if before[name] != after[name]}
    assert "evaluate" in changed
    assert not changed & {"ingest", "sft", "reference"}
    with pytest.raises(ConfigError, match=r"reward\.trust_remote_code: .*needs `reward\.model`"):
        calls(tiny_model, "reward.trust_remote_code=true")


def test_trust_without_code_changes_no_key(calls: Calls, tiny_model: Path) -> None:
    assert keys(calls(tiny_model, TRUST)) == keys(calls(tiny_model))


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "named", ["other/repo--modeling_own.OwnModel", "/tmp/evil.Own", "../evil.Own", "missing.Own", "a/b.Own", "own"]
)
def test_code_elsewhere_is_refused_although_it_is_trusted(calls: Calls, model: Path, place: str, named: str) -> None:
    edit(model / place, lambda content: content["auto_map"].update({"AutoTokenizer": [None, named]}))
    with pytest.raises(ModelError, match=r"in another repository or folder.*got .*config\.json"):
        calls(model, TRUST)


@pytest.mark.parametrize("auto_map", [7, "x.Y", {"AutoConfig": 7}, {"AutoConfig": {"a": "b.c"}}, [[1]]])
def test_odd_auto_map_is_named(calls: Calls, model: Path, auto_map: object) -> None:
    edit(model / "config.json", lambda content: content.update(auto_map=auto_map))
    for changes in ((TRUST,), ()):
        try:
            calls(model, *changes)
        except AlignmentError as error:
            assert "config.json" in str(error)  # noqa: PT017


def test_changed_code_does_not_run(model: Path, calls: Calls) -> None:
    code = calls(model, TRUST)["sft"].inputs["model"]["own_code"]
    assert may_run(str(model), None, code)
    assert not may_run(str(model), None, None)
    (model / "traces.py").write_text("raise SystemExit")
    with pytest.raises(ModelError, match="no longer the one that was trusted"):
        may_run(str(model), None, code)
    assert may_run("owner/name", "1" * 40, f"owner/name@{'1' * 40}")
    with pytest.raises(ModelError, match="no longer"):
        may_run("owner/name", "2" * 40, f"owner/name@{'1' * 40}")


@pytest.mark.parametrize("unfit", ["isolation=inline", "where={sft: gpu}"])
def test_code_runs_in_processes_of_this_machine_only(calls: Calls, model: Path, unfit: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{unfit.partition('=')[0]}: .*only in the processes of stages"):
        calls(model, TRUST, unfit)


def test_a_call_from_another_machine_runs_no_code(calls: Calls, model: Path) -> None:
    with pytest.raises(ConfigError, match="not run for another machine"):
        check_moved(calls(model, TRUST)["sft"], load_registry())


def test_prefect_is_not_believed(write: Callable[..., Path], model: Path) -> None:
    path = trusting(write(), model)
    config = load_config(path)
    typed = config.model_dump(mode="json")
    assert read_settings(config, ()).model.trust_remote_code, "the settings of a file, in the process that read it"
    quiet = {**typed, "model": {**typed["model"], "trust_remote_code": False}}
    reward = {**quiet, "reward": {"model": str(model), "trust_remote_code": True}}
    whole = f"model={json.dumps(typed['model'])}"
    for values, changes in ((typed, ()), (quiet, (TRUST,)), (quiet, (whole,)), (reward, ())):
        with pytest.raises(ConfigError, match=r"(model|reward)\.trust_remote_code: a value from a form.*config file"):
            read_settings(values, changes)
    plain = load_config(path, ["model.trust_remote_code=false"])
    for contest in (Contest(("dpo",), (TRUST,)), Contest(("dpo",), (), (f"{TRUST},false",))):
        with pytest.raises(ConfigError, match="a value from a form"):
            contest.rounds(plain)


def test_quick_form_trusts_only_the_model_of_the_file(write: Callable[..., Path], model: Path) -> None:
    path = trusting(write(), model)
    assert read_quick(str(path)).model.trust_remote_code
    assert read_quick(str(path), model=str(model)).model.trust_remote_code
    other = shutil.copytree(model, model.parent / "other")
    assert not read_quick(str(path), model=str(other)).model.trust_remote_code
    assert [each.flow for each in own(path)] == ["quick"]


def test_form_does_not_offer_it() -> None:
    from pydantic import TypeAdapter

    schema = json.dumps(TypeAdapter(PipelineForm).json_schema())
    assert "max_length" in schema
    assert "trust_remote_code" not in schema


def test_places_of_the_model_are_all_named(model: Path) -> None:
    assert json.loads((model / "config.json").read_text())["auto_map"] == PLACES
