"""Convert conversations to token sequences, in the same way in every stage.

The prompt and each completion are tokenized separately, and a sequence is their concatenation. A response is therefore
trained after exactly the prompt ids that it was sampled after, even if the tokenizer would merge tokens across the
boundary. A completion ends exactly at the token that stops generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from alignment_core.data.rendering.builtin_templates import BUILTIN_TEMPLATES, TEMPLATE_DATE, resolve_chat_template
from alignment_core.data.rendering.chat_template import ChatTemplate, Thoughts
from alignment_core.data.rendering.drafts import Drafter, joined
from alignment_core.data.rendering.encoder import Encoder, Unrenderable
from alignment_core.data.rendering.requests import Request, TokenizedParts, Tokens
from alignment_core.data.rendering.shortening import shorter_prompt
from alignment_core.data.rendering.tokenizer import generation_stops, load_tokenizer
from alignment_core.errors import ModelError
from alignment_core.own_code import OWN_CODE
from alignment_core.plugin_api import TokenSequence
from alignment_core.records import Conversation
from alignment_core.records.thoughts import with_thoughts

__all__ = [
    "BUILTIN_TEMPLATES",
    "Renderer",
    "Request",
    "Tokens",
    "Unrenderable",
    "generation_stops",
    "load_tokenizer",
    "resolve_chat_template",
]

RESPONSE_SHARE = 4
"""A prompt for generation leaves at least 1/4 of the maximum length for the response."""


class Renderer:
    """Turns conversations into token sequences with one tokenizer and one chat template.

    Args:
        tokenizer: a tokenizer from `load_tokenizer`.
        chat_template: text of the template. None for the tokenizer's own, or the built-in default if it has none.
        max_length: maximum length of a sequence in tokens.
        generation_stops: additional ids that stop generation (from the model's generation_config).
        thoughts: what becomes of thoughts if the template has no place for them.

    Attributes:
        stop_ids: ids of all tokens that stop generation. A completion ends with the first of them.
        pad_id: id of the padding token, which is not in `stop_ids`.

    Raises:
        ModelError: the template does not compile or render, no token ends a turn, or the padding token ends one.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: str | None,
        max_length: int,
        generation_stops: Sequence[int] = (),
        thoughts: Thoughts = "text",
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.pad_id: int = tokenizer.pad_token_id
        self._chat = ChatTemplate(tokenizer, chat_template, thoughts=thoughts)
        self._encoder = Encoder(tokenizer)
        self._drafter = Drafter(self._chat, self._encoder)
        eos = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = tuple(
            dict.fromkeys(
                [
                    self._chat.ending.token_id,
                    *([] if eos is None else [eos]),
                    *generation_stops,
                    *map(tokenizer.convert_tokens_to_ids, self._chat.ending.tokens[1:]),
                ]
            )
        )
        if self.pad_id in self.stop_ids:
            raise ModelError(
                "the padding token also stops generation",
                where=str(tokenizer.name_or_path),
                got=tokenizer.pad_token,
                do="Load the tokenizer with `load_tokenizer`, which chooses a different padding token",
            )

    @classmethod
    def of_model(
        cls,
        path: str,
        revision: str | None,
        *,
        chat_template: str | None,
        max_length: int,
        thoughts: Thoughts = "text",
        own_code: str | None = None,
    ) -> Renderer:
        """Load a model's tokenizer, and stop on the tokens that its generation config names.

        Args:
            path: folder or Hub id of the model.
            revision: the Hub commit. None for a folder.
            chat_template: as for `Renderer`.
            max_length: as for `Renderer`.
            thoughts: as for `Renderer`.
            own_code: as for `load_tokenizer`.

        Raises:
            ModelError: the tokenizer does not load, or as for `Renderer`.
        """
        return cls(
            load_tokenizer(path, revision, own_code),
            chat_template=chat_template,
            max_length=max_length,
            generation_stops=generation_stops(path, revision),
            thoughts=thoughts,
        )

    @classmethod
    def of_stage(cls, model: Mapping[str, Any], config: Mapping[str, Any]) -> Renderer:
        """Load the renderer of a stage.

        Args:
            model: `path` and `revision` of the model, and the digest of its own code that may run, if any.
            config: the configuration of the stage.

        Raises:
            ModelError: as for `of_model`.
        """
        return cls.of_model(
            model["path"],
            model["revision"],
            chat_template=config["chat_template"],
            max_length=config["max_length"],
            thoughts=config.get("thoughts", "text"),  # unset in models from before the setting
            own_code=model.get(OWN_CODE),
        )

    @property
    def template(self) -> str:
        """Return the text of the chat template."""
        return self._chat.template

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what a person must know about controls of the chat template that are not tokens."""
        return self._chat.warnings

    @property
    def printed_date(self) -> str | None:
        """Return the date that the chat template prints, which is always the same. None if it prints none."""
        return TEMPLATE_DATE.isoformat() if self._chat.program.prints_date else None

    def prompt(self, messages: Conversation) -> TokenSequence:
        """Return the prompt as generation sees it, with the generation prompt and no completion: `start == len(ids)`.

        It leaves a quarter of `max_length` for the response. If it must be cut, the newest turns are kept.

        Raises:
            Unrenderable: the template refuses the prompt, or it cannot be cut enough.
        """
        sequence = self.tokens(Request(messages, waiting=True)).prompt
        assert sequence is not None
        return sequence

    def completion(self, prompt: Conversation, completion: Conversation) -> TokenSequence:
        """Return `prompt` with one completion, whose assistant turns are targets. It ends exactly at the stop token.

        Raises:
            Unrenderable: the completion is longer than `max_length` allows, or the template refuses it.
        """
        return self.tokens(Request(prompt, (completion,))).completions[0]

    def demonstration(self, messages: Conversation) -> TokenSequence:
        """Return a conversation with all assistant turns as targets. It ends at the stop token of the last one.

        Raises:
            Unrenderable: there is no assistant turn, the last one is longer than `max_length` allows, or the template
                refuses the conversation.
        """
        last = next((i for i in range(len(messages) - 1, -1, -1) if messages[i]["role"] == "assistant"), None)
        if last is None:
            raise Unrenderable("no_assistant_turn", "the conversation has no assistant turn to learn from")
        sequence = self.tokens(Request(messages[:last], (messages[last : last + 1],), demonstration=True)).demonstration
        assert sequence is not None
        return sequence

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a response, without special tokens and the text that the template adds in front of it.

        A NUL character, which databases and data sets refuse, becomes the replacement character.
        """
        return self._encoder.decode(ids).removeprefix(self._chat.ending.lead).replace("\0", "\ufffd")

    def tokens(self, request: Request) -> Tokens:
        """Tokenize one request.

        Raises:
            Unrenderable: the error that `batch` returns for this request.
        """
        (result,) = self.batch([request])
        if isinstance(result, Unrenderable):
            raise result
        return result

    def batch(self, requests: Sequence[Request]) -> list[Tokens | Unrenderable]:
        """Tokenize many requests in one call, then again those whose prompt must be cut.

        A prompt that is too long loses its oldest turns, then the start of its last user turn, then its system prompt.
        A completion is never cut. An `Unrenderable` is returned in the position of its request.
        """
        requests = [_with_thoughts(request) for request in requests]
        drafts = self._drafter.drafts([(request, None) for request in requests])
        return [
            draft if isinstance(draft, Unrenderable) else self._finished(request, draft)
            for request, draft in zip(requests, drafts, strict=True)
        ]

    def _finished(self, request: Request, draft: TokenizedParts) -> Tokens | Unrenderable:
        try:
            completions: tuple[TokenSequence, ...] = ()
            demonstration, fitted, waiting = None, draft, None
            if request.completions:
                fitted = self._fitted(request, draft, self.max_length)
                completions = tuple(joined(fitted, tail) for tail in fitted.tails)
            if request.demonstration:
                demonstration = joined(fitted, fitted.tails[0], every_turn=True)
            if request.waiting:
                alone = replace(draft, tails=[])
                limit = self.max_length - self.max_length // RESPONSE_SHARE
                waiting = self._fitted(Request(request.prompt), alone, limit)
        except Unrenderable as error:
            return error
        prompt = None if waiting is None else TokenSequence(tuple(waiting.head.ids), len(waiting.head.ids))
        return Tokens(
            completions,
            demonstration,
            prompt,
            kept=() if waiting is None else self._encoder.unescape(waiting.kept),
            truncated=any(part is not None and part.kept is not draft.kept for part in (fitted, waiting)),
            rewritten=draft.rewritten,
            left_out=fitted.left_out,
            thoughts=self._chat.homeless_thoughts((*request.prompt, *chain.from_iterable(request.completions))),
        )

    def _fitted(self, request: Request, draft: TokenizedParts, limit: int) -> TokenizedParts:
        while (over := draft.length - limit) > 0:
            shorter = shorter_prompt(self._encoder, draft.kept, over, len(draft.head.ids))
            if shorter is None:
                reason = "completion_too_long" if request.completions else "prompt_too_long"
                raise Unrenderable(
                    reason, f"{draft.length} tokens with the prompt cut as far as possible, expected at most {limit}"
                )
            (result,) = self._drafter.drafts([(request, shorter)])
            if isinstance(result, Unrenderable):
                raise result
            draft = result
        return draft


def _with_thoughts(request: Request) -> Request:
    prompt = with_thoughts(request.prompt)
    completions = tuple(map(with_thoughts, request.completions))
    return replace(request, prompt=prompt, completions=completions)
