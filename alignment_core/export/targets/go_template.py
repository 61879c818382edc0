"""Convert a chat template to a Go template for Ollama.

A Jinja template is a program and cannot be translated in general. Most templates write each message in the same way,
independent of the messages around it. For these, the text around a message of each role is inferred from a few
renderings and verified on other conversations. Templates that do more are rejected.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignment_core.errors import ModelError

Message = dict[str, str]
Render = Callable[[Sequence[Message], bool], str]
"""Renders a conversation. True adds the generation prompt."""

ONE, TWO, THREE, FOUR = "Sentinel one", "sentinel Two", "a third.", "4th"


@dataclass(frozen=True)
class TemplateParts:
    """The constant parts of a template.

    Attributes:
        start: text before the first message.
        around: text before and after a message's content, by role.
        ask: the generation prompt at the end.
        system: the default system message for conversations without one; None if the template has none.
    """

    start: str
    around: dict[str, tuple[str, str]]
    ask: str
    system: str | None

    def render(self, messages: Sequence[Message]) -> str:
        """Render the messages with the generation prompt."""
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        parts = [self.around[message["role"]] for message in messages]
        texts = [before + message["content"] + after for (before, after), message in zip(parts, messages, strict=True)]
        return self.start + "".join(texts) + self.ask

    def go(self) -> str:
        """Return the equivalent Go template over Ollama's `.Messages`."""
        branches = "{{ else ".join(
            f'if eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}'
            for role, (before, after) in self.around.items()
        )
        each = f"{{{{ range .Messages }}}}{{{{ {branches}{{{{ end }}}}{{{{ end }}}}"
        return _literal(self.start) + each + _literal(self.ask)


def infer_template_parts(render: Render, where: str) -> TemplateParts:
    """Infer the constant parts of a template from its renderings.

    Args:
        render: the template.
        where: the origin of the template, for error messages.

    Raises:
        ModelError: the template does more than write each message in the same way.
    """
    try:
        turns = _turns(render)
        right = turns is not None and all(_same(turns, render, messages) for messages in _others(turns))
    except Exception:  # a template is third-party code that may raise anything
        turns, right = None, False
    if turns is None or not right:
        raise ModelError(
            "this chat template cannot be converted to a Go template for Ollama: it does more than write each message"
            " in the same way",
            where=where,
            do="Train with a built-in template (`model.chat_template: chatml`), or export with `--to merged` and write"
            " the TEMPLATE of a Modelfile by hand",
        )
    return turns


def _turns(render: Render) -> TemplateParts | None:
    user, answer = _message("user", ONE), _message("assistant", TWO)
    long = render([user, answer, _message("user", THREE), _message("assistant", FOUR)], False)
    head, after_user, between, again, end = _split(long, ONE, TWO, THREE, FOUR)
    if after_user != again or not between.startswith(end):
        return None
    before_user = between.removeprefix(end)
    asked = render([user], True)
    plain = render([user], False)
    if not asked.startswith(plain) or not plain.startswith(head + ONE):
        return None
    user_end = plain.removeprefix(head + ONE)
    if not after_user.startswith(user_end):
        return None
    around = {"user": (before_user, user_end), "assistant": (after_user.removeprefix(user_end), end)}
    ask = asked.removeprefix(plain)
    if not head.endswith(before_user):
        return None
    start, system = head.removesuffix(before_user), None
    if (with_system := _system(render, user, before_user)) is not None:
        opening, closing = with_system
        if start.startswith(opening) and start.endswith(closing) and len(start) > len(opening + closing):
            # The template has a default system message, which becomes `SYSTEM` in the Modelfile.
            system = start.removeprefix(opening).removesuffix(closing)
            start, around["system"] = "", (opening, closing)
        elif opening.startswith(start):
            around["system"] = (opening.removeprefix(start), closing)
        else:
            return None
    return TemplateParts(start, around, ask, system)


def _system(render: Render, user: Message, before_user: str) -> tuple[str, str] | None:
    """Return the text before and after a system message, or None if the template does not support one."""
    try:
        opening, between, _ = _split(render([_message("system", TWO), user], False), TWO, ONE)
    except Exception:  # third-party code, as above
        return None
    return (opening, between.removesuffix(before_user)) if between.endswith(before_user) else None


def _others(turns: TemplateParts) -> list[list[Message]]:
    """Return conversations that were not used for inference."""
    texts = ["What now?\n\nAnd then?", "Well: \"this\" {and} 'that'.", "Ça va — 好", "No.", "Tell me more"]
    talk = [_message(role, text) for role, text in zip(["user", "assistant"] * 3, texts, strict=False)]
    found = [talk, talk[:1], talk[:3]]
    if "system" in turns.around:
        found += [[_message("system", "Be brief."), *conversation] for conversation in found]
    return found


def _same(turns: TemplateParts, render: Render, messages: Sequence[Message]) -> bool:
    return turns.render(messages) == render(messages, True)


def _split(text: str, *sentinels: str) -> list[str]:
    """Return the text around the sentinels, each of which must occur once, in this order."""
    parts = []
    for sentinel in sentinels:
        before, found, text = text.partition(sentinel)
        if not found or sentinel in text:
            raise ValueError(sentinel)
        parts.append(before)
    return [*parts, text]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _literal(text: str) -> str:
    """Return a Go expression that writes the text verbatim.

    A JSON string is a valid Go string, and it hides line breaks from the Modelfile parser.
    """
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
