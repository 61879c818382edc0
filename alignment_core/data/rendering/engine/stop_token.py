"""Find the token that ends an assistant turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from alignment_core.data.rendering.encoder import special_tokens
from alignment_core.data.rendering.engine.program import QUESTION, Program, Unmarkable
from alignment_core.data.rendering.engine.template_checks import TemplateRefusal
from alignment_core.errors import ModelError
from alignment_core.records import Message

ANSWER: Message = {"role": "assistant", "content": "Sentinel"}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}],
}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a template ends an assistant turn.

    Attributes:
        text: what it writes after an answer, up to and including the end token. None if it writes none.
        token: the end token as text. None if it writes none.
        token_id: id of the end token.
        call_token: another token that ends a call of a tool. None if there is none.
        lead: text between the header and an answer (a space, an empty thought).
    """

    text: str | None
    token: str | None
    token_id: int
    call_token: str | None
    lead: str

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the texts of all tokens that end a turn."""
        return tuple(token for token in (self.token, self.call_token) if token is not None)


def find_ending(program: Program, tokenizer: Any) -> Ending:
    """Return how a template ends a turn.

    Raises:
        ModelError: the template cannot render a question and its answer, or no token ends a turn.
    """
    where = str(tokenizer.name_or_path)
    try:
        head = program.text((QUESTION,), generation=True)
        full = program.text((QUESTION, ANSWER))
    except TemplateRefusal as refusal:
        raise ModelError(
            "the chat template cannot render a question and its answer", where=where, got=refusal
        ) from None
    before, found, after = full.rpartition(ANSWER["content"])
    if not found:
        raise ModelError(
            "the chat template leaves out the assistant's text",
            where=where,
            do="Choose another chat template: a file or a built-in name",
        )
    lead = before[len(head) :] if before.startswith(head) else ""
    names = special_tokens(tokenizer)
    token = _end_token(after, _in_history(program), names, tokenizer.eos_token)
    if token is not None:
        text = after[: after.index(token) + len(token)]
        called = _call_token(program, token, names)
        return Ending(text, token, tokenizer.convert_tokens_to_ids(token), called, lead)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "no token ends an assistant turn",
            where=where,
            expected="an end-of-turn token in the chat template, or an `eos_token` in the tokenizer",
        )
    return Ending(None, None, tokenizer.eos_token_id, None, lead)


def _end_token(last: str, history: str, names: Sequence[str], eos: str | None) -> str | None:
    """Return the end token from what follows the last answer, and what follows an answer before another question.

    An end token of the turn is in both, and an end token of the text only in the first. Some templates write several
    tokens after an answer, of which the last one in both ends the turn. Some end the last answer with another token
    than earlier ones: the former stops generation.
    """
    tokens = _special(last, names)
    pairs = zip(tokens, _special(history, names), strict=False)
    both = [name for name, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if eos in both:
        return eos
    return both[-1] if both else next(iter(tokens), None)


def _in_history(program: Program) -> str:
    """Return what the template writes between an answer and the next question."""
    try:
        layout = program.layout((QUESTION, ANSWER, {"role": "user", "content": "y"}))
    except (TemplateRefusal, Unmarkable):
        return ""
    block = next((block for block in layout.blocks() if block.turn == 1), None)
    return "" if block is None else layout.text[block.end : block.after]


def _call_token(program: Program, token: str, names: Sequence[str]) -> str | None:
    """Return the token that ends a call of a tool, if it is not the one that ends an answer."""
    try:
        layout = program.layout(({**QUESTION, "tools": TOOLS}, CALL))
    except (TemplateRefusal, Unmarkable):
        return None
    rest = layout.rest()
    tokens = _special(rest, names)
    shown = (1, "call") in layout.parts()
    return tokens[-1] if shown and tokens and token not in rest and rest.rstrip().endswith(tokens[-1]) else None


def _special(text: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return re.findall("|".join(map(re.escape, sorted(names, key=len, reverse=True))), text)
