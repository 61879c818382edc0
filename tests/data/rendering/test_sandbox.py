"""Templates are confined: their time, their memory, and the date that they see."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from jinja2.exceptions import SecurityError, UndefinedError

from alignment_core.data.rendering.engine.sandbox import render

GROWING = "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}"
LONG = "{% set s = 'a' * 16000000 %}{% for i in range(99999) %}"
ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a repeated text": "{{ 'x' * 10 ** 10 }}",
    "a repeated list": "{{ [1] * 10 ** 10 }}",
    "a padded text": "{{ 'x'.ljust(10 ** 9) }}",
    "a centered text": "{{ 'x' | center(1000000000) }}",
    "a wide number": "{{ '%999999999d' % 3 }}",
    "a wide format": "{{ '{:999999999}'.format(3) }}",
    "text joined to itself": GROWING + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "text added to itself": GROWING + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "a list in itself": GROWING + "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "a list in itself as JSON": GROWING + "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
    "a replacement": "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
    "a joined list": "{{ (['x' * 9999] * 99999) | join }}",
    "a long output": "{% set s = 'x' * 999999 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(40) }}",
    "a method of a long text": LONG + "{% set t = s.upper() %}{% endfor %}",
    "a filter of a long text": LONG + "{% set t = s | upper %}{% endfor %}",
    "a test of a long text": LONG + "{% set t = s is upper %}{% endfor %}",
    "a search in a long text": LONG + "{% set t = 'b' in s %}{% endfor %}",
    "a part of a long text": LONG + "{% set t = s[1:] %}{% endfor %}",
    "a slow filter of a long text": "{{ ('a b ' * 4000000) | title | wordcount }}" * 20,
    "a list sorted again and again": "{% for i in range(99999) %}{% set t = range(99999) | sort %}{% endfor %}",
    "items that nobody keeps": "{% for i in range(9999) %}{{ range(99999) | map('string') | max }}{% endfor %}",
    "lists in lists that are compared": (
        "{% set a = namespace(s=1) %}{% set b = namespace(s=1) %}{% for i in range(60) %}"
        "{% set a.s = [a.s, a.s] %}{% set b.s = [b.s, b.s] %}{% endfor %}{{ a.s == b.s }}"
    ),
    "a filled row": "{{ [1] | batch(60000000, 'x') | list }}",
    "repeated bytes": "{{ 'x'.encode() * 10 ** 10 }}",
    "wide bytes": "{{ '%999999999d'.encode() % 3 }}",
    "wide columns": "{{ ('\t' * 8000).expandtabs(800000) }}",
    "a width beside the format": "{{ '%*d' % (999999999, 1) }}",
    "a number squared again and again": (
        "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}"
    ),
    "an object copied again and again": (
        "{% set ns = namespace(d={}) %}{% for i in range(99999) %}"
        "{% set ns.d = dict(ns.d, **{'k' ~ i: i}) %}{% endfor %}"
    ),
    "a filler text": "{{ lipsum(n=10 ** 7) }}",
    "a large power": "{{ 9 ** 9 ** 9 }}",
    "a number as bytes": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "padded bytes": "{{ 'x'.encode().ljust(10 ** 9) }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_templates_are_stopped(name: str) -> None:
    start = time.monotonic()
    with pytest.raises((SecurityError, UndefinedError)):
        render(ENDLESS[name], {})
    assert time.monotonic() - start < 60, "seconds, also on a slow machine"


def test_macro_without_an_end_is_an_error() -> None:
    with pytest.raises(RecursionError):
        render("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", {})


def test_each_rendering_has_its_own_limit() -> None:
    template = "{% for a in range(1500) %}{% for b in range(1500) %}{% endfor %}{% endfor %}done"
    assert [render(template, {}) for _ in range(2)] == ["done", "done"]


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% set ns = namespace() %}{{ ns.__init__ }}"],
)
def test_nothing_outside_is_reached(template: str) -> None:
    messages: list[int] = []
    with suppress(SecurityError):
        assert "class" not in render(template, {"messages": messages})
    assert messages == []


def test_date_is_always_the_same() -> None:
    assert render("{{ strftime_now('%d %B %Y, %H:%M') }}", {}) == "26 July 2024, 00:00"


def test_loops_know_their_length_and_place() -> None:
    template = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ m }}{{ loop.previtem }}"
        "{% if loop.last %}!{% endif %}{% if m == 'b' %}{% continue %}{% endif %}.{% endfor %}"
        "{% for key, value in {'a': 1}.items() %}{{ key ~ value ~ none }}{% endfor %}"
        "{% for m in messages if m != 'a' %}{{ m }}{% else %}none{% endfor %}{% for m in nothing %}{% endfor %}"
    )
    assert render(template, {"messages": ["a", "b"]}) == "1/2a.2/2ba!a1Noneb"
