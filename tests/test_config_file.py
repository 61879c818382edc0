"""Config files: defaults, environment variables, overrides, and error messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_core.config import PipelineConfig, SourceConfig
from alignment_core.config_file import load_config
from alignment_core.errors import ConfigError

SMALLEST = """\
model: {base: some/model}
data:
  sources:
    - path: feedback.jsonl
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def fault(path: Path, *overrides: str) -> str:
    """Return the error message without the folder of the file."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_smallest_file_has_every_default(write: Write) -> None:
    expected = PipelineConfig.model_validate(
        {"model": {"base": "some/model"}, "data": {"sources": [{"path": "feedback.jsonl"}]}}
    )
    assert load_config(write(SMALLEST)) == expected


def test_variables_come_from_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", "/models")
    monkeypatch.delenv("DATA", raising=False)
    monkeypatch.setenv("EMPTY", "")
    path = write(
        "model: {base: '${MODELS}/a'}\ndata: {sources: [{path: '${DATA:-../data}/x/${EMPTY:-y}'}]}\nstore: ${STORE:-}/s"
    )
    config = load_config(path)
    assert config.model.base == "/models/a"
    assert config.data.sources[0].path == "../data/x/y"
    assert config.store == Path("/s")


def test_unset_variable_is_named_with_its_setting(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA", raising=False)
    path = write(SMALLEST.replace("feedback.jsonl", "${DATA}/feedback.jsonl"))
    assert fault(path).startswith("run.yaml: data.sources.0.path: the environment variable DATA is not set.")


def test_overrides_reach_every_kind_of_setting(write: Write) -> None:
    config = load_config(
        write(SMALLEST + "sft: null\n"),
        [
            "model.lora.rank=4",
            "data.sources.0.columns={prompt: question}",
            "data.sources.0.path=other.jsonl",
            "sft.learning_rate=2e-4",
            "evaluation.evaluators=[{name: wordlist}]",
            "name=a-b",
        ],
    )
    assert config.model.lora.rank == 4
    assert config.data.sources[0].columns == {"prompt": "question"}
    assert config.data.sources[0].path == "other.jsonl"
    assert config.sft is not None
    assert config.sft.learning_rate == 2e-4
    assert config.evaluation.evaluators == [{"name": "wordlist"}]
    assert config.name == "a-b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "--set seed: the value is missing. expected --set a.b=value."),
        (
            "data.sources.1.path=x",
            "--set data.sources.1.path=x: the list has no entry with this index. got 1, expected 0 to 0.",
        ),
        ("model.base.x=1", "--set model.base.x=1: `x` cannot be set inside a plain value. Check the path."),
        (
            "seed=[1",
            "--set seed: the value is not valid YAML: expected ',' or ']', but got '<stream end>' at character 3.",
        ),
        ("sede=1", "run.yaml: sede: unknown setting. Did you mean `seed`?"),
        (
            "data.sources.1.path=postgresql://u:s e/c@h/d",
            "--set data.sources.1.path=postgresql://u:***@h/d: the list has no entry with this index. got 1, expected "
            "0 to 0.",
        ),
        (
            "model.base.api_key=s",
            "--set model.base.api_key=***: `api_key` cannot be set inside a plain value. Check the path.",
        ),
        (
            f"seed=postgresql://u:{'x' * 90}@h/d",
            "run.yaml: seed: invalid value. got 'postgresql://u:***@h/d', expected a valid integer, unable to parse "
            "string as an integer.",
        ),
        ("store=postgresql://u:s@h/d", "run.yaml: store: the store is a folder on this machine, not an address."),
    ],
)
def test_errors_in_overrides(write: Write, override: str, expected: str) -> None:
    assert fault(write(SMALLEST), override) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SMALLEST + "sede: 1\n", "run.yaml: sede: unknown setting. Did you mean `seed`?"),
        (
            SMALLEST + "sft: {epochs: 0}\n",
            "run.yaml: sft.epochs: invalid value. got 0, expected greater than or equal to 1.",
        ),
        (
            SMALLEST.replace("base: some/model", "load_in: int4"),
            "run.yaml: model.base: this setting is missing. Also model.load_in: invalid value."
            " got 'int4', expected 'nf4', 'int8', 'bf16' or 'fp32'.",
        ),
        (
            SMALLEST.replace("some/model", "x, lora: {target_modules: [q, 1]}"),
            "run.yaml: model.lora.target_modules: invalid value."
            " got ['q', 1], expected 'all-linear' or a valid string.",
        ),
        (
            SMALLEST + "      hue: red\n",
            f"run.yaml: data.sources.0.hue: unknown setting. expected one of {', '.join(SourceConfig.model_fields)}.",
        ),
        (
            "model: 4\n" + SMALLEST.split("\n", 1)[1],
            "run.yaml: model: invalid value. got 4, expected a mapping of settings.",
        ),
        (SMALLEST + "seed: [1\n", "run.yaml:6: invalid YAML: expected ',' or ']', but got '<stream end>'."),
        (SMALLEST + "seed: 1\nseed: 2\n", "run.yaml:6: invalid YAML: `seed` appears twice."),
        ("- a\n", "run.yaml: the file contains no settings. expected a mapping with `model:`, `data:` and more."),
        ("", "run.yaml: the file contains no settings. expected a mapping with `model:`, `data:` and more."),
    ],
)
def test_errors_in_the_file(write: Write, text: str, expected: str) -> None:
    assert fault(write(text)) == expected


def test_missing_file(tmp_path: Path) -> None:
    assert fault(tmp_path / "none.yaml") == "none.yaml: there is no such file. Check the path."


def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00bad")
    assert fault(tmp_path / "run.yaml").startswith("run.yaml: the file cannot be read.")
