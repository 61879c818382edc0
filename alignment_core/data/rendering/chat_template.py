"""Render conversations with a chat template, and locate prompts, answers and assistant turns in the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from alignment_core.data.rendering.builtin_templates import BUILTIN_TEMPLATES, DEFAULT_TEMPLATE, check_template_size
from alignment_core.data.rendering.encoder import Span, Unrenderable
from alignment_core.data.rendering.engine.controls import adds_bos, fit_to_tokenizer
from alignment_core.data.rendering.engine.marks import Layout
from alignment_core.data.rendering.engine.message_forms import CLOSE, OPEN, THOUGHT, has_thought
from alignment_core.data.rendering.engine.plain_answers import find_trim
from alignment_core.data.rendering.engine.program import Unmarkable, check_shown
from alignment_core.data.rendering.engine.stop_token import find_ending
from alignment_core.data.rendering.engine.template_checks import (
    TemplateRefusal,
    as_user_and_assistant_turns,
    check_no_turn_is_missing,
    is_plain_answer,
)
from alignment_core.data.rendering.engine.turn_regions import Region, RegionFinder
from alignment_core.data.rendering.rendered import Rendered, after_beginning, inside, is_begun, joined, with_one_head
from alignment_core.records import Conversation, Message

Thoughts = Literal["text", "left_out"]
"""What becomes of thoughts under a template without a place for them."""


class ChatTemplate:
    """A chat template with the special tokens of a tokenizer.

    Args:
        tokenizer: a tokenizer from `load_tokenizer`.
        template: text of the template. None for the tokenizer's own, or the built-in default.
        thoughts: what becomes of thoughts if the template has no place for them.

    Attributes:
        template: text of the template. A control that ends turns and is not a token is replaced by the end token.
        warnings: what a person must know about controls of the template that are not tokens.
        program: the template with the form of turns that it reads.
        ending: how the template ends an assistant turn.

    Raises:
        ModelError: the template is too large or cannot render a question and its answer, or no token ends a turn.
    """

    def __init__(self, tokenizer: Any, template: str | None, *, thoughts: Thoughts = "text") -> None:
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, Mapping) else own
        text = template or own or BUILTIN_TEMPLATES[DEFAULT_TEMPLATE]
        check_template_size(len(text), tokenizer.name_or_path)
        self.program, self.warnings = fit_to_tokenizer(text, tokenizer, thoughts)
        self.template: str = self.program.template
        self.ending = find_ending(self.program, tokenizer)
        eos = tokenizer.eos_token_id
        self._text_end: int = self.ending.token_id if eos is None else eos
        self._beginning: str = tokenizer.bos_token if adds_bos(tokenizer) else ""
        self._regions = RegionFinder(self.program, self.ending.tokens)
        self._trim = find_trim(self.program, self.ending)
        self._checked: set[tuple[Any, ...]] = set()

    def prompt(self, messages: Conversation) -> Rendered:
        """Render a prompt, ready for generation.

        Raises:
            Unrenderable: the template refuses the prompt.
        """

        def render(prompt: Conversation, _: Sequence[Conversation]) -> list[Rendered]:
            if not is_begun(prompt):
                return [Rendered(self._head(prompt))]
            *before, begun = prompt
            whole = self._completed(tuple(before), [(joined(begun),)], targets=False)[0]
            return [Rendered(after_beginning(whole, begun).head)]

        return self._render_or_rewrite(messages, (), render)[0]

    def whole(self, prompt: Conversation, answer: Message) -> str:
        """Render a conversation and its last answer, including any text that the template adds at the end.

        Raises:
            Unrenderable: the template refuses the conversation.
        """

        def render(prompt: Conversation, completions: Sequence[Conversation]) -> list[Rendered]:
            if is_begun(prompt):
                prompt, completions = prompt[:-1], [(joined(prompt[-1], completions[0][0]),)]
            text = self.program.text((*prompt, *completions[0]))
            check_no_turn_is_missing(prompt, text)
            return [Rendered(text)]

        return self._render_or_rewrite(prompt, ((answer,),), render)[0].head

    def completions(
        self, prompt: Conversation, completions: Sequence[Conversation], *, targets: bool = False
    ) -> list[Rendered]:
        """Render a prompt with each of its completions. There must be at least one.

        Args:
            prompt: turns before the completions.
            completions: the turns to learn. Each completion starts and ends with an assistant turn.
            targets: whether to add the spans of the prompt's assistant turns to the first result.

        Raises:
            Unrenderable: the template refuses the conversation, or a completion has nothing to learn.
        """

        def render(prompt: Conversation, completions: Sequence[Conversation]) -> list[Rendered]:
            if not is_begun(prompt):
                return self._completed(prompt, completions, targets=targets)
            *before, begun = prompt
            whole = [(joined(begun, completion[0]), *completion[1:]) for completion in completions]
            results = self._completed(tuple(before), whole, targets=targets)
            return [after_beginning(result, begun) for result in results]

        return self._render_or_rewrite(prompt, completions, render)

    def text(self, text: str) -> Rendered:
        """Return a text without a conversation: no turn has a header, and the token that ends a text is at its end."""
        return Rendered(self._beginning, text, end_id=self._text_end)

    def homeless_thoughts(self, messages: Sequence[Message]) -> Counter[str]:
        """Count the thoughts for which the template has no place, by what becomes of them."""
        places: dict[str, str] = {"text": "as_text", "left_out": "left_out"}
        place = places.get(self.program.form.thoughts)
        count = sum(has_thought(message) for message in messages) if place else 0
        return Counter({place: count}) if place and count else Counter()

    # --- rendering -------------------------------------------------------------------------------------------------

    def _render_or_rewrite(
        self,
        prompt: Conversation,
        completions: Sequence[Conversation],
        render: Callable[[Conversation, Sequence[Conversation]], list[Rendered]],
    ) -> list[Rendered]:
        """Render the conversation or, if the template refuses it, the same text in user and assistant turns only."""
        try:
            return render(prompt, completions)
        except TemplateRefusal:
            plain = (
                as_user_and_assistant_turns(prompt),
                [as_user_and_assistant_turns(completion) for completion in completions],
            )
        try:
            return [replace(result, rewritten=True) for result in render(*plain)]
        except TemplateRefusal as refusal:
            raise Unrenderable("template_refuses", f"the chat template refuses the conversation: {refusal}") from None

    def _head(self, prompt: Conversation) -> str:
        head = self.program.text(prompt, generation=True)
        check_no_turn_is_missing(prompt, head)
        shape = tuple((turn["role"], len(turn.get("tool_calls") or ()), "tools" in turn) for turn in prompt)
        if shape not in self._checked:  # a text can be in another turn's: look exactly, once for each shape
            try:
                check_shown(prompt, self.program.layout(prompt, generation=True, text=head))
            except Unmarkable:
                pass
            else:
                self._checked.add(shape)
        return head

    def _completed(self, prompt: Conversation, completions: Sequence[Conversation], *, targets: bool) -> list[Rendered]:
        layout = self._layout_of_head(prompt) if targets else None
        head = self._head(prompt) if layout is None else layout.text
        results = [self._completion(prompt, head, completion) for completion in completions]
        if len({result.head for result in results}) > 1:  # the sides of a pair must differ only in what they say
            results = [self._completion(prompt, head, completion, as_history=True) for completion in completions]
        results = with_one_head(results)
        if targets:
            results[0] = self._with_head_targets(prompt, head, layout, results[0])
        return results

    def _completion(
        self, prompt: Conversation, head: str, completion: Conversation, *, as_history: bool = False
    ) -> Rendered:
        """Render one completion.

        Args:
            prompt: turns before the completion.
            head: the prompt as generation sees it.
            completion: the turns to learn.
            as_history: start an answer where the template writes finished ones, also if generation starts later.
        """
        ending = self.ending
        if not as_history and self._trim is not None and is_plain_answer(prompt, completion):
            tail = ending.lead + self._trim(completion[0]["content"]) + (ending.text or "")
            return Rendered(head, tail, end_id=None if ending.text is not None else ending.token_id)
        messages = (*prompt, *completion)
        text = self.program.text(messages)
        if not as_history and len(completion) == 1 and text.startswith(head):
            size = self._size_of_answer(text[len(head) :], completion[0])
            if size:
                end_id = self.ending.token_id if self.ending.token is None else None
                return Rendered(head, text[len(head) : len(head) + size], end_id=end_id)
        try:
            layout = self.program.layout(messages, text=text)
        except Unmarkable:
            raise Unrenderable("unknown_targets", "the template's text does not tell whose words it holds") from None
        check_shown(messages, layout)
        regions, missing = self._regions.find(layout, messages)
        if len(completion) == 1:
            return self._single(prompt, head, completion[0], layout, regions.get(len(prompt)), as_history)
        first = regions.get(len(prompt))
        if first is None or first.missing not in ("", "weight"):
            # The answer as the last one, which a template writes in full. The turns after it cannot be compared then.
            later = sum(turn["role"] == "assistant" for turn in completion[1:])
            alone = self._completion(prompt, head, completion[:1])
            return replace(alone, left_out=alone.left_out + Counter({"turn_after_a_dropped_thought": later}))
        return self._several(prompt, head, layout, regions, missing)

    def _size_of_answer(self, rest: str, answer: Message) -> int:
        """Return the length of the answer in what follows its prompt, or 0 if it takes marks to find its end.

        All that follows a prompt is the answer's, and no text of it can be an end token.
        """
        stop, content = self.ending.token, (answer.get("content") or "").strip()
        if answer.get("tool_calls") or answer.get("weight") == 0 or not content:
            return 0
        if stop is None:
            return rest.find(content) + len(content) if rest.count(content) == 1 and not has_thought(answer) else 0
        size = rest.find(stop) + len(stop)
        texts = [content, *([answer[THOUGHT].strip()] if has_thought(answer) else [])]
        return size if stop in rest and all(text in rest[:size] for text in texts) else 0

    def _single(
        self,
        prompt: Conversation,
        head: str,
        answer: Message,
        layout: Layout,
        region: Region | None,
        as_history: bool,
    ) -> Rendered:
        """Return an answer of one turn, after the prompt that generation sees."""
        if region is None or region.missing == "turn_without_its_text":
            raise TemplateRefusal("it leaves out an answer")
        text, start = layout.text, region.start
        before, thought = "", answer[THOUGHT] if region.missing == "turn_without_its_thought" else ""
        if as_history and not thought:
            head = text[:start]
        elif text.startswith(head):
            start = len(head)
        else:
            # Generation may start with more than the template writes before a finished answer.
            header = self._regions.header(prompt)
            more = header[region.start - region.before :]
            if more.strip() == OPEN.strip():  # in a thought
                before, thought = thought + CLOSE, ""
            elif more.strip():
                head = head.removesuffix(more)
        if thought:
            before = OPEN + thought + CLOSE
        tail = text[start : region.end]
        return Rendered(head, before + tail.lstrip("\n") if before else tail, end_id=self._end_id(region))

    def _several(
        self, prompt: Conversation, head: str, layout: Layout, regions: dict[int, Region], missing: Counter[str]
    ) -> Rendered:
        """Return a completion of several turns, of which the assistant's are targets."""
        first, last = regions[len(prompt)], regions[max(regions)]
        start = len(head) if layout.text.startswith(head) else first.start
        left_out = Counter(missing)
        spans: list[Span] = []
        for region in regions.values():
            if region.turn < len(prompt):
                continue
            if region.missing:
                left_out[region.missing] += region.missing != "weight"
            else:
                spans += region.spans
        if not spans:
            raise Unrenderable("nothing_to_learn", f"no turn can be learned ({', '.join(left_out) or 'weight'})")
        return Rendered(
            layout.text[:start],
            layout.text[start : last.end],
            tail_targets=inside(spans, start, last.end),
            end_id=None if last.missing else self._end_id(last),
            left_out=+left_out,
        )

    def _end_id(self, region: Region) -> int | None:
        return None if region.stopped else self.ending.token_id

    def _layout_of_head(self, prompt: Conversation) -> Layout | None:
        """Return where the strings of a prompt are before the header of its answer. None if that cannot be known."""
        try:
            layout = self.program.layout(prompt, generation=True)
        except Unmarkable:
            return None
        check_shown(prompt, layout)
        return layout

    def _with_head_targets(self, prompt: Conversation, head: str, layout: Layout | None, result: Rendered) -> Rendered:
        """Add the spans of the prompt's assistant turns to a result."""
        turns = sum(turn["role"] == "assistant" for turn in prompt)
        if not turns:
            return replace(result, head_targets=())
        if layout is None or not head.startswith(result.head):
            return replace(result, head_targets=(), left_out=result.left_out + Counter({"turn_not_found": turns}))
        regions, missing = self._regions.find(layout, prompt)
        learned = [region for region in regions.values() if not region.missing]
        missing.update(region.missing for region in regions.values() if region.missing not in ("", "weight"))
        spans = [span for region in learned for span in region.spans if span[1] <= len(result.head)]
        return replace(result, head_targets=tuple(spans), left_out=result.left_out + missing)
