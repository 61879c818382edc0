"""The chat template at work: where a prompt ends, where an answer does, and which characters are the assistant's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignment_core.data.chat_templates import BUILTIN_TEMPLATES, DEFAULT_TEMPLATE
from alignment_core.data.encoding import Span, Unrenderable, special_tokens
from alignment_core.data.turns import Refusal, check_all_there, is_plain, rewritten
from alignment_core.errors import ModelError
from alignment_core.records import Conversation, Message

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
FIXED_DATE = "26 Jul 2024"
"""Llama's templates print today's date unless given one; a cached result must not depend on the day."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt and its completion as text.

    Attributes:
        head: the prompt, exactly as generation sees it.
        tail: the completion, up to and including the text of the stop token.
        head_targets: characters of `head` that are assistant turns; None if nobody asked.
        tail_targets: characters of `tail` that are the assistant's; None where all are.
        rewritten: the template refused the conversation as it was, and took its words in user and assistant turns.
    """

    head: str
    tail: str = ""
    head_targets: tuple[Span, ...] | None = None
    tail_targets: tuple[Span, ...] | None = None
    rewritten: bool = False


class Chat:
    """One chat template with one tokenizer's special tokens.

    Attributes:
        template: its text.
        stop_text: what ends an assistant turn in the text; None where the template writes nothing that does.
        stop_id: the token that ends an assistant turn.
        lead: what the template puts between the assistant's header and the answer (a space, an empty thought).

    Raises:
        ModelError: the template does not render a question and its answer, or nothing ends a turn.
    """

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, Mapping) else own
        self.template: str = template or own or BUILTIN_TEMPLATES[DEFAULT_TEMPLATE]
        self._takes_tools = re.search(r"\btools\b", self.template) is not None
        self._marked = GENERATION_MARK.search(self.template) is not None
        self._variables = {"bos_token": "", "eos_token": "", **tokenizer.special_tokens_map, "date_string": FIXED_DATE}
        if self.template in BUILTIN_TEMPLATES.values() and not _adds_bos(tokenizer):
            self._variables["bos_token"] = ""
        self.stop_text, self.stop_id, self.lead = self._find_stop(tokenizer)
        self._trim = self._find_trim()

    def prompt(self, messages: Conversation) -> Rendered:
        """A prompt that waits for its answer.

        Raises:
            Unrenderable: the template refuses it.
        """
        return self._willing(messages, (), lambda prompt, _: [Rendered(self._head(prompt))])[0]

    def whole(self, prompt: Conversation, answer: Message) -> str:
        """A conversation and its last answer as the template writes them, to the template's very end.

        Raises:
            Unrenderable: the template refuses it.
        """

        def render(prompt: Conversation, completions: Sequence[Conversation]) -> list[Rendered]:
            text = self._render((*prompt, *completions[0]))[0]
            check_all_there(prompt, text)
            return [Rendered(text)]

        return self._willing(prompt, ((answer,),), render)[0].head

    def completions(
        self, prompt: Conversation, completions: Sequence[Conversation], *, targets: bool = False
    ) -> list[Rendered]:
        """A prompt with each of its completions, of which there is one at least.

        Args:
            prompt: the turns before.
            completions: the turns to learn, each starting and ending with one of the assistant's.
            targets: tell where the assistant's turns in the prompt are, with the first completion.

        Raises:
            Unrenderable: the template refuses the conversation, or does not end a completion.
        """

        def render(prompt: Conversation, completions: Sequence[Conversation]) -> list[Rendered]:
            head, marks = self._render(prompt, generation=True, spans=self._marked and targets)
            check_all_there(prompt, head)
            inside = None
            if targets:
                inside = tuple(self._turns(head, prompt) if marks is None else marks)
            results = [self._completion(prompt, head, completion) for completion in completions]
            return [replace(results[0], head_targets=inside), *results[1:]]

        return self._willing(prompt, completions, render)

    # --- as the template likes it ----------------------------------------------------------------------------------

    def _willing(
        self,
        prompt: Conversation,
        completions: Sequence[Conversation],
        render: Callable[[Conversation, Sequence[Conversation]], list[Rendered]],
    ) -> list[Rendered]:
        """`render` of the conversation, or of the same words in the turns that every template takes."""
        try:
            return render(prompt, completions)
        except Refusal:
            plain = rewritten(prompt), [rewritten(completion) for completion in completions]
        try:
            return [replace(result, rewritten=True) for result in render(*plain)]
        except Refusal as refusal:
            raise Unrenderable("template_refuses", f"the chat template refuses the conversation: {refusal}") from None

    def _head(self, prompt: Conversation) -> str:
        head = self._render(prompt, generation=True)[0]
        check_all_there(prompt, head)
        return head

    def _completion(self, prompt: Conversation, head: str, completion: Conversation) -> Rendered:
        if self._trim is not None and is_plain(prompt, completion):
            return Rendered(head, self.lead + self._trim(completion[0]["content"]) + (self.stop_text or ""))
        messages = (*prompt, *completion)
        several = len(completion) > 1
        full, marks = self._render(messages, spans=self._marked and several)
        check_all_there(completion, full)
        # A template may write a past turn otherwise than it asks for one (it drops thoughts, say). The prompt stays
        # the one that generation sees, and the answer starts where the two part.
        start = len(head) if full.startswith(head) else self._parting(full, head, prompt)
        end = self._turn_end(full, self._answer_start(full, messages) if several else start, messages)
        if not several:
            return Rendered(head, full[start:end])
        marks = self._turns(full, messages) if marks is None else marks
        return Rendered(head, full[start:end], tail_targets=_inside(marks, start, end))

    def _answer_start(self, full: str, messages: Conversation) -> int:
        """Where the last turn's answer starts in `full`."""
        head = self._head(messages[:-1])
        return len(head) if full.startswith(head) else self._parting(full, head, messages[:-1])

    def _parting(self, full: str, head: str, prompt: Conversation) -> int:
        plain = self._render(prompt)[0]
        if not full.startswith(plain) or not head.startswith(plain):
            raise Unrenderable("template_rewrites_history", "the chat template changes earlier turns when one is added")
        start = len(plain)
        while start < min(len(full), len(head)) and full[start] == head[start]:
            start += 1
        return start

    def _turns(self, full: str, messages: Conversation) -> list[Span]:
        """The assistant's turns in `full`, found by rendering what comes before each."""
        spans: list[Span] = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                head = self._render(messages[:index], generation=True)[0]
                if full.startswith(head):
                    spans.append((len(head), self._turn_end(full, len(head), messages[: index + 1])))
        return spans

    def _turn_end(self, full: str, start: int, upto: Conversation) -> int:
        """Index in `full` just after the turn that starts at `start`, the last of `upto`, its stop token included."""
        if self.stop_text is not None:
            found = full.find(self.stop_text, start)
            if found < 0:
                raise Unrenderable("no_end_of_turn", "the chat template does not end this turn")
            return found + len(self.stop_text)
        content = (upto[-1].get("content") or "").strip()
        found = full.find(content, start)
        if content and found >= 0:
            return found + len(content)
        text = self._render(upto)[0]
        return len(text.rstrip()) if full.startswith(text) else len(full.rstrip())

    def _render(
        self, messages: Sequence[Message], *, generation: bool = False, spans: bool = False
    ) -> tuple[str, list[Span] | None]:
        from transformers.utils.chat_template_utils import render_jinja_template

        tools = next((message["tools"] for message in messages if message.get("tools")), None)
        if tools and not self._takes_tools:
            raise Refusal("it leaves out the tools")
        try:
            texts, marks = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=spans,
                add_generation_prompt=generation,
                **self._variables,
            )
        except Exception as error:  # a template is a stranger's program: it may fail in any way on any input
            raise Refusal(f"{type(error).__name__}: {error}") from error
        if not spans:
            return texts[0], None
        return texts[0], [self._with_stop(texts[0], span) for span in marks[0]]

    def _with_stop(self, text: str, span: Span) -> Span:
        """Some templates leave the end-of-turn token out of their marks; it must be learnt all the same."""
        stop = self.stop_text
        return (span[0], span[1] + len(stop)) if stop and text.startswith(stop, span[1]) else span

    def _find_stop(self, tokenizer: Any) -> tuple[str | None, int, str]:
        where = str(tokenizer.name_or_path)
        user, sentinel = {"role": "user", "content": "x"}, "Sentinel"
        try:
            head = self._render([user], generation=True)[0]
            full = self._render([user, {"role": "assistant", "content": sentinel}])[0]
        except Refusal as refusal:
            raise ModelError(
                "the chat template does not render a question and its answer", where=where, got=refusal
            ) from None
        before, found, after = full.rpartition(sentinel)
        if not found:
            raise ModelError(
                "the chat template leaves out the assistant's text",
                where=where,
                do="Name another chat template: a file, or a built-in name",
            )
        lead = before[len(head) :] if before.startswith(head) else ""
        ends = sorted((after.index(text), text) for text in special_tokens(tokenizer) if text in after)
        if ends:
            place, text = ends[0]
            return after[: place + len(text)], tokenizer.convert_tokens_to_ids(text), lead
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "nothing ends an assistant turn",
                where=where,
                expected="an end-of-turn token in the chat template, or an `eos_token` in the tokenizer",
            )
        return None, tokenizer.eos_token_id, lead

    def _find_trim(self) -> Callable[[str], str] | None:
        """What the template does to a plain answer before it puts it between header and stop token, if that is all.

        Then such an answer need not be rendered, which is what most of an ingestion's time would go into.
        """
        user, assistant = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
        for trim in (str.strip, _unchanged):
            if all(
                self._is_only(trim, prompt, answer)
                for prompt in ((user,), (user, assistant, user))
                for answer in ("Sentinel", " two words\n\n", "\n\tq: 'r' \"s\" {t} [u] (v) **w** `x`\n\n\\y: é 你好")
            ):
                return trim
        return None

    def _is_only(self, trim: Callable[[str], str], prompt: Conversation, answer: str) -> bool:
        try:
            head = self._render(prompt, generation=True)[0]
            full = self._render((*prompt, {"role": "assistant", "content": answer}))[0]
        except Refusal:
            return False
        return full.startswith(head + self.lead + trim(answer) + (self.stop_text or ""))


def _inside(spans: Sequence[Span], start: int, end: int) -> tuple[Span, ...]:
    """The parts of `spans` between `start` and `end`, counted from `start`."""
    return tuple((max(a, start) - start, min(b, end) - start) for a, b in spans if b > start and a < end)


def _adds_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _unchanged(text: str) -> str:
    return text
