"""A chat template as a Go template, for Ollama.

A Jinja template is a program, and none can be translated in general. Most write each message in the same way whatever
comes before and after it: what they put around a message of each role is read off a few renderings, and what is read
off is tried on other conversations. A template that does more is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignment_core.errors import ModelError

Message = dict[str, str]
Render = Callable[[Sequence[Message], bool], str]
"""The text of a conversation; True adds what asks for an answer."""

ONE, TWO, THREE, FOUR = "Sentinel one", "sentinel Two", "a third.", "4th"


@dataclass(frozen=True)
class Turns:
    """What a template writes.

    Attributes:
        start: before the first message.
        around: by role, before and after the message's text.
        ask: at the end, to ask for an answer.
        system: the system message of a conversation that has none; None where there is no such thing.
    """

    start: str
    around: dict[str, tuple[str, str]]
    ask: str
    system: str | None

    def render(self, messages: Sequence[Message]) -> str:
        """The text that asks for an answer to the messages."""
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        parts = [self.around[message["role"]] for message in messages]
        texts = [before + message["content"] + after for (before, after), message in zip(parts, messages, strict=True)]
        return self.start + "".join(texts) + self.ask

    def go(self) -> str:
        """The same as a Go template over Ollama's `.Messages`."""
        branches = "{{ else ".join(
            f'if eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}'
            for role, (before, after) in self.around.items()
        )
        each = f"{{{{ range .Messages }}}}{{{{ {branches}{{{{ end }}}}{{{{ end }}}}"
        return _literal(self.start) + each + _literal(self.ask)


def read_off(render: Render, where: str) -> Turns:
    """
    Args:
        render: the template.
        where: its origin, for the words of an error.

    Raises:
        ModelError: the template does more than write each message in the same way.
    """
    try:
        turns = _turns(render)
        right = turns is not None and all(_same(turns, render, messages) for messages in _others(turns))
    except Exception:  # a template is a stranger's program: it may fail in any way on any input
        turns, right = None, False
    if turns is None or not right:
        raise ModelError(
            "Ollama needs the chat template in Go's language, and this one cannot be read off its renderings: it does"
            " more than write each message in the same way",
            where=where,
            do="Train with a built-in template (`model.chat_template: chatml`), or write the Modelfile's TEMPLATE"
            " yourself beside a model exported by `--to merged`",
        )
    return turns


def _turns(render: Render) -> Turns | None:
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
            # The template brings a system message of its own, which Ollama is told by `SYSTEM`.
            system = start.removeprefix(opening).removesuffix(closing)
            start, around["system"] = "", (opening, closing)
        elif opening.startswith(start):
            around["system"] = (opening.removeprefix(start), closing)
        else:
            return None
    return Turns(start, around, ask, system)


def _system(render: Render, user: Message, before_user: str) -> tuple[str, str] | None:
    """What stands before and after a system message; None where the template takes none."""
    try:
        opening, between, _ = _split(render([_message("system", TWO), user], False), TWO, ONE)
    except Exception:  # as above
        return None
    return (opening, between.removesuffix(before_user)) if between.endswith(before_user) else None


def _others(turns: Turns) -> list[list[Message]]:
    """Conversations that nothing was read off."""
    words = ["What now?\n\nAnd then?", "Well: \"this\" {and} 'that'.", "Ça va — 好", "No.", "Tell me more"]
    talk = [_message(role, text) for role, text in zip(["user", "assistant"] * 3, words, strict=False)]
    found = [talk, talk[:1], talk[:3]]
    if "system" in turns.around:
        found += [[_message("system", "Be brief."), *conversation] for conversation in found]
    return found


def _same(turns: Turns, render: Render, messages: Sequence[Message]) -> bool:
    return turns.render(messages) == render(messages, True)


def _split(text: str, *sentinels: str) -> list[str]:
    """The text around the sentinels, which must stand in it once each, in this order."""
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
    """Text that Go writes as it is. A JSON string is a Go string, and hides line ends from the Modelfile's reader."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
