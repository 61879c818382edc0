"""Every kind of broken plugin, all installed at once, as the command reports them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from strangers import HINGE

ALIGN = [sys.executable, "-c", "from alignment_flows.cli.app import main; main()"]

GOOD = HINGE.replace('"hinge"', '"NAME"')
SLACK = "slack: float = Field(1.0, gt=0, le=3)"
BROKEN = {
    "import-fails": (
        GOOD.replace("@hookimpl", "import no_such_module"),
        "it cannot be imported: ModuleNotFoundError: No mod",
    ),
    "other-api": (GOOD.replace(SLACK, "api_version: ClassVar[int] = 7"), "for plugin API 7, but alignment-flows has"),
    "misspelt": (
        GOOD.replace("alignment_optimizers()", "alignment_optimisers()"),
        "unknown hook `alignment_optim",
    ),
    "signature": (
        GOOD.replace("alignment_optimizers()", "alignment_optimizers(a)"),
        "a hook has the wrong signature:",
    ),
    "clash-example": (GOOD.replace(SLACK, "example: float = 0.5"), "its setting `example` conflicts with the"),
    "clash-base": (
        GOOD.replace(SLACK, "epochs: str = 'many'"),
        "its setting `epochs` has the default 'many', but every",
    ),
    "clash-run": (GOOD.replace(SLACK, "total_steps: int = 5"), "its setting `total_steps` conflicts with the"),
    "no-list": (GOOD.replace("[Hinge]", "Hinge"), "`alignment_optimizers` did not return a list"),
    "twin-one": (GOOD.replace("NAME", "twin"), "the optimizer `twin` is defined more than once, so none is used"),
    "twin-two": (GOOD.replace("NAME", "twin"), "the optimizer `twin` is defined more than once, so none is used"),
}


def align(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ALIGN, *map(str, arguments)], capture_output=True, text=True, check=False)


PLAN = """
import sys
from pathlib import Path
from alignment_core.config_file import load_config
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry
print(plan_pipeline(load_config(Path(sys.argv[1])), load_registry()).calls()["optimize"].key)
"""


def key_of_the_policy(config: Path) -> str:
    """Plan the run in a new process, without the predictions that `align plan` adds, and return the policy's key."""
    return subprocess.run([sys.executable, "-c", PLAN, config], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def everything_broken(install: Callable[..., None]) -> None:
    for number, (package, (source, _)) in enumerate(BROKEN.items()):
        install(package, source.replace("NAME", package), version=f"1.{number}")
    install("whole", GOOD.replace("NAME", "whole"), version="3.1")


@pytest.mark.usefixtures("everything_broken")
def test_each_broken_plugin_is_reported_with_its_version_and_the_rest_works(write: Callable[..., Path]) -> None:
    done = align("plugins", "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    listed = json.loads(done.stdout)
    rules = {"exact_match", "json_schema", "language", "length_band", "llm_judge", "numeric_match", "refusal", "regex"}
    rules |= {"repetition", "unit_tests", "wordlist"}
    optimizers = {"dpo", "grpo", "kto", "online_dpo", "ppo", "rloo", "whole"}
    assert rules | optimizers | {"jsonl", "tracker"} == {plugin["name"] for plugin in listed["plugins"]}
    problems = sorted(listed["problems"])
    assert len(problems) == len(BROKEN)
    for number, (package, (_, reason)) in enumerate(BROKEN.items()):
        (problem,) = [problem for problem in problems if f" of {package} 1.{number}: " in problem]
        assert reason in problem

    assert key_of_the_policy(write(optimizer={"name": "whole", "slack": 2}))

    refused = align("plan", write(optimizer={"name": "other-api"}))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    reason = "plugin `other_api_entry` of other-api 1.1: Hinge is not a usable optimizer: it was written for"
    assert reason in refused.stderr

    twins = align("plan", write(optimizer={"name": "twin"}))
    assert (twins.returncode, len(twins.stderr.splitlines())) == (2, 1)
    assert "got twin-one 1.8 and twin-two 1.9. Uninstall all but one." in twins.stderr


@pytest.mark.usefixtures("everything_broken")
def test_version_enters_key_and_manifest(write: Callable[..., Path], tmp_path: Path) -> None:
    config = write(optimizer={"name": "whole"})
    before = key_of_the_policy(config)
    info = tmp_path / "whole-3.1.dist-info"
    (info / "METADATA").write_text((info / "METADATA").read_text().replace("3.1", "3.2"))
    assert key_of_the_policy(config) != before
