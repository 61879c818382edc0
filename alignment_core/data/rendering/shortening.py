"""Cut a prompt that is too long."""

from __future__ import annotations

from alignment_core.data.rendering.encoder import Encoder
from alignment_core.records import Conversation


def shorter_prompt(encoder: Encoder, prompt: Conversation, over: int, length: int) -> Conversation | None:
    """Return a prompt without approximately `over` of its `length` tokens, or None if it cannot be cut further.

    The oldest turns go first, then the start of the last user turn, then the system prompt.
    """
    system = tuple(message for message in prompt[:1] if message["role"] == "system")
    turns = prompt[len(system) :]
    starts = [index for index, message in enumerate(turns) if index and message["role"] == "user"]
    characters = sum(len(message.get("content") or "") for message in prompt) or 1
    dropped = 0.0
    for previous, start in zip([0, *starts], starts, strict=False):
        gone = sum(len(message.get("content") or "") for message in turns[previous:start])
        # A low estimate from the characters. If the prompt is still too long, it is cut again.
        dropped += gone / characters * length
        if dropped >= over or start == starts[-1]:
            return _with_tools_of(prompt, (*system, *turns[start:]))
    users = [index for index, message in enumerate(turns) if message["role"] == "user"]
    if users:
        text = encoder.without_front(turns[users[-1]].get("content") or "", over)
        if text is not None:
            cut = {**turns[users[-1]], "content": text}
            return (*system, *turns[: users[-1]], cut, *turns[users[-1] + 1 :])
    return _with_tools_of(prompt, turns) if system and turns else None


def _with_tools_of(whole: Conversation, part: Conversation) -> Conversation:
    """Return `part` with the tool definitions from the first turn of `whole`."""
    tools = whole[0].get("tools")
    return ({**part[0], "tools": tools}, *part[1:]) if tools else part
