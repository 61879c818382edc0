"""The examples as users get them: wheels, installed into a clean environment with ours, and run."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from environments import build_wheel, make_environment, run
from prefect.flows import load_flow_from_entrypoint
from prefect.variables import Variable
from served import Served, align_up
from shown import events_about

from alignment_core.config_file import load_config
from alignment_flows.demo import demo_config

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture
def install_example(wheel: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that installs our wheel and an example's wheel and returns the environment's `bin`."""

    def install(name: str) -> Path:
        own = build_wheel(EXAMPLES / name, tmp_path / "dist")
        return make_environment(tmp_path / "env", wheel, own)

    return install


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Path:
    """Write the settings of a small run on pairs. The tests choose the optimizer."""
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": f"{n}, sorry!"} for n in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"batch_size": 8, "learning_rate": 1e-3}
    settings = {
        "name": "small",
        "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2}},
        "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}], "held_out_fraction": 0.25},
        "sft": step,
        "reward": step,
        "evaluation": {"max_prompts": 2, "max_new_tokens": 8},
        "store": str(tmp_path / "store"),
        "device": "cpu",
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings))
    return path


def installed_and_run(
    bin_folder: Path, package: str, name: str, config: Path, folder: Path, *changes: str
) -> dict[str, Any]:
    """Run the conformance kit and the pipeline with an optimizer of the example. Return the optimizer's manifest."""
    align = bin_folder / "align"
    place = run(folder, bin_folder / "python", "-c", f"import {package} as plugin; print(plugin.__file__)")
    assert Path(place.strip()).is_relative_to(folder)
    checked = json.loads(run(folder, align, "plugins", "check", name, "--json"))
    assert {result["outcome"] for result in checked["results"]} == {"passed"}
    options = [word for change in changes for word in ("--set", change)]
    done = json.loads(run(folder, align, "run", config, "--json", "--set", f"optimizer.name={name}", *options))
    assert (Path(done["policy"]) / "adapter_model.safetensors").is_file()
    manifest: dict[str, Any] = json.loads((Path(done["policy"]) / "manifest.json").read_text())
    return manifest


def run_tests(bin_folder: Path, package: str, folder: Path, *options: str) -> None:
    """Run the example's own tests in the environment."""
    tests = EXAMPLES / package / "tests"
    pytest_of_environment = [bin_folder / "python", "-m", "pytest", "-q", "--import-mode=importlib"]
    run(folder, *pytest_of_environment, "--rootdir", folder, tests, *options)


@contextmanager
def served_from(bin_folder: Path, folder: Path) -> Iterator[Served]:
    """Run `align up` of the environment in a folder outside the checkout."""
    with align_up(folder, folder / "prefect", [str(bin_folder / "align")], PYTHONPATH="") as served:
        yield served


def run_deployed(served: Served, deployment: str, name: str, more: str = "") -> None:
    """Run a deployment with the optimizer and settings that are not cached. The run must end as Completed."""
    given = served.deployment(deployment)["parameters"]["config"]
    flow_run = served.start(
        deployment, {"config": given, "changes": [f"optimizer={{name: {name}, batch_size: 4{more}}}"]}
    )
    ended = served.ended(flow_run)
    assert ended["type"] == "COMPLETED", served.state_and_log(flow_run)
    assert {served.tasks(flow_run)[stage]["state"]["name"] for stage in (name, f"evaluate {name}")} == {"Completed"}
    assert any(report.startswith(f"# evaluate {name} · ") for report in served.reports(flow_run))


def test_demo_config_file_equals_the_settings_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the stages would be rebuilt, and the numbers in the examples' pages would differ."""
    monkeypatch.setenv("WORLD", "world")
    shown = load_config(EXAMPLES / "demo.yaml")
    demo = demo_config(Path("world"), Path("store"), 0, "dpo")
    own = {"name", "store", "optimizer"}
    assert shown.model_dump(exclude=own) == demo.model_dump(exclude=own)


@pytest.mark.ci
@pytest.mark.usefixtures("prefect_server")
def test_nightly_assistant(tiny_model: Path, tmp_path: Path) -> None:
    """The flow runs twice. The second run finds everything in the store, except what its own tasks do."""
    flow = load_flow_from_entrypoint(f"{EXAMPLES / 'nightly_assistant.py'}:nightly_assistant")
    trigger = runpy.run_path(str(EXAMPLES / "nightly_assistant.py"))["ROLLED_BACK"]
    assert trigger.expect == {"alignment.model.rolled-back"}
    Variable.set("assistant_base_model", str(tiny_model), overwrite=True)
    changes = {
        "model.load_in": "fp32",
        "model.max_length": 128,
        "optimizer.batch_size": 8,
        "evaluation": {"max_prompts": 2, "max_new_tokens": 8},
        "device": "cpu",
        "isolation": "inline",
    }
    first, second = (flow(tmp_path, changes) for _ in range(2))
    assert (Path(first) / "adapter_model.safetensors").is_file()
    assert second == first
    events = events_about(f"assistant.policy.{Path(first).name}", 2)
    assert [event["payload"]["new"] for event in events] == [True, False]
    policy = events_about("alignment://assistant/policy", 2)[0]
    assert "prefect.tag.assistant" in [each["prefect.resource.id"] for each in policy["related"]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_zoo(install_example: Callable[[str], Path], config: Path, tmp_path: Path) -> None:
    bin_folder = install_example("alignment-zoo")
    run_tests(bin_folder, "alignment-zoo", tmp_path, "-k", "not conformance")
    manifest = installed_and_run(bin_folder, "alignment_zoo", "ipo", config, tmp_path, "optimizer.batch_size=8")
    # Not installed from an index, where a version is published once, so the manifest also contains a source digest.
    assert manifest["config"]["plugin"].items() > {"package": "alignment-zoo", "version": "1.0.0"}.items()
    with served_from(bin_folder, tmp_path) as served:
        run_deployed(served, served.deploy(config), "ipo")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_optimizer_of_the_zoo(install_example: Callable[[str], Path], config: Path, tmp_path: Path) -> None:
    """Each learns from the kind of rows that it needs, with the stages that it needs."""
    bin_folder = install_example("alignment-zoo")
    run_tests(bin_folder, "alignment-zoo", tmp_path, "-k", "conformance")
    thumbs = [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 3 > 0} for n in range(24)]
    (tmp_path / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in thumbs))
    changes = {
        "tr_dpo": ["optimizer.every=1"],
        "orpo": ["sft=null"],
        "spin": ["optimizer.max_new_tokens=8", "optimizer.epochs=2"],
        "gdpo": [
            "optimizer.objectives=[{name: refusal}, {name: length_band, most: 9, unit: characters}]",
            "optimizer.rollouts=2",
            "optimizer.rollout_size=16",
            "optimizer.max_new_tokens=8",
        ],
        **{name: [f"data.sources.0.path={tmp_path / 'thumbs.jsonl'}"] for name in ("bco", "dro", "rmu")},
    }
    listed = json.loads(run(tmp_path, bin_folder / "align", "plugins", "list", "--json"))["plugins"]
    names = [plugin["name"] for plugin in listed if plugin["package"] == "alignment-zoo"]
    assert len(names) == 10
    for name in names:
        own = ["optimizer.batch_size=8", *changes.get(name, [])]
        manifest = installed_and_run(bin_folder, "alignment_zoo", name, config, tmp_path, *own)
        assert manifest["metrics"]["steps"] > 1, name
        assert ("reference" in manifest["parents"]) == (name in ("ipo", "bco", "dro", "rmu")), name


@pytest.mark.slow
def test_reinforce(install_example: Callable[[str], Path], config: Path, tmp_path: Path) -> None:
    bin_folder = install_example("alignment-reinforce")
    run_tests(bin_folder, "alignment-reinforce", tmp_path)
    changes = ("optimizer.rollouts=2", "optimizer.rollout_size=8", "optimizer.max_new_tokens=8")
    manifest = installed_and_run(bin_folder, "alignment_reinforce", "reinforce", config, tmp_path, *changes)
    assert manifest["config"]["plugin"].items() > {"package": "alignment-reinforce", "version": "1.0.0"}.items()
    assert manifest["metrics"]["steps"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_both_through_a_deployment(wheel: Path, config: Path, tmp_path: Path) -> None:
    """Two third-party optimizers in one environment are in the form of one deployment, and its worker runs them."""
    wheels = [build_wheel(EXAMPLES / f"alignment-{name}", tmp_path / f"dist-{name}") for name in ("zoo", "reinforce")]
    with served_from(make_environment(tmp_path / "env", wheel, *wheels), tmp_path) as served:
        deployment = served.deploy(config)
        form = json.dumps(served.deployment(deployment)["parameter_openapi_schema"], ensure_ascii=False)
        assert "The target margin is 1/(2τ) nats per token." in form
        assert "β, the weight of the KL penalty per token in the reward." in form
        run_deployed(served, deployment, "ipo")
        run_deployed(served, deployment, "reinforce", ", rollouts: 2, rollout_size: 8, max_new_tokens: 8")


@pytest.mark.slow
def test_librechat(install_example: Callable[[str], Path], tmp_path: Path) -> None:
    bin_folder = install_example("alignment-librechat")
    run_tests(bin_folder, "alignment-librechat", tmp_path)
    listed = json.loads(run(tmp_path, bin_folder / "align", "plugins", "list", "--json"))
    assert ("format", "librechat") in {(plugin["kind"], plugin["name"]) for plugin in listed["plugins"]}
