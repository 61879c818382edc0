"""Under every chat template that TRL and Axolotl ship, the targets are the assistant's words and no others."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from template_sweep import SHAPES, templates_in, tokenizer_of, violations

from alignment_core.data.rendering.chat_template import ChatTemplate
from alignment_core.data.rendering.engine.string_reads import reads_strings
from alignment_core.data.rendering.engine.template_checks import TemplateRefusal
from alignment_core.data.rendering.renderer import Renderer

TRL = find_spec("trl")
FOLDERS = {"axolotl": Path(sys.prefix) / "axolotl-0.19"}
if TRL is not None and TRL.origin is not None:
    FOLDERS["trl"] = Path(TRL.origin).parent
TEMPLATES = {
    f"{package} {name}": text for package, folder in FOLDERS.items() for name, text in templates_in(folder).items()
}

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not TEMPLATES, reason="neither TRL nor Axolotl is installed: make verify"),
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_targets_are_what_the_assistant_says(name: str) -> None:
    renderer = Renderer(tokenizer_of(TEMPLATES[name]), chat_template=TEMPLATES[name], max_length=100_000)
    found = {shape: violations(renderer, SHAPES[shape]) for shape in SHAPES}
    assert {shape: problems for shape, (problems, _) in found.items() if problems} == {}
    assert {shape: reason for shape, (_, reason) in found.items() if reason} == {}


@pytest.mark.parametrize("name", [name for name, text in TEMPLATES.items() if not reads_strings(text)])
def test_marks_change_nothing_where_strings_are_only_printed(name: str) -> None:
    program = ChatTemplate(tokenizer_of(TEMPLATES[name]), TEMPLATES[name]).program
    for shape in SHAPES.values():
        for messages in ((*shape.prompt, *completion) for completion in shape.completions):
            try:
                plain = program.text(messages)
            except TemplateRefusal:
                continue
            assert program.layout(messages).text == plain


def test_all_templates_are_tried() -> None:
    assert len(TEMPLATES) >= (72 if "trl" in FOLDERS else 36)
    print(f"{len(TEMPLATES)} templates, {len(SHAPES)} shapes of conversations each")
