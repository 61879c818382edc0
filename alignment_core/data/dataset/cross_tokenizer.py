"""Re-encode sequences with the tokenizer and chat template of another model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alignment_core.data.dataset.prompt_index import PromptIndex
from alignment_core.data.rendering.builtin_templates import lacks_template
from alignment_core.data.rendering.chat_template import ChatTemplate
from alignment_core.data.rendering.encoder import Encoder, Text
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.errors import PluginError
from alignment_core.plugin_api import TokenSequence
from alignment_core.records import Conversation, Message


class CrossTokenizer:
    """Encodes the conversation of a sequence for another model, with the complete output of its chat template.

    Args:
        renderer: renderer of the model that the sequences belong to.
        conversations: the conversations of the sequences' prompts.
        tokenizer: the other model's tokenizer, from `load_tokenizer`.
        chat_template: text of the other model's chat template. None: the template of its tokenizer.
        limit: maximum number of tokens. A longer conversation loses its oldest turns, then tokens at its start.
        warn: called when the first conversation is cut.

    Attributes:
        truncated: number of conversations that were cut.

    Raises:
        ModelError: the other model has no chat template, or the template fails.
    """

    def __init__(
        self,
        renderer: Renderer,
        conversations: PromptIndex,
        tokenizer: Any,
        *,
        chat_template: str | None,
        limit: float,
        warn: Callable[[str], None],
    ) -> None:
        if chat_template is None and not tokenizer.chat_template:
            raise lacks_template(tokenizer.name_or_path)
        self._renderer, self._conversations = renderer, conversations
        self._chat, self._encoder = ChatTemplate(tokenizer, chat_template), Encoder(tokenizer)
        self._limit, self._warn = limit, warn
        for message in self._chat.warnings:
            warn(f"the reward model: {message}")
        self.truncated = 0

    def encode(self, sequence: TokenSequence) -> list[int]:
        """Return the other model's tokens of a prompt and its response.

        Raises:
            PluginError: no record has the sequence's prompt, or its completion has several turns.
        """
        prompt = self._conversations.find(sequence.prompt)
        if prompt is None:
            raise PluginError(
                "an external reward model needs the text of the prompt, but no record has the prompt of this sequence",
                where="run.rewards",
                expected="a prompt from `run.prompts`, `run.preferences` or `run.feedback`, followed by any response",
            )
        if sequence.mask is not None and not all(sequence.mask):
            raise PluginError(
                "an external reward model can only score a completion of one turn",
                where="run.rewards",
                got="a completion with other turns between the assistant turns",
            )
        return self.encode_response(prompt, self._renderer.decode(sequence.completion))

    def encode_response(self, prompt: Conversation, response: str) -> list[int]:
        """Return the other model's tokens of a prompt and a response that is given as text."""
        answer = {"role": "assistant", "content": response}
        ids = self._encode(prompt, answer)
        if len(ids) <= self._limit:
            return ids
        if not self.truncated:
            limit = f"at most {self._limit} tokens"
            self._warn(f"the reward model accepts {limit}: longer conversations lose their oldest part")
        self.truncated += 1
        while len(ids) > self._limit and (shorter := _without_oldest(prompt)) is not None:
            prompt = shorter
            ids = self._encode(prompt, answer)
        return ids[-int(min(self._limit, len(ids))) :]

    def _encode(self, prompt: Conversation, answer: Message) -> list[int]:
        (*escaped, last) = self._encoder.escape((*prompt, answer))
        (encoded,) = self._encoder.encode([Text(self._chat.whole(tuple(escaped), last))])
        return encoded.ids


def _without_oldest(prompt: Conversation) -> Conversation | None:
    """Return the prompt without the turns before its next user turn, or None if there is no such turn.

    The system prompt is kept.
    """
    system = prompt[:1] if prompt[0]["role"] == "system" else ()
    turns = prompt[len(system) :]
    starts = [index for index, message in enumerate(turns) if index and message["role"] == "user"]
    return (*system, *turns[starts[0] :]) if starts else None
