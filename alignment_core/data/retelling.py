"""Sequences of one tokenizer and chat template, told again in those of another model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alignment_core.data.chat import Chat
from alignment_core.data.chat_templates import lacks_template
from alignment_core.data.conversations import Conversations
from alignment_core.data.encoding import Encoder, Text
from alignment_core.data.rendering import Renderer
from alignment_core.errors import PluginError
from alignment_core.plugin_api import TokenSequence
from alignment_core.records import Conversation, Message


class Retelling:
    """The conversation of a sequence as another model reads it: its whole template, to the last token.

    Args:
        renderer: of the model whose sequences these are.
        conversations: where the words of their prompts are.
        tokenizer: the other model's, from `load_tokenizer`.
        chat_template: text of its template; None: its tokenizer's own.
        limit: tokens that it takes; a longer conversation loses its oldest turns, then tokens at its front.
        warn: told once that a conversation had to be cut.

    Attributes:
        cut: conversations that had to be cut.

    Raises:
        ModelError: the other model has no chat template, or it does not work.
    """

    def __init__(
        self,
        renderer: Renderer,
        conversations: Conversations,
        tokenizer: Any,
        *,
        chat_template: str | None,
        limit: float,
        warn: Callable[[str], None],
    ) -> None:
        if chat_template is None and not tokenizer.chat_template:
            raise lacks_template(tokenizer.name_or_path)
        self._renderer, self._conversations = renderer, conversations
        self._chat, self._encoder = Chat(tokenizer, chat_template), Encoder(tokenizer)
        self._limit, self._warn = limit, warn
        self.cut = 0

    def ids(self, sequence: TokenSequence) -> list[int]:
        """The other model's tokens of a prompt and its response.

        Raises:
            PluginError: the sequence's prompt is none of the data's, or its completion has several turns.
        """
        prompt = self._conversations.of(sequence.prompt)
        if prompt is None:
            raise PluginError(
                "an external reward model reads text, and no record has the prompt of this sequence",
                where="run.reward.scores",
                expected="a prompt of `run.prompts`, `run.preferences` or `run.feedback`, with any response",
            )
        if sequence.mask is not None and not all(sequence.mask):
            raise PluginError(
                "an external reward model takes a completion of one turn",
                where="run.reward.scores",
                got="a completion in which other turns stand between the assistant's",
            )
        return self.ids_of(prompt, self._renderer.decode(sequence.completion))

    def ids_of(self, prompt: Conversation, response: str) -> list[int]:
        """The other model's tokens of a prompt and a response in words."""
        answer = {"role": "assistant", "content": response}
        ids = self._told(prompt, answer)
        if len(ids) <= self._limit:
            return ids
        if not self.cut:
            self._warn(f"the reward model takes {self._limit} tokens: longer conversations lose their oldest part")
        self.cut += 1
        while len(ids) > self._limit and (shorter := _without_oldest(prompt)) is not None:
            prompt = shorter
            ids = self._told(prompt, answer)
        return ids[-int(min(self._limit, len(ids))) :]

    def _told(self, prompt: Conversation, answer: Message) -> list[int]:
        (*escaped, last) = self._encoder.escape((*prompt, answer))
        (encoded,) = self._encoder.encode([Text(self._chat.whole(tuple(escaped), last))])
        return encoded.ids


def _without_oldest(prompt: Conversation) -> Conversation | None:
    """The prompt without its turns up to the next user turn, its system prompt kept; None where one turn is left."""
    system = prompt[:1] if prompt[0]["role"] == "system" else ()
    turns = prompt[len(system) :]
    starts = [index for index, message in enumerate(turns) if index and message["role"] == "user"]
    return (*system, *turns[starts[0] :]) if starts else None
