"""Code that a model brings along is never run, and nobody is asked whether it should be."""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment_core.data.rendering.tokenizer import load_tokenizer
from alignment_core.errors import ModelError
from alignment_core.forecast.process import _config_of
from alignment_core.models.base.loading import load_base
from alignment_core.models.roles.classifier import read_classifier_config

ROOT = Path(__file__).parents[1]
SOURCES = [file for folder in ("alignment_core", "flows", "plugins") for file in (ROOT / folder).rglob("*.py")]
CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from transformers import PretrainedConfig, PreTrainedTokenizerFast
class Own(PretrainedConfig):
    model_type = "own"
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


CLASSES = ("PeftModel", "PeftLoraConfig", "GenerationConfig", "StageCalls")
"""Other classes with these methods."""


def loaders() -> list[tuple[str, ast.Call]]:
    """Return the calls that let transformers load a class which a model can name."""
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in ("from_pretrained", "from_config"):
                found.append((f"{file.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func.value)}", node))
    return found


def test_every_loader_names_whether_code_may_run() -> None:
    calls = [(place, call) for place, call in loaders() if place.split()[1] not in CLASSES]
    assert len(calls) > 15, "the search finds the loaders"
    given = {place: {word.arg: ast.unparse(word.value) for word in call.keywords} for place, call in calls}
    assert {place: words.get("trust_remote_code") for place, words in given.items()} == {
        place: words["trust_remote_code"]
        for place, words in given.items()
        if re.fullmatch(r"False|may_run\(.*\)", words.get("trust_remote_code", ""))
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(CODE)
    names = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification"), "own.Own")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    tokenizer = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))

    def asked(*_: Any) -> str:
        pytest.fail("a question was asked")

    monkeypatch.setattr(builtins, "input", asked)
    return tmp_path


@pytest.mark.parametrize(
    "load",
    [
        lambda path: load_tokenizer(path),
        lambda path: load_base(path, revision=None, load_in="fp32", device=torch.device("cpu")),
        lambda path: read_classifier_config(path, None),
        lambda path: _config_of({"path": path, "revision": None}),
    ],
    ids=["tokenizer", "base model", "reward model", "forecast"],
)
def test_model_with_code_is_refused_by_name(folder: Path, load: Callable[[str], object]) -> None:
    with pytest.raises(
        ModelError, match=r"brings code of its own, which is not run .*set `(model|reward)\.trust_remote_code: true`"
    ):
        load(str(folder))
    assert not list(folder.rglob("ran"))
