"""`align run` accepts every config file of the repository and every complete config shown in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from alignment_core.config import PipelineConfig
from alignment_core.config_file import load_config
from alignment_core.registry import load_registry

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "deployments" / "configs").glob("*.yaml"))
RUN_ELSEWHERE = ROOT / "docs" / "how-to" / "write-a-plugin.md"
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")} - {RUN_ELSEWHERE}
)


def check(config: PipelineConfig) -> None:
    """Validate the settings that belong to plugins."""
    registry = load_registry()
    registry.evaluators_of(registry.optimizer(config.optimizer))
    for raw in config.evaluation.evaluators + ([config.rank.by] if config.rank else []):
        registry.evaluator(raw)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path: Path) -> None:
    config = load_config(path)
    check(config)
    assert config.name == path.stem


def test_there_is_a_recipe_for_every_card_and_optimizer() -> None:
    recipes = [load_config(path) for path in CONFIGS if path.stem.startswith("gpu-")]
    assert {config.name.split("-")[1] for config in recipes} == {"8gb", "12gb", "16gb", "24gb"}
    assert {config.optimizer["name"] for config in recipes} == {"dpo", "kto", "ppo"}
    assert all(config.model.load_in == "nf4" for config in recipes)


@pytest.mark.parametrize("name", ["hh-dpo-stories260k", "kto-stories260k", "ppo-stories260k"])
def test_local_inputs_exist(name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_SHARED_DATA", str(shared_data))
    config = load_config(ROOT / "deployments" / "configs" / f"{name}.yaml")
    assert (Path(config.model.base) / "config.json").is_file()
    assert all(Path(source.path).is_file() for source in config.data.sources)


def complete_configs() -> list[tuple[str, str]]:
    """Return document and text of each YAML block with a model and data. Other blocks show only part of a config."""
    return [
        (str(document.relative_to(ROOT)), block)
        for document in DOCUMENTS
        for block in re.findall(r"^```yaml\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
        if isinstance(shown := yaml.safe_load(block), dict) and {"model", "data"} <= shown.keys()
    ]


@pytest.mark.parametrize(("document", "block"), complete_configs(), ids=lambda value: value.partition("\n")[0])
def test_config_in_a_document_is_accepted(document: str, block: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(block)
    check(load_config(path))
