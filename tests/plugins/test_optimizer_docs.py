"""Each built-in optimizer has a page that names every setting and every metric."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from alignment_core.registry import load_registry

DOCS = Path(__file__).resolve().parents[2] / "docs" / "optimizers"
NOT_METRICS = {
    "ppo": {
        "response",
        "old_logps",
        "old_values",
        "advantages",
        "returns",
        "first_step",
        "rows",
        "ids",
        "start",
        "values",
        "tokens",
        "after",
        "measured",
    },
    "kto": {"response", "z0", "desirable", "undesirable", "desirable_weight", "undesirable_weight"},
    "dpo": {"chosen_tokens"},
}
"""Keys of dictionaries in the plugins that name parts of a rollout or step, not metrics."""
PARTS = {"ppo": ["ppo", "guards"]}
"""Modules of optimizers that consist of several."""


def documented(name: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", (DOCS / f"{name}.md").read_text()))


@pytest.mark.parametrize("name", ["dpo", "kto", "ppo"])
def test_page_names_every_setting(name: str) -> None:
    settings = type(load_registry().optimizer({"name": name})).model_fields.keys() - {"name"}
    assert not settings - documented(name)


@pytest.mark.parametrize("name", ["dpo", "kto", "ppo"])
def test_page_names_every_metric(name: str) -> None:
    modules = [import_module(f"alignment_plugins.{part}") for part in PARTS.get(name, [name])]
    keys = {
        key.value
        for module in modules
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text()))
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }
    assert not keys - NOT_METRICS[name] - documented(name)
    assert {"loss", "grad_norm"} <= documented(name)
