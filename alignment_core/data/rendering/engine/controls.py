"""Controls that a chat template writes and the tokenizer does not know, such as ChatML's in a model without ChatML."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from alignment_core.data.rendering.builtin_templates import BUILTIN_TEMPLATES
from alignment_core.data.rendering.encoder import special_tokens
from alignment_core.data.rendering.engine.program import QUESTION, Program, Unmarkable, variables_of
from alignment_core.data.rendering.engine.template_checks import TemplateRefusal
from alignment_core.errors import ModelError
from alignment_core.records import Message

ANSWER: Message = {"role": "assistant", "content": "Sentinel"}
SYSTEM: Message = {"role": "system", "content": "y"}
CONTROL = re.compile(
    r"<\|[^<>|\s]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<｜[^<>｜]+｜>|\[\|[^\[\]|\s]+\|\]|</?s>|<(?:bos|eos)>|<(?:start|end)_of_\w+>"
)
"""Text that is a single token in the tokenizers of the models whose templates write it."""


@dataclass(frozen=True)
class Controls:
    """What a template's controls are to a tokenizer.

    Attributes:
        end: the control that the template writes right after an answer, or None. A control that begins the next turn
            is not meant.
        unknown: all controls that it writes and that are not tokens.
        ends_specially: whether it writes a special token after an answer.
    """

    end: str | None
    unknown: tuple[str, ...]
    ends_specially: bool


def fit_to_tokenizer(template: str, tokenizer: Any, thoughts: str) -> tuple[Program, tuple[str, ...]]:
    """Return a template as a program that ends every turn with a token of the tokenizer, and what a person must know.

    Args:
        template: text of the template.
        tokenizer: a tokenizer from `load_tokenizer`. An ordinary token that ends turns becomes a special one.
        thoughts: `text` or `left_out`, what becomes of thoughts if the template has no place for them.

    Raises:
        ModelError: the template ends turns with a control that is not a token and cannot be replaced.
    """
    program = _program(template, tokenizer, thoughts)
    found = find_controls(program, tokenizer)
    if found.end is not None and found.end in found.unknown:
        known = _with_known_end(template, found.end, tokenizer)
        return _program(known, tokenizer, thoughts), _warnings(found, tokenizer.eos_token)
    if found.end is not None and not found.ends_specially:
        _make_special(found.end, tokenizer)
    return program, _warnings(found, None)


def _program(template: str, tokenizer: Any, thoughts: str) -> Program:
    variables = variables_of(tokenizer.special_tokens_map)
    if template in BUILTIN_TEMPLATES.values() and not adds_bos(tokenizer):
        variables["bos_token"] = ""
    program = Program(template, variables).with_form()
    if program.form.thoughts == "text" and thoughts == "left_out":
        program = replace(program, form=replace(program.form, thoughts="left_out"))
    return program


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer starts every text with its beginning token."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def find_controls(program: Program, tokenizer: Any) -> Controls:
    """Return the controls that a template writes around turns."""
    last, between = _after_last_answer(program), _between_turns(program)
    end = CONTROL.match(last.lstrip())
    if end is None:
        end = CONTROL.match(between.lstrip())
        if end is not None and end.group() in _before_question(program):  # it begins the next turn
            end = None
    found = dict.fromkeys(CONTROL.findall(_example(program)))
    unknown = tuple(control for control in found if tokenizer.backend_tokenizer.token_to_id(control) is None)
    specially = any(name in last + between for name in special_tokens(tokenizer))
    return Controls(None if end is None else end.group(), unknown, specially)


def _make_special(token: str, tokenizer: Any) -> None:
    """Make an ordinary token of the tokenizer a special one, which text in a message never becomes."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)


def _with_known_end(template: str, end: str, tokenizer: Any) -> str:
    """Return a template with the tokenizer's end token in place of a control that is not a token.

    Left as it is, the control would be learned as text in the history of a conversation, but the end token after the
    last answer.

    Raises:
        ModelError: the template does not contain the control as it writes it, or there is no end token.
    """
    if end not in template or tokenizer.eos_token is None:
        raise ModelError(
            f"the chat template ends an answer with `{end}`, which is not a token of the tokenizer",
            where=str(tokenizer.name_or_path),
            do="Choose a chat template whose end token the tokenizer has, such as `model.chat_template: plain`",
        )
    return template.replace(end, tokenizer.eos_token)


def _warnings(found: Controls, replaced: str | None) -> tuple[str, ...]:
    """Return what a person must know about controls that are not tokens.

    Args:
        found: the controls of the template.
        replaced: the token that ends turns in place of the template's control. None: the control was kept.
    """
    messages = []
    if replaced is not None:
        messages.append(
            f"`{found.end}` of the chat template is not a token of the tokenizer: every turn ends with `{replaced}` "
            "instead"
        )
    if texts := [control for control in found.unknown if replaced is None or control != found.end]:
        names = ", ".join(f"`{text}`" for text in texts)
        messages.append(
            f"{names} of the chat template {'is not a token' if len(texts) == 1 else 'are not tokens'} of the "
            "tokenizer, and read as ordinary text, also where a user writes the same: model.chat_template"
        )
    return tuple(messages)


def _after_last_answer(program: Program) -> str:
    try:
        return program.text((QUESTION, ANSWER)).rpartition(ANSWER["content"])[2]
    except TemplateRefusal:
        return ""


def _between_turns(program: Program) -> str:
    """Return what the template writes between an answer and the next question."""
    try:
        layout = program.layout((QUESTION, ANSWER, QUESTION))
    except (TemplateRefusal, Unmarkable):
        return ""
    block = next((block for block in layout.blocks() if block.turn == 1), None)
    return "" if block is None else layout.text[block.end : block.after]


def _before_question(program: Program) -> str:
    """Return what the template writes before the first question."""
    try:
        return program.text(({**QUESTION, "content": ANSWER["content"]},)).partition(ANSWER["content"])[0]
    except TemplateRefusal:
        return ""


def _example(program: Program) -> str:
    for messages in ((SYSTEM, QUESTION, ANSWER, QUESTION), (QUESTION, ANSWER, QUESTION), (QUESTION,)):
        try:
            return program.text(messages, generation=True)
        except TemplateRefusal:
            continue
    return ""
