"""Texts of strangers in markdown: two renderers of it show them as they are, with no element of their own."""

from __future__ import annotations

import html
import re

import markdown
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from alignment_core.markdown import Markdown, code, code_block, message, plain, table

RENDERER = MarkdownIt("gfm-like", {"html": True, "linkify": False})
HOSTILE = st.text("<>&;#!?[](){}|`*_~\\/=-+.: \n\"'ab1$^") | st.text()
STRANGERS = [
    '<img src="http://evil.example/x.png">',
    "![x](http://evil.example/x.png)",
    "[x](javascript:alert(1))",
    "<!-- x",
    "</td></table><script>alert(1)</script>",
    "a | b | c",
    "line\n\n# heading\n<img src=x>",
    "`` ` <img src=x>",
    "\\<img src=x>",
    "\\![x](http://evil.example/x.png)",
    "&lt;img src=x&gt; &amp; &#60;",
    "[x]: http://evil.example",
    "~~~\n<img src=x>",
]


def elements(rendered: str) -> list[str]:
    return re.findall(r"<[a-zA-Z/!][^>]*>", rendered)


def text_of(rendered: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", rendered)).split())


def as_shown(text: str) -> str:
    return " ".join(text.replace("\0", "\N{REPLACEMENT CHARACTER}").split())


@given(HOSTILE | st.sampled_from(STRANGERS))
def test_text_is_shown_as_it_is(text: str) -> None:
    rendered = RENDERER.render(f"x {plain(text)} x")
    assert elements(rendered) == ["<p>", "</p>"], rendered
    assert text_of(rendered) == as_shown(f"x {text} x")


@given(HOSTILE | st.sampled_from(STRANGERS), HOSTILE | st.sampled_from(STRANGERS))
def test_table_has_one_row_per_name(name: str, text: str) -> None:
    rendered = RENDERER.render(table("fact", {name: text, "its code": code(text)}))
    inside = {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert {re.sub(r"\W", "", element) for element in elements(rendered)} <= inside
    assert rendered.count("<tr>") == 3
    cells = re.findall(r"<td>(.*?)</td>", rendered, re.DOTALL)
    assert [text_of(cell) for cell in cells[:2]] == [as_shown(name), as_shown(text)]


@pytest.mark.parametrize("text", STRANGERS)
def test_another_renderer_shows_no_element_either(text: str) -> None:
    page = f"# {plain(text)}\n\n- {plain(text)}\n\n{table('fact', {text: text})}\n\nText:\n\n{code_block(text)}\n"
    for rendered in (markdown.markdown(page, extensions=["tables"]), RENDERER.render(page)):
        assert not re.search(r"<(img|script|a|!)", rendered), rendered


@given(HOSTILE | st.sampled_from(STRANGERS))
def test_message_shows_names_as_code_and_nothing_else(text: str) -> None:
    rendered = RENDERER.render(f"x {message(f'no `name` for {text} or {text}')} x")
    assert {re.sub(r"\W", "", element) for element in elements(rendered)} <= {"p", "code"}
    assert message("the column `a|b` of <b>") == "the column `a\\|b` of &lt;b>"


@given(HOSTILE)
def test_code_is_one_element(text: str) -> None:
    rendered = RENDERER.render(f"x {code(text)} x")
    assert {re.sub(r"\W", "", element) for element in elements(rendered)} <= {"p", "code"}


def test_ordinary_text_is_readable_without_a_renderer() -> None:
    for text in ("win_rate over sft: 0.62 > 0.5", "rows-1.jsonl:17", "a < b & c", "-1.5", "it's 5 + 3 (or 8)", "#1"):
        assert plain(text) == text
    assert (
        table("fact", {"kl": "0.5", "key": Markdown("`a`")})
        == "| fact | value |\n| --- | --- |\n| kl | 0.5 |\n| key | `a` |"
    )
