"""From conversations to token sequences, the same in every stage.

A prompt is tokenised on its own, and so is each completion; a sequence is their concatenation. So the ids that a
response is sampled after are exactly those that it is trained after, whatever the tokenizer would merge across the
boundary. A completion ends exactly at the token on which generation stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from alignment_core.data.chat import Chat
from alignment_core.data.chat_templates import BUILTIN_TEMPLATES, resolve_chat_template
from alignment_core.data.drafts import Draft, Plan, Request, Tail, Tokens
from alignment_core.data.encoding import Encoded, Encoder, Text, Unrenderable
from alignment_core.data.tokenizer import generation_stops, load_tokenizer
from alignment_core.errors import ModelError
from alignment_core.plugin_api import TokenSequence
from alignment_core.records import Conversation

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
"""A prompt that waits for a response leaves at least 1/4 of the length for it."""


class Renderer:
    """Turns conversations into token sequences with one tokenizer and one chat template.

    Args:
        tokenizer: from `load_tokenizer`.
        chat_template: the template's text; None: the tokenizer's own, else the built-in one for base models.
        max_length: longest sequence in tokens.
        generation_stops: further ids on which generation stops (the model's generation_config).

    Attributes:
        stop_ids: every token on which generation stops; a completion ends with the first.
        pad_id: id of padding; not in `stop_ids`.

    Raises:
        ModelError: the template does not compile or render, or nothing ends a turn.
    """

    def __init__(
        self, tokenizer: Any, *, chat_template: str | None, max_length: int, generation_stops: Sequence[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.pad_id: int = tokenizer.pad_token_id
        self._chat = Chat(tokenizer, chat_template)
        self._encoder = Encoder(tokenizer)
        eos = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = tuple(
            dict.fromkeys([self._chat.stop_id, *([] if eos is None else [eos]), *generation_stops])
        )
        if self.pad_id in self.stop_ids:
            raise ModelError(
                "the padding token is one that generation stops on",
                where=str(tokenizer.name_or_path),
                got=tokenizer.pad_token,
                do="Load the tokenizer with `load_tokenizer`, which chooses another",
            )

    @property
    def template(self) -> str:
        """Text of the chat template."""
        return self._chat.template

    def prompt(self, messages: Conversation) -> TokenSequence:
        """The prompt as generation sees it, the generation prompt added: no completion, `start == len(ids)`.

        Leaves a quarter of `max_length` for the response; where it must be cut, its newest turns stay.

        Raises:
            Unrenderable: the template refuses it.
        """
        sequence = self.tokens(Request(messages, waiting=True)).prompt
        assert sequence is not None
        return sequence

    def completion(self, prompt: Conversation, completion: Conversation) -> TokenSequence:
        """`prompt` and one completion, whose assistant turns are targets; ends exactly at the stop token.

        Raises:
            Unrenderable: the completion is longer than `max_length` allows, or the template refuses it.
        """
        return self.tokens(Request(prompt, (completion,))).completions[0]

    def demonstration(self, messages: Conversation) -> TokenSequence:
        """A conversation whose assistant turns are all targets; ends at the last one's stop token.

        Raises:
            Unrenderable: no assistant turn, the last one longer than `max_length` allows, or the template refuses it.
        """
        last = next((i for i in range(len(messages) - 1, -1, -1) if messages[i]["role"] == "assistant"), None)
        if last is None:
            raise Unrenderable("no_assistant_turn", "no assistant turn to learn from")
        sequence = self.tokens(Request(messages[:last], (messages[last : last + 1],), demonstration=True)).demonstration
        assert sequence is not None
        return sequence

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response, without special tokens and without what the template puts in front of an answer."""
        return self._encoder.decode(ids).removeprefix(self._chat.lead)

    def tokens(self, request: Request) -> Tokens:
        """One request.

        Raises:
            Unrenderable: as `batch` returns it.
        """
        (result,) = self.batch([request])
        if isinstance(result, Unrenderable):
            raise result
        return result

    def batch(self, requests: Sequence[Request]) -> list[Tokens | Unrenderable]:
        """Tokenise many requests together: their texts in one call, and again those whose prompt had to be cut.

        A prompt that is too long loses its oldest turns, then the front of its last user turn, then its system
        prompt; a completion is never cut.
        """
        drafts = self._drafts([(request, None) for request in requests])
        return [
            draft if isinstance(draft, Unrenderable) else self._finished(request, draft)
            for request, draft in zip(requests, drafts, strict=True)
        ]

    # --- fitting into the length -----------------------------------------------------------------------------------

    def _finished(self, request: Request, draft: Draft) -> Tokens | Unrenderable:
        try:
            completions: tuple[TokenSequence, ...] = ()
            demonstration, fitted, waiting = None, draft, None
            if request.completions:
                fitted = self._fitted(request, draft, self.max_length)
                completions = tuple(self._sequence(fitted, tail) for tail in fitted.tails)
            if request.demonstration:
                demonstration = self._sequence(fitted, fitted.tails[0], every_turn=True)
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
        )

    def _fitted(self, request: Request, draft: Draft, limit: int) -> Draft:
        while (over := draft.length - limit) > 0:
            shorter = self._shorter(draft.kept, over, draft.head)
            if shorter is None:
                reason = "completion_too_long" if request.completions else "prompt_too_long"
                raise Unrenderable(reason, f"{draft.length} tokens with the prompt cut as far as it goes; {limit} fit")
            (result,) = self._drafts([(request, shorter)])
            if isinstance(result, Unrenderable):
                raise result
            draft = result
        return draft

    def _shorter(self, prompt: Conversation, over: int, head: Encoded) -> Conversation | None:
        """`prompt` without about `over` of its tokens; None where nothing more may go."""
        system = tuple(message for message in prompt[:1] if message["role"] == "system")
        turns = prompt[len(system) :]
        starts = [index for index, message in enumerate(turns) if index and message["role"] == "user"]
        characters = sum(len(message.get("content") or "") for message in prompt) or 1
        dropped = 0.0
        for previous, start in zip([0, *starts], starts, strict=False):
            gone = sum(len(message.get("content") or "") for message in turns[previous:start])
            # An estimate from the characters, on the low side: what is still too long comes back here.
            dropped += gone / characters * len(head.ids)
            if dropped >= over or start == starts[-1]:
                return _with_tools_of(prompt, (*system, *turns[start:]))
        users = [index for index, message in enumerate(turns) if message["role"] == "user"]
        if users:
            text = self._encoder.without_front(turns[users[-1]].get("content") or "", over)
            if text is not None:
                cut = {**turns[users[-1]], "content": text}
                return (*system, *turns[: users[-1]], cut, *turns[users[-1] + 1 :])
        return _with_tools_of(prompt, turns) if system and turns else None

    # --- text and tokens -------------------------------------------------------------------------------------------

    def _drafts(self, wanted: Sequence[tuple[Request, Conversation | None]]) -> list[Draft | Unrenderable]:
        """Render and tokenise requests as they are, or with a shorter (escaped) prompt."""
        plans = [self._plan(request, shorter) for request, shorter in wanted]
        texts = [text for plan in plans if isinstance(plan, Plan) for text in plan.texts]
        encoded = iter(self._encoder.encode(texts))
        drafts: list[Draft | Unrenderable] = []
        for plan in plans:
            if isinstance(plan, Unrenderable):
                drafts.append(plan)
                continue
            head = next(encoded)
            tails = [self._tail(next(encoded)) for _ in plan.rendered]
            drafts.append(Draft(plan.kept, head, tails, plan.rewritten))
        return drafts

    def _plan(self, request: Request, shorter: Conversation | None) -> Plan | Unrenderable:
        try:
            kept = self._encoder.escape(request.prompt) if shorter is None else shorter
            every_turn = request.demonstration and any(message["role"] == "assistant" for message in kept)
            completions = [self._encoder.escape(completion) for completion in request.completions]
            rendered = self._chat.completions(kept, completions, targets=every_turn) if completions else []
            first = rendered[0] if rendered else self._chat.prompt(kept)
        except Unrenderable as error:
            return error
        texts = [Text(first.head, spans=first.head_targets or None)]
        texts += [Text(item.tail, fragment=True, spans=item.tail_targets) for item in rendered]
        return Plan(kept, rendered, texts, first.rewritten)

    def _tail(self, encoded: Encoded) -> Tail:
        ids, mask = encoded.ids, encoded.targets
        if self._chat.stop_text is None:
            ids = [*ids, self._chat.stop_id]
            mask = None if mask is None else [*mask, True]
        elif mask is not None:
            mask = [*mask[:-1], True]
        return Tail(ids, mask)

    def _sequence(self, draft: Draft, tail: Tail, *, every_turn: bool = False) -> TokenSequence:
        head = draft.head.ids
        start, before = len(head), list[bool]()
        if every_turn and draft.head.targets is not None:
            mask = draft.head.targets
            start = mask.index(True) if True in mask else len(head)
            before = mask[start:]
        masked = None if not before and tail.mask is None else (*before, *(tail.mask or [True] * len(tail.ids)))
        return TokenSequence((*head, *tail.ids), start, masked)


def _with_tools_of(whole: Conversation, part: Conversation) -> Conversation:
    """`part` with the definitions of the tools that stand on the first turn of `whole`."""
    tools = whole[0].get("tools")
    return ({**part[0], "tools": tools}, *part[1:]) if tools else part
