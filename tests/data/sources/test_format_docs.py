"""docs/reference/record-formats.md names every format, column and reason, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.rendering.renderer import BUILTIN_TEMPLATES
from alignment_core.data.sources.formats import FORMATS
from alignment_core.data.sources.formats.columns import OURS
from alignment_core.data.sources.source_file import COMPRESSIONS, CONTAINERS

ROOT = Path(__file__).resolve().parents[3]
DOC = (ROOT / "docs" / "reference" / "record-formats.md").read_text(encoding="utf-8")
CORE = ROOT / "alignment_core"
FILES = [CORE / "records" / "format.py", *(CORE / "data").rglob("*.py")]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in FILES)


def section(start: str, end: str) -> str:
    return DOC[DOC.index(start) : DOC.index(end, DOC.index(start))]


def test_formats_are_listed_in_order_of_detection() -> None:
    named = re.findall(r"^\| `(\w+)` \|", section("## Record formats", "### Any other"), re.MULTILINE)
    assert named == [item.name for item in FORMATS]


def test_every_standard_column_and_container_is_named() -> None:
    assert set(re.findall(r"`(\w+)`", section("`columns` maps", "A name that"))) >= set(OURS)
    for ending in (*CONTAINERS, *COMPRESSIONS):
        assert f"`{ending}`" in DOC or ending == ".feather"
    for name in BUILTIN_TEMPLATES:
        assert f"`{name}`" in section("## Chat templates", "## What the stage")


def test_documented_reasons_are_exactly_the_raised_ones() -> None:
    listed = set(re.findall(r"`(\w+)`", section("Reasons:", "## Chat templates")))
    raised = set(re.findall(r'(?:BadRow|Unrenderable)\(\s*"(\w+)"', SOURCE))
    raised |= set(re.findall(r'(?:Unreadable|Quarantined)\([^"\n]+(?:f"[^"]*")?[^"\n]*, "(\w+)"', SOURCE))
    assert raised - listed == set()
    assert {reason for reason in listed if f'"{reason}"' not in SOURCE} == set()


def test_example_settings_load() -> None:
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)]
    assert DataConfig.model_validate(blocks[0]["data"])
    assert SourceConfig.model_validate(blocks[1][0])
