"""Every code block of the documentation that can run is run or checked against the settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from alignment_core.config import PipelineConfig
from alignment_core.config_file import check_config

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
ELSEWHERE = {
    DOCS / "how-to" / "write-a-plugin.md",  # test_write_a_plugin.py
    DOCS / "reference" / "record-formats.md",  # tests/data/sources/test_format_docs.py
}
RUNNABLE_PAGES = [DOCS / "getting-started.md", DOCS / "how-to" / "use-from-python.md"]


def partial_settings() -> list[tuple[str, str]]:
    """Return the page and text of each YAML block that shows a part of a config file."""
    return [
        (str(path.relative_to(DOCS)), block)
        for path in sorted(DOCS.rglob("*.md"))
        if path not in ELSEWHERE
        for language, _, block in BLOCK.findall(path.read_text(encoding="utf-8"))
        if language == "yaml" and not {"model", "data"} <= yaml.safe_load(block).keys()
    ]


@pytest.mark.parametrize(("page", "block"), partial_settings(), ids=lambda value: value.partition("\n")[0])
def test_partial_settings_are_accepted(page: str, block: str) -> None:
    shown = yaml.safe_load(block)
    assert shown.keys() <= PipelineConfig.model_fields.keys(), page
    complete = {"model": {"base": "some/model"}, "data": {"sources": [{"path": "feedback.jsonl"}]}, **shown}
    check_config(complete)


def test_runnable_pages_have_blocks() -> None:
    for page in RUNNABLE_PAGES:
        assert {"bash", "python"} & {language for language, _, _ in BLOCK.findall(page.read_text(encoding="utf-8"))}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(RUNNABLE_PAGES[0], marks=pytest.mark.ci),
        pytest.param(RUNNABLE_PAGES[1], marks=pytest.mark.slow),
    ],
    ids=lambda page: page.stem,
)
def test_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path, tiny_model: Path) -> None:
    """A tiny model replaces the one that the page downloads. `console` blocks are not run."""
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    scripts: list[str] = []
    for language, title, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        text = re.sub(r"HuggingFaceTB/[\w.-]+", str(tiny_model), block)
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
        elif language == "python":
            scripts.append(text)
        elif language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", text]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    if scripts:  # one interpreter, as in a notebook
        code = "\n".join(scripts)
        (tmp_path / "page.py").write_text(code, encoding="utf-8")
        command = [sys.executable, "page.py"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
