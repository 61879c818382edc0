"""Each built-in optimizer has a page that names every setting and every metric."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from alignment_core.registry import load_registry

DOCS = Path(__file__).resolve().parents[2] / "docs" / "optimizers"
NAMES = ["dpo", "grpo", "kto", "online_dpo", "ppo", "rloo"]
ON_POLICY = ["grpo", "online_dpo", "ppo", "rloo"]
NOT_METRICS = {
    "grpo": {"advantage", "old_logps", "reference_logps"},
    "online_dpo": {"old_logps", "reference"},
    "ppo": {"old_logps", "old_values", "advantages", "returns"},
    "rloo": {"advantage", "old_logps"},
    "kto": {"response", "z0", "desirable", "undesirable", "desirable_weight", "undesirable_weight"},
    "dpo": {"chosen_tokens"},
}
"""Keys of dictionaries in the plugins that name parts of a rollout or step, not metrics."""
PARTS_OF_A_ROLLOUT = {
    "response",
    "first_step",
    "next_prompt",
    "rows",
    "id",
    "sequences",
    "values",
    "tokens",
    "after",
    "measured",
}
"""Such keys in the base of on-policy optimizers."""


def documented(name: str) -> set[str]:
    """Return the names in code style on the optimizer's page, and on the page of what on-policy optimizers share."""
    pages = [name.replace("_", "-"), *(["on-policy"] if name in ON_POLICY else [])]
    return {word for page in pages for word in re.findall(r"`(\w+)`", (DOCS / f"{page}.md").read_text())}


@pytest.mark.parametrize("name", NAMES)
def test_page_names_every_setting(name: str) -> None:
    settings = type(load_registry().optimizer({"name": name})).model_fields.keys() - {"name"}
    assert not settings - documented(name)


@pytest.mark.parametrize("name", NAMES)
def test_page_names_every_metric(name: str) -> None:
    modules = [f"alignment_plugins.{name}"]
    if name in ON_POLICY:
        modules += [f"alignment_core.on_policy.{part}" for part in ("guards", "optimizer", "rollout")]
    keys = {
        key.value
        for module in modules
        for node in ast.walk(ast.parse(Path(str(import_module(module).__file__)).read_text()))
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }
    assert not keys - NOT_METRICS[name] - PARTS_OF_A_ROLLOUT - documented(name)
    assert {"loss", "grad_norm"} <= documented(name)
