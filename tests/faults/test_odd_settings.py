"""Settings that are well-formed and still impossible are named in one paragraph, before anything runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config import PipelineConfig
from alignment_core.config.yaml_text import parse
from alignment_core.config_file import check_config, load_config
from alignment_core.data.rendering.builtin_templates import LARGEST_TEMPLATE, resolve_chat_template
from alignment_core.errors import AlignmentError, ConfigError, ModelError
from alignment_core.registry import load_registry

BASE: dict[str, Any] = {"model": {"base": "m"}, "data": {"sources": [{"path": "d.jsonl"}]}}
LONG = "a" * 300
URL = "http://h/v1"


def problem(*changes: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_config(BASE, changes)
    text = str(caught.value)
    text.encode()
    assert len(text) < 1000
    return text


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        # Text that no file, database or other program can hold.
        ('model.base="\\ud800"', "model.base"),
        ('chat.system="\\ud800"', "chat.system"),
        ('data.sources.0.keep=["\\ud800"]', "data.sources.0.keep.0"),
        ('optimizer={name: dpo, "\\ud800": 1}', "optimizer"),
        # Paths that no file system can hold, or that name nothing.
        *((f"{name}={text}", name) for name in (
            "model.base", "model.adapter", "model.chat_template", "reward.model", "reward.chat_template",
            "data.sources.0.path", "store", "feedback",
        ) for text in (LONG, '""', '" "', f"{'a/' * 2000}x.db")),
        ("store=/etc/passwd/inside", "store"),
        # Home folders of nobody.
        *((f"{name}=~nobody-at-all/x.db", name) for name in (
            "model.base", "model.adapter", "model.chat_template", "reward.model", "data.sources.0.path", "store",
            "feedback",
        )),
        # Names and addresses that nothing can be written to.
        (f"name={LONG}", "name"),
        ("remote=s3:///x", "remote"),
        ("remote=file:///shared/../x", "remote"),
        # A feedback store that is none, or that would be gone when the process ends.
        ("feedback=votes", "feedback"),
        ("feedback=sqlite://", "feedback"),
        ("feedback=sqlite:///:memory:", "feedback"),
        ("feedback=sqlite:///file:x?mode=memory&uri=true", "feedback"),
        # Settings that this kind of source does not have.
        ("data.sources.0.subset=x", "data.sources.0"),
        ("data.sources.0.revision=x", "data.sources.0"),
        ("data.sources.0.votes_after=3", "data.sources.0"),
        ('data.sources.0.keep=[""]', "data.sources.0.keep.0"),
        # Addresses that cannot be asked.
        *((f"evaluation.endpoint={{url: '{url}', model: m}}", "evaluation.endpoint.url")
          for url in ("", "h:8000", "file:///etc/passwd", "http://", "http://[::1", "http://h:99999/v1")),
        ("vllm.url=localhost:8000", "vllm.url"),
        (f"evaluation.endpoint={{url: '{URL}', model: m, key_variable: 'A=B'}}", "evaluation.endpoint.key_variable"),
        # Numbers with which something overflows, starts too many tasks or copies rows without end.
        (f"evaluation.endpoint={{url: '{URL}', model: m, timeout_seconds: 1e18}}", "evaluation.endpoint.timeout_sec"),
        (f"evaluation.endpoint={{url: '{URL}', model: m, parallel: 1000000000}}", "evaluation.endpoint.parallel"),
        (f"evaluation.endpoint={{url: '{URL}', model: m, retries: 1000000000}}", "evaluation.endpoint.retries"),
        ("vllm.parallel=1000000000", "vllm.parallel"),
        ("gate={to_production: true, approval: true, approval_days: 1e17}", "gate.approval_days"),
        ("evaluation.temperature=1e-320", "evaluation.temperature"),
        ("chat.temperature=1e-320", "chat.temperature"),
        ("evaluation.max_new_tokens=1000000000000", "evaluation.max_new_tokens"),
        ("sample.responses_per_prompt=1000000000", "sample.responses_per_prompt"),
        ("data.sources.0.weight=1e18", "data.sources.0.weight"),
        # Lists without anything in them.
        ("model.lora.target_modules=[]", "model.lora.target_modules"),
        ("evaluation.lm_eval={tasks: ['']}", "evaluation.lm_eval.tasks.0"),
        # Times and octal numbers of YAML 1.1.
        ("sft.batch_size=1:30", "sft.batch_size"),
        ("checkpoint_seconds=1:30.5", "checkpoint_seconds"),
        # An index that is no number for Python.
        (f"data.sources.{'9' * 5000}.path=x", "data.sources.9999"),
    ],
)  # fmt: skip
def test_odd_setting_is_named(change: str, setting: str) -> None:
    assert setting in problem(change)


@pytest.mark.parametrize(
    "changes",
    [
        ["feedback=postgres://u@h/d", "store=~/artifacts", "chat.temperature=0"],
        ["feedback='{{ prefect.blocks.secret.votes }}'", "vllm.url='{{ prefect.variables.vllm }}'"],
        ["data.sources.0.path=hf://a/b", "data.sources.0.revision=main", "data.sources.0.subset=x"],
        ["data.sources.0.path=votes.db", "data.sources.0.votes_after=3"],
        ["evaluation.endpoint={url: 'https://[::1]:8000/v1', model: m}"],
    ],
)
def test_unusual_setting_is_accepted(changes: list[str]) -> None:
    assert isinstance(check_config(BASE, changes), PipelineConfig)


def test_store_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_config(BASE, ["store=~/artifacts"]).store == tmp_path / "artifacts"


def test_variable_with_bytes_that_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "ODD", os.fsdecode(b"\xff"))
    assert "model.base: the text is not valid Unicode" in problem("model.base=${ODD}")


def test_numbers_are_what_they_look_like() -> None:
    text = "[0, -3, 1_000, 0x1f, 0b11, 1.5, .5, 3., 1.5e-3, -.inf]"
    assert parse(text) == [0, -3, 1000, 31, 3, 1.5, 0.5, 3.0, 0.0015, float("-inf")]
    assert parse("[010, 1:30, 190:20:30, 1:30.5]") == ["010", "1:30", "190:20:30", "1:30.5"]


def test_weight_of_a_reward_that_nothing_uses_is_checked() -> None:
    from alignment_core.planning.kept_facts import check_facts

    registry = load_registry()
    config = check_config(BASE, ["optimizer={name: dpo}", "reward.by=[{name: refusal, weight: abc}]"])
    with pytest.raises(ConfigError, match=r"reward\.by\.0\.weight"):
        check_facts(config, registry.optimizer(config.optimizer), registry)


def test_config_file_without_an_end() -> None:
    with pytest.raises(ConfigError, match=r"/dev/zero.*expected at most 1000000"):
        load_config(Path("/dev/zero"))


@pytest.mark.timeout(20)
def test_chat_template_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * (LARGEST_TEMPLATE + 1))
    for place in ("/dev/zero", str(tmp_path / "pipe"), str(tmp_path), str(tmp_path / "large")):
        with pytest.raises(ModelError, match=place):
            resolve_chat_template(place)


def test_message_can_be_written_whatever_a_file_is_called() -> None:
    error = AlignmentError("cannot be read", where=os.fsdecode(b"data/\xff.jsonl"), got="\ud800")
    assert str(error).encode() == b"data/\\udcff.jsonl: cannot be read. got \\ud800."
