"""Go templates for chat templates, rendered by a small interpreter of the part of Go that the export writes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from chat_styles import STYLES
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alignment_core.data.rendering.builtin_templates import BUILTIN_TEMPLATES
from alignment_core.errors import ModelError
from alignment_core.export.targets.go_template import Message, Render, infer_template_parts

FLAT = ("qwen", "marked", "llama", "deaf")
"""Styles that write every message in the same way. The last one and its Go template drop system messages."""

ACTION = re.compile(r"\{\{ (.*?) \}\}")


def go(template: str, messages: Sequence[Message]) -> str:
    """Render like Go's text/template: strings, one `range` over `.Messages`, `if eq .Role`, and `.Content`."""
    before, inside, after = re.fullmatch(r"(.*?)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", template).groups()  # type: ignore[union-attr]
    text = literals(before)
    for message in messages:
        assert inside.endswith("{{ end }}")
        branches = inside.removesuffix("{{ end }}").removeprefix("{{ ").split("{{ else ")
        for branch in branches:
            condition, body = re.fullmatch(r'if eq \.Role "(\w+)" \}\}(.*)', branch).groups()  # type: ignore[union-attr]
            if condition == message["role"]:
                text += literals(body, message["content"])
                break
    return text + literals(after)


def literals(body: str, content: str = "") -> str:
    """Render the actions of the text in order. There may be nothing between them."""
    assert ACTION.sub("", body) == ""
    return "".join(content if action == ".Content" else json.loads(action) for action in ACTION.findall(body))


def jinja(template: str) -> Render:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = lambda message: (_ for _ in ()).throw(ValueError(message))
    marks = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
    compiled = environment.from_string(marks.sub("", template))

    def render(messages: Sequence[Message], ask: bool) -> str:
        variables: dict[str, Any] = {"bos_token": "", "eos_token": "</s>"}
        return compiled.render(messages=messages, add_generation_prompt=ask, **variables)

    return render


def chat(*contents: str) -> list[Message]:
    roles = ["system", "user", "assistant", "user"]
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def test_chatml_by_hand() -> None:
    turns = infer_template_parts(jinja(BUILTIN_TEMPLATES["chatml"]), "here")
    assert turns.start == ""
    assert turns.around == {
        "user": ("<|im_start|>user\n", "<|im_end|>\n"),
        "assistant": ("<|im_start|>assistant\n", "<|im_end|>\n"),
        "system": ("<|im_start|>system\n", "<|im_end|>\n"),
    }
    assert turns.ask == "<|im_start|>assistant\n"
    assert turns.go() == (
        '{{ range .Messages }}{{ if eq .Role "user" }}{{ "<|im_start|>user\\n" }}{{ .Content }}{{ "<|im_end|>\\n" }}'
        '{{ else if eq .Role "assistant" }}{{ "<|im_start|>assistant\\n" }}{{ .Content }}{{ "<|im_end|>\\n" }}'
        '{{ else if eq .Role "system" }}{{ "<|im_start|>system\\n" }}{{ .Content }}{{ "<|im_end|>\\n" }}'
        '{{ end }}{{ end }}{{ "<|im_start|>assistant\\n" }}'
    )


@pytest.mark.parametrize("template", [*BUILTIN_TEMPLATES.values(), *(STYLES[name] for name in FLAT)])
def test_go_template_renders_the_same_text_as_the_chat_template(template: str) -> None:
    render = jinja(template)
    turns = infer_template_parts(render, "here")
    for conversation in (chat("Be kind.", "Hi", "Hello!", 'Bye {{ x }} """'), chat("", "Hi")[1:], chat("S", "U")):
        assert go(turns.go(), conversation) == render(conversation, True)


def test_default_system_message_becomes_ollamas() -> None:
    template = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Q.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ).replace("\n", "{{ '\\n' }}")
    render = jinja(template)
    turns = infer_template_parts(render, "here")
    assert turns.system == "You are Q."
    # Ollama adds `SYSTEM` to a conversation without a system message.
    with_system = [{"role": "system", "content": "You are Q."}, *chat("", "Hi")[1:]]
    assert go(turns.go(), with_system) == render(chat("", "Hi")[1:], True)


@pytest.mark.parametrize("name", ["phi", "thinking"])
def test_template_with_more_logic_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="this chat template cannot be converted to a Go template"):
        infer_template_parts(jinja(STYLES[name]), "here")


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_template_that_refuses_system_messages_has_no_branch_for_them(name: str) -> None:
    render = jinja(STYLES[name])
    turns = infer_template_parts(render, "here")
    assert turns.around.keys() == {"user", "assistant"}
    conversation = chat("", "Hi", "Hello!", "Bye")[1:]
    assert go(turns.go(), conversation) == render(conversation, True)
