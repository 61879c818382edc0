"""Templates that may look into a conversation's strings are told from those that only print them."""

from __future__ import annotations

import pytest
from template_sweep import SHAPES

from alignment_core.data.rendering.builtin_templates import BUILTIN_TEMPLATES
from alignment_core.data.rendering.engine.message_forms import Form
from alignment_core.data.rendering.engine.program import Program
from alignment_core.data.rendering.engine.string_reads import reads_strings
from alignment_core.data.rendering.engine.template_checks import TemplateRefusal

EACH = "{% for m in messages %}"
CALLS = "{% for c in m.tool_calls %}"
PRINTING = [
    EACH + "{{ m.role + ': ' + m['content'] | trim }}{% endfor %}",
    EACH + "{% if m.role == 'user' and m.content != '' %}{{ m.content }}{% endif %}{% endfor %}",
    EACH + "{{ m.content.strip() ~ '\n' }}{% if loop.index0 % 2 == 0 %}-{% endif %}{% endfor %}",
    "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}{% set ns = namespace(seen=false) %}"
    "{% for m in rest %}{% if 'tool_calls' in m and not ns.seen == true %}{% set ns.seen = true %}"
    "{{ m.tool_calls[0].function | tojson }}{% endif %}{{ m.get('content') }}{% endfor %}",
    "{% macro said(text) %}[{{ text | trim }}]{% endmacro %}" + EACH + "{{ said(m.content) }}{% endfor %}",
    EACH + "{% if m.role in ['user', 'tool'] %}{{ m.role | capitalize }}{% endif %}{{ m.content or '' }}{% endfor %}",
    EACH + CALLS + "{{ c.function.name }}{% endfor %}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}",
]
READING = [
    EACH + "{% if '</think>' in m.content %}{{ m.content }}{% endif %}{% endfor %}",
    EACH + "{{ m.content.split('u')[0] }}{% endfor %}",
    EACH + "{{ m.content[1:] }}{% endfor %}",
    EACH + "{{ m.content[0] }}{% endfor %}",
    EACH + "{{ m.content | length }}{% endfor %}",
    EACH + "{{ m.content | first }}{% endfor %}",
    EACH + "{{ m.content | replace('a', 'b') }}{% endfor %}",
    EACH + "{{ m.content.strip('I') }}{% endfor %}",
    EACH + "{% for letter in m.content %}{{ loop.index }}{% endfor %}{% endfor %}",
    EACH + "{% set text = m.content %}{% for letter in text %}{{ loop.index }}{% endfor %}{% endfor %}",
    EACH + "{% for letter in m.get('content') %}{{ loop.index }}{% endfor %}{% endfor %}",
    EACH + "{% if m.content == 'It is a0word indeed.' %}!{% endif %}{% endfor %}",
    EACH + "{% if m.content > 'K' %}!{% endif %}{% endfor %}",
    EACH + "{% if m.content is startingwith('I') %}!{% endif %}{% endfor %}",
    EACH + "{% if loop.changed(m.content) %}!{% endif %}{% endfor %}",
    EACH + "{% if loop.previtem and loop.previtem.content == m.content %}!{% endif %}{% endfor %}",
    "{% set ns = namespace(last='') %}" + EACH + "{% if ns.last == m.content %}!{% endif %}{% endfor %}",
    EACH + "{% set role = m.content %}{% if role == 'x' %}!{% endif %}{% endfor %}",
    EACH + CALLS + "{{ c.function.arguments.place }}{% endfor %}{% endfor %}",
    EACH + CALLS + "{% set a = c.function.arguments %}{{ a.name }}{% endfor %}{% endfor %}",
    EACH + CALLS + "{{ c.function.arguments.get('place') }}{% endfor %}{% endfor %}",
    "{% macro at(a) %}{{ a.name }}{% endmacro %}" + EACH + CALLS + "{{ at(c.arguments) }}{% endfor %}{% endfor %}",
    EACH + "{% if 'name' in m.tool_calls[0].function.arguments %}!{% endif %}{% endfor %}",
    EACH + "{{ '%5s' % m.content }}{{ m.content * 2 }}{% endfor %}",
    EACH + "{% filter upper %}{{ m.content }}{% endfilter %}{% endfor %}",
    EACH + "{% set text %}{{ m.content }}{% endset %}{{ text.find('I') }}{% endfor %}",
    "{% set messages = messages[0].content %}{% for m in messages %}{{ loop.index }}{% endfor %}",
    "{{ messages | map(attribute='content') | join | length }}",
    "{{ messages | tojson | length }}",
    "{% if tools[0].function.name == 'look' %}!{% endif %}",
    "{% endfor %}",
    EACH + CALLS + "{{ c.get('arguments').name }}{% endfor %}{% endfor %}",
    EACH + CALLS + "{% set a = c.arguments or {} %}{{ a.name }}{% endfor %}{% endfor %}",
    "{% set a = b %}{% set b = a %}{% if 'x' in a %}!{% endif %}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
]  # fmt: skip


@pytest.mark.parametrize("template", PRINTING)
def test_a_template_that_only_prints_reads_nothing(template: str) -> None:
    assert not reads_strings(template)


@pytest.mark.parametrize("template", READING)
def test_whatever_looks_into_a_string_is_told(template: str) -> None:
    assert reads_strings(template)


@pytest.mark.parametrize("template", [*PRINTING, *BUILTIN_TEMPLATES.values()])
@pytest.mark.parametrize("shape", SHAPES)
def test_marks_change_nothing_where_nothing_is_read(template: str, shape: str) -> None:
    assert not reads_strings(template)
    program = Program(template, {"bos_token": "<s>", "eos_token": "</s>"}, Form(thoughts="text"))
    for completion in SHAPES[shape].completions:
        messages = (*SHAPES[shape].prompt, *completion)
        try:
            plain = program.text(messages)
        except TemplateRefusal:  # a template without a place for calls
            continue
        assert program.layout(messages).text == plain
