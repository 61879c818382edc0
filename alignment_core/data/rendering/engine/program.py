"""A chat template ready to render: its text, its variables, and the form in which it reads turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignment_core.data.rendering.builtin_templates import TEMPLATE_DATE
from alignment_core.data.rendering.engine.marks import TOOLS, Layout, Marker
from alignment_core.data.rendering.engine.message_forms import THOUGHT, Form
from alignment_core.data.rendering.engine.sandbox import render
from alignment_core.data.rendering.engine.string_reads import reads_strings
from alignment_core.data.rendering.engine.template_checks import TemplateRefusal
from alignment_core.records import Conversation, Message

GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
PLAIN = Form()
READS_THOUGHTS = "think>"
"""A template whose text has this does something with thoughts in an answer's text."""
DATE_STRING = TEMPLATE_DATE.strftime("%d %b %Y")
"""The date as Llama's templates take it."""
QUESTION: Message = {"role": "user", "content": "x"}


class Unmarkable(Exception):
    """The template writes another text for a conversation with marks, so that the marks say nothing."""


@dataclass(frozen=True)
class Program:
    """A chat template with its variables and its form of turns."""

    template: str
    variables: dict[str, Any]
    form: Form = PLAIN

    @property
    def marks_generation(self) -> bool:
        """Whether the template says what the assistant writes."""
        return GENERATION_TAG.search(self.template) is not None

    @property
    def prints_date(self) -> bool:
        """Whether the template prints today's date."""
        return any(name in self.template for name in ("strftime_now", "date_string"))

    def text(self, messages: Conversation, *, generation: bool = False) -> str:
        """Render a conversation.

        Raises:
            TemplateRefusal: the template raises an error, or does not end.
        """
        return self._render(messages, generation=generation)

    def layout(self, messages: Conversation, *, generation: bool = False, text: str | None = None) -> Layout:
        """Render a conversation, and find where its strings stand.

        Args:
            messages: the conversation.
            generation: whether to add the header of the next answer.
            text: the rendered conversation, if it is known.

        Raises:
            TemplateRefusal: as for `text`.
            Unmarkable: the places cannot be found.
        """
        if not reads_strings(self.template):
            marker = Marker()
            marked = marker.conversation(messages)
            return marker.read(self._render(marked, generation=generation, mark_generation=True))
        plain = self.text(messages, generation=generation) if text is None else text
        for only_assistant in (False, True):
            marker = Marker(only_assistant=only_assistant)
            marked = marker.conversation(messages)
            try:
                found = marker.read(self._render(marked, generation=generation, mark_generation=True))
            except TemplateRefusal:
                continue
            if found.text == plain:
                return found
        raise Unmarkable

    def with_form(self) -> Program:
        """Return the program with the form of turns that the template reads.

        The form is found by trying: a template shows an answer, its thought and the call of a tool in some form.
        """
        found = self
        if not found._shows("content", {"role": "assistant", "content": "Sentinel"}):
            parts = replace(self, form=Form(parts=True))
            if parts._shows("content", {"role": "assistant", "content": "Sentinel"}):
                found = parts
        answer = {"role": "assistant", "content": "Sentinel", THOUGHT: "Reason"}
        fields = replace(found, form=replace(found.form, thoughts="fields"))
        if fields._shows("thought", answer):
            found = fields
        else:
            place: Any = "inline" if READS_THOUGHTS in self.template else "text"
            found = replace(found, form=replace(found.form, thoughts=place))
        if found._shows("call", *_CALLED):
            return found
        for form in (replace(found.form, short_ids=True), replace(found.form, text_arguments=True)):
            other = replace(found, form=form)
            if other._shows("call", *_CALLED):
                return other
        return found

    def _shows(self, part: str, *turns: Message) -> bool:
        """Whether the template writes a part of a turn after a question."""
        try:
            layout = self.layout((QUESTION, *turns))
        except (TemplateRefusal, Unmarkable):
            return False
        return (1, part) in layout.parts()

    def _render(self, messages: Conversation, *, generation: bool, mark_generation: bool = False) -> str:
        tools = next((message["tools"] for message in messages if message.get("tools")), None)
        variables = {
            **self.variables,
            "messages": self.form.messages(messages),
            "tools": tools,
            "add_generation_prompt": generation,
        }
        if mark_generation:
            variables["mark_generation"] = True
        try:
            return render(self.template, variables)
        except Exception as error:  # a template is third-party code, which may fail in any way on any input
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from error


_CALLED: Sequence[Message] = (
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "call_long_name", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    ]},
    {"role": "tool", "content": "seen", "tool_call_id": "call_long_name", "name": "look"},
    {"role": "assistant", "content": "Sentinel"},
)  # fmt: skip


def variables_of(special_tokens: dict[str, Any]) -> dict[str, Any]:
    """Return the variables of a tokenizer's templates, with the fixed date that Llama's templates print."""
    return {"bos_token": "", "eos_token": "", **special_tokens, "date_string": DATE_STRING}


def check_shown(messages: Conversation, layout: Layout) -> None:
    """Raise `TemplateRefusal` if a turn, a call or the tools are missing in the text. A thought may be."""
    parts = layout.parts()
    known = {turn for turn, _ in parts}
    tools = next((message["tools"] for message in messages if message.get("tools")), ())
    if parts.get((TOOLS, "tool"), 0) < len(tools):
        raise TemplateRefusal("it leaves out the tools")
    for index, message in enumerate(messages):
        calls = message.get("tool_calls") or ()
        if parts.get((index, "call"), 0) < len(calls):
            raise TemplateRefusal("it leaves out a call of a tool")
        if index not in known and (message.get("content") or "").strip():
            raise TemplateRefusal(f"it leaves out a turn with the role {message['role']!r}")
