"""Recognize templates that write a plain answer as it is, so that it need not be rendered."""

from __future__ import annotations

from collections.abc import Callable

from alignment_core.data.rendering.engine.program import Program
from alignment_core.data.rendering.engine.stop_token import Ending
from alignment_core.data.rendering.engine.template_checks import TemplateRefusal
from alignment_core.records import Conversation

ANSWERS = ("Sentinel", " two words\n\n", "\n\tq: 'r' \"s\" {t} [u] (v) **w** `x`\n\n\\y: é 你好")
"""Answers by which a template's handling of plain answers is tried."""


def find_trim(program: Program, ending: Ending) -> Callable[[str], str] | None:
    """Return how a template trims a plain answer, or None if it does more than trim it.

    If the template only trims, plain answers are assembled without rendering, which would take most of the time of
    an ingestion.
    """
    user, assistant = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    for trim in (str.strip, _unchanged, _without_lines_before, _without_lines_around):
        if all(
            _is_only(program, ending, trim, prompt, answer)
            for prompt in ((user,), (user, assistant, user))
            for answer in ANSWERS
        ):
            return trim
    return None


def _is_only(program: Program, ending: Ending, trim: Callable[[str], str], prompt: Conversation, answer: str) -> bool:
    try:
        head = program.text(prompt, generation=True)
        full = program.text((*prompt, {"role": "assistant", "content": answer}))
    except TemplateRefusal:
        return False
    return full.startswith(head + ending.lead + trim(answer) + (ending.text or ""))


def _unchanged(text: str) -> str:
    return text


def _without_lines_before(text: str) -> str:
    return text.lstrip("\n")


def _without_lines_around(text: str) -> str:
    return text.strip("\n")
