"""Render and tokenize requests, before anything is cut to a length."""

from __future__ import annotations

from collections.abc import Sequence

from alignment_core.data.rendering.chat_template import ChatTemplate
from alignment_core.data.rendering.encoder import Encoded, Encoder, Text, Unrenderable
from alignment_core.data.rendering.engine.template_checks import is_text
from alignment_core.data.rendering.rendered import Rendered
from alignment_core.data.rendering.requests import RenderedRequest, Request, Tail, TokenizedParts
from alignment_core.plugin_api import TokenSequence
from alignment_core.records import Conversation


class Drafter:
    """Turns requests into tokens of any length, with one chat template and one tokenizer."""

    def __init__(self, chat: ChatTemplate, encoder: Encoder) -> None:
        self._chat = chat
        self._encoder = encoder

    def drafts(self, wanted: Sequence[tuple[Request, Conversation | None]]) -> list[TokenizedParts | Unrenderable]:
        """Render and tokenize requests with their own prompt or with a shorter, escaped one."""
        plans = [self._plan(request, shorter) for request, shorter in wanted]
        texts = [text for plan in plans if isinstance(plan, RenderedRequest) for text in plan.texts]
        encoded = iter(self._encoder.encode(texts))
        drafts: list[TokenizedParts | Unrenderable] = []
        for plan in plans:
            if isinstance(plan, Unrenderable):
                drafts.append(plan)
                continue
            head = next(encoded)
            tails = [_tail(next(encoded), item) for item in plan.rendered if plan.completed]
            if not head.ids and tails:  # a text without a conversation, whose first token has nothing before it
                first, tails = tails[0], [Tail(tail.ids[1:], None) for tail in tails]
                head = Encoded(first.ids[:1], None)
            drafts.append(TokenizedParts(plan.kept, head, tails, plan.rewritten, plan.left_out))
        return drafts

    def _plan(self, request: Request, shorter: Conversation | None) -> RenderedRequest | Unrenderable:
        try:
            kept = self._encoder.escape(request.prompt) if shorter is None else shorter
            every_turn = request.demonstration and any(message["role"] == "assistant" for message in kept)
            completions = [self._encoder.escape(completion) for completion in request.completions]
            if is_text(kept, completions):
                rendered = [self._chat.text(completions[0][0]["content"])]
            elif completions:
                rendered = self._chat.completions(kept, completions, targets=every_turn)
            else:
                rendered = [self._chat.prompt(kept)]
        except Unrenderable as error:
            return error
        first = rendered[0]
        texts = [Text(first.head, spans=first.head_targets or None)]
        texts += [Text(item.tail, fragment=True, spans=item.tail_targets) for item in rendered if completions]
        return RenderedRequest(kept, rendered, texts, completed=bool(completions))


def joined(draft: TokenizedParts, tail: Tail, *, every_turn: bool = False) -> TokenSequence:
    """Return the head of a draft and one of its tails. Assistant turns of the head may be targets, too."""
    head = draft.head.ids
    start, before = len(head), list[bool]()
    if every_turn and draft.head.targets is not None:
        mask = draft.head.targets
        start = mask.index(True) if True in mask else len(head)
        before = mask[start:]
    masked = None if not before and tail.mask is None else (*before, *(tail.mask or [True] * len(tail.ids)))
    return TokenSequence((*head, *tail.ids), start, masked)


def _tail(encoded: Encoded, rendered: Rendered) -> Tail:
    ids, mask = encoded.ids, encoded.targets
    if rendered.end_id is not None:
        ids = [*ids, rendered.end_id]
        mask = None if mask is None else [*mask, True]
    return Tail(ids, mask)
