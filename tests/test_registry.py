"""Third-party plugins: real distributions on `sys.path`, found through real entry points."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from strangers import HINGE, RUDE

from alignment_core.artifacts.source_digest import source_digest
from alignment_core.errors import ConfigError, PluginError
from alignment_core.plugin_api import Needs
from alignment_core.registry import Registry, load_registry

Install = Callable[..., None]


def names(registry: Registry, kind: str) -> set[str]:
    return {plugin.name for plugin in registry.plugins if plugin.kind == kind}


def test_built_in_plugins_are_found_through_the_entry_points() -> None:
    registry = load_registry()
    assert registry.problems == []
    assert {"dpo", "grpo", "kto", "online_dpo", "ppo", "rloo"} <= names(registry, "optimizer")
    assert "wordlist" in names(registry, "evaluator")


def test_third_party_plugin_is_selected_by_name(install: Install) -> None:
    install("stranger-hinge", HINGE)
    install("stranger-rude", RUDE)
    registry = load_registry()
    assert registry.problems == []
    hinge = registry.optimizer({"name": "hinge", "slack": "2"})
    assert (type(hinge).__name__, hinge.model_dump()["slack"]) == ("Hinge", 2.0)
    assert registry.identity(hinge) == {"package": "stranger-hinge", "version": "1.2"}
    assert registry.evaluator({"name": "polite"}).score((), "yes please", {}) == 1.0


def test_output_of_a_plugin_stays_out_of_stdout(install: Install, capfd: pytest.CaptureFixture[str]) -> None:
    talking = HINGE.replace("class Hinge", 'print("at import")\n    class Hinge')
    install("stranger-talking", talking.replace("return [Hinge]", 'print("in the hook"); return [Hinge]'))
    assert load_registry().problems == []
    assert tuple(capfd.readouterr()) == ("", "at import\nin the hook\n")


def test_description_of_a_plugin(install: Install) -> None:
    install("stranger-hinge", HINGE)
    plugin = next(plugin for plugin in load_registry().plugins if plugin.name == "hinge")
    described = plugin.to_json()
    settings = {setting["name"]: setting for setting in described.pop("settings")}
    assert described == {
        "name": "hinge",
        "kind": "optimizer",
        "version": "1.2",
        "package": "stranger-hinge",
        "description": "Learns by a hinge.",
        "needs": ["preferences"],
    }
    assert settings["slack"] == {
        "name": "slack",
        "type": "float, > 0, ≤ 3",
        "required": False,
        "default": 1.0,
        "description": "Width of the hinge.",
    }
    assert "name" not in settings
    json.dumps(settings)


@pytest.mark.parametrize(
    ("raw", "error", "paragraph"),
    [
        (
            {"name": "hing"},
            PluginError,
            "optimizer.name: no installed optimizer has this name. got hing,"
            " expected one of dpo, grpo, hinge, kto, online_dpo, ppo, rloo. Did you mean `hinge`?",
        ),
        (
            {"name": "hinge", "slack": 4},
            ConfigError,
            "optimizer.slack: invalid value. got 4, expected less than or equal to 3.",
        ),
        ({"name": "hinge", "slak": 1}, ConfigError, "optimizer.slak: unknown setting. Did you mean `slack`?"),
        (
            {"slack": 1},
            ConfigError,
            "optimizer.name: this setting is missing. expected dpo, grpo, hinge, kto, online_dpo, ppo, rloo.",
        ),
    ],
)
def test_errors_in_the_settings(install: Install, raw: dict[str, Any], error: type[Exception], paragraph: str) -> None:
    install("stranger-hinge", HINGE)
    with pytest.raises(error) as caught:
        load_registry().optimizer(raw)
    assert str(caught.value) == paragraph


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import no_such_module_anywhere", "it cannot be imported: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "it cannot be imported: SystemExit: 3"),
        ("x = 1", "it implements no hook"),
        (HINGE.replace("alignment_optimizers", "alignment_optimisers"), "unknown hook `alignment_optimisers`. Did"),
        (HINGE.replace("alignment_optimizers()", "alignment_optimizers(config)"), "a hook has the wrong signature"),
        (HINGE.replace("return [Hinge]", "return Hinge"), "`alignment_optimizers` did not return a list"),
        (HINGE.replace("return [Hinge]", "pass"), "`alignment_optimizers` did not return a list"),
        (HINGE.replace("return [Hinge]", "return [1 / 0]"), "`alignment_optimizers` failed: ZeroDivisionError"),
        (HINGE.replace("return [Hinge]", "return [Hinge()]"), "it is an instance, and the hook must return classes"),
        (HINGE.replace("return [Hinge]", "return (Hinge,)"), "did not return a list, but tuple"),
        (HINGE.replace("slack: float", "evaluators: ClassVar = 'slack'; slack: float"), "is no tuple of names of sett"),
        (HINGE.replace("return [Hinge]", "return [int]"), "int is not a usable optimizer: it is not a subclass"),
        (
            HINGE.replace("slack: float", "api_version: ClassVar[int] = 2; slack: float"),
            "for plugin API 2, but alignment-flows has plugin API 1",
        ),
        (HINGE.replace('Literal["hinge"]', "str"), "it has no fixed name"),
        (HINGE.replace("def loss", "def lost"), "it does not define `loss`"),
        (HINGE.replace("def needs", "def need"), "it does not define `needs`"),
        (
            HINGE.replace("return Needs(preferences=True)", "return ['preferences']"),
            "`needs` returned list, not `Needs`",
        ),
        (
            HINGE.replace("preferences=True", "preferences=self.slack > 1").replace("1.0, gt", "gt"),
            "`needs` failed with the default settings and those in `example`: AttributeError: 'Hinge' object has no",
        ),
        (
            HINGE.replace("slack: float", "example: ClassVar = {'slak': 2}; slack: float"),
            "its `example` contains slak, but it has no such setting",
        ),
        (
            HINGE.replace("slack: float", "evaluators: ClassVar = ('judge',); slack: float"),
            "evaluators` contains judge",
        ),
        (RUDE.replace("def score", "def skore"), "it defines neither `score` nor `scores`"),
        (RUDE.replace("def score", "async def score"), "its `score` is `async`, but it is called without `await`"),
        (
            HINGE.replace("def loss(self, run, micro)", "def loss(self, micro)"),
            "its `loss` takes (micro), but it is called with (run, micro)",
        ),
        (HINGE.replace("def batches(self, run): yield from ()", "batches: ClassVar = 3"), "is not a method, but int"),
        (
            HINGE.replace("slack: float", "example: ClassVar = ['slack']; slack: float"),
            "its `example` is list, but it must map settings to values",
        ),
        (HINGE.replace("Field(1.0,", "Field(default_factory=lambda: 1 / 0,"), "described: ZeroDivisionError: division"),
    ],
)
def test_broken_plugin_is_reported_and_the_rest_works(install: Install, source: str, fault: str) -> None:
    install("stranger-broken", source)
    registry = load_registry()
    assert [fault in str(problem) for problem in registry.problems] == [True], registry.problems
    assert str(registry.problems[0]).startswith("plugin `stranger_broken_entry` of stranger-broken 1.2: ")
    assert {"dpo", "grpo", "kto", "online_dpo", "ppo", "rloo"} <= names(registry, "optimizer")
    assert "hinge" not in names(registry, "optimizer")
    with pytest.raises(PluginError, match=r"Not usable: plugin `stranger_broken_entry` of stranger-broken 1\.2"):
        registry.optimizer({"name": "hinge"})


def test_settings_decide_what_is_needed(install: Install) -> None:
    """The description shows the needs of the defaults, or of `example` where a setting has no default."""
    source = HINGE.replace("preferences=True", "preferences=True, reference=self.slack > 1").replace("1.0, gt", "gt")
    install("stranger-hinge", source.replace("slack: float", "example: ClassVar = {'slack': 2}; slack: float"))
    registry = load_registry()
    described = next(plugin for plugin in registry.plugins if plugin.name == "hinge").to_json()
    assert described["needs"] == ["preferences", "reference"]
    assert registry.optimizer({"name": "hinge", "slack": 0.5}).needs() == Needs(preferences=True)


def test_settings_may_choose_evaluators(install: Install) -> None:
    """A third-party optimizer uses a third-party evaluator, as PPO does for its held-out measure."""
    judged = "evaluators: ClassVar = ('judge',); judge: dict | None = None; slack: float"
    install("stranger-hinge", HINGE.replace("slack: float", judged))
    install("stranger-polite", RUDE)
    registry = load_registry()
    assert registry.evaluators_of(registry.optimizer({"name": "hinge"})) == {}
    chosen = registry.optimizer({"name": "hinge", "judge": {"name": "polite"}})
    assert registry.evaluators_of(chosen)["judge"].score((), "please", {}) == 1.0
    with pytest.raises(PluginError, match=r"optimizer\.judge\.name: no installed evaluator has this name"):
        registry.evaluators_of(registry.optimizer({"name": "hinge", "judge": {"name": "rude"}}))
    with pytest.raises(ConfigError, match=r"optimizer\.held_out_measure\.wantd"):
        registry.evaluators_of(
            registry.optimizer({"name": "ppo", "held_out_measure": {"name": "wordlist", "wantd": []}})
        )


def test_settings_may_choose_a_list_of_evaluators(install: Install) -> None:
    judged = "evaluators: ClassVar = ('judges',); judges: list = []; slack: float"
    install("stranger-hinge", HINGE.replace("slack: float", judged))
    install("stranger-polite", RUDE)
    registry = load_registry()
    assert registry.evaluators_of(registry.optimizer({"name": "hinge"})) == {}
    words = {"name": "wordlist", "wanted": ["good"]}
    chosen = registry.evaluators_of(registry.optimizer({"name": "hinge", "judges": [{"name": "polite"}, words]}))
    assert {place: rule.score((), "good", {}) for place, rule in chosen.items()} == {"judges.0": 0.0, "judges.1": 1.0}
    with pytest.raises(ConfigError, match=r"judges\.0: this setting does not choose a plugin\. got 'polite'"):
        registry.evaluators_of(registry.optimizer({"name": "hinge", "judges": ["polite"]}))
    with pytest.raises(ConfigError, match=r"optimizer\.judges\.1\.wantd"):
        registry.evaluators_of(registry.optimizer({"name": "hinge", "judges": [words, {**words, "wantd": []}]}))


def test_two_plugins_with_one_name_are_both_refused(install: Install) -> None:
    built_in = names(load_registry(), "optimizer")
    install("stranger-hinge", HINGE)
    install("other-hinge", HINGE, version="3")
    install("stranger-dpo", HINGE.replace('"hinge"', '"dpo"'))
    registry = load_registry()
    assert {problem.package for problem in registry.problems} == {
        "stranger-hinge",
        "other-hinge",
        "stranger-dpo",
        "alignment-flows",
    }
    assert names(registry, "optimizer") == built_in - {"dpo"}
    with pytest.raises(PluginError) as caught:
        registry.optimizer({"name": "hinge"})
    assert str(caught.value) == (
        "optimizer.name: the optimizer `hinge` is defined more than once."
        " got other-hinge 3 and stranger-hinge 1.2. Uninstall all but one."
    )


def test_source_of_an_editable_plugin_enters_its_identity(install: Install, tmp_path: Path) -> None:
    install("stranger-hinge", HINGE, direct_url='{"url": "file:///x", "dir_info": {"editable": true}}')
    registry = load_registry()
    hinge = registry.optimizer({"name": "hinge"})
    before = registry.identity(hinge)
    assert before.keys() == {"package", "version", "source"}
    (tmp_path / "unrelated.py").write_text("x = 1")
    assert registry.identity(hinge) == before
    with (tmp_path / "stranger_hinge.py").open("a") as file:
        file.write("# another loss\n")
    assert registry.identity(hinge) != before


def test_source_digest_follows_imports_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "strangers_package"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "__init__.py").write_text("from ..shared import x")
    (package / "deep" / "plugin.py").write_text("from . import helper\ndef f():\n    import strangers_package.late\n")
    (package / "deep" / "helper.py").write_text("from alignment_core import losses")
    for name in ("shared", "late", "unused"):
        (package / f"{name}.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("strangers_package.deep.plugin")
    digest = source_digest("strangers_package.deep.plugin")
    changed = {}
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        path.write_text(text + "\n# changed\n")
        changed[path.relative_to(package).as_posix()] = source_digest("strangers_package.deep.plugin") != digest
        path.write_text(text)
    assert changed == {
        "__init__.py": True,
        "deep/__init__.py": True,
        "deep/helper.py": True,
        "deep/plugin.py": True,
        "late.py": True,
        "shared.py": True,
        "unused.py": False,
    }


def test_finding_plugins_loads_no_torch() -> None:
    code = "import sys, alignment_core.registry as r; r.load_registry(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_plugin_of_any_kind_is_found_by_its_name(install: Install) -> None:
    install("stranger-rude", RUDE.replace('"polite"', '"hinge"'))
    assert load_registry().plugin("hinge").kind == "evaluator"
    install("stranger-hinge", HINGE)
    registry = load_registry()
    with pytest.raises(ConfigError) as error:
        registry.plugin("hinge")
    assert str(error.value) == (
        "NAME: plugins of several kinds have this name. got hinge, expected --kind, one of evaluator, optimizer."
    )
    assert registry.plugin("hinge", "optimizer").package == "stranger-hinge"
    with pytest.raises(
        PluginError, match=r"NAME: no installed listener has this name\. got hinge, expected one of jsonl"
    ):
        registry.plugin("hinge", "listener")
