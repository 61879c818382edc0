"""Conversations of many shapes, and the properties that their tokens must have under any chat template.

Every turn contains a word that occurs nowhere else, so that the targets tell whose words they are:
`u` of a user, `s` of the system, `d` of a tool's definition, `t` of a tool's result, and of the assistant `a` for an
answer, `h` for a thought and `c` for an argument of a call. `bad` marks the turns of a rejected side.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from alignment_core.data.rendering.renderer import Renderer, Request, Unrenderable
from alignment_core.plugin_api import TokenSequence
from alignment_core.records import Conversation, Message

SPECIAL = re.compile(
    r"<\|[^<>|\s]+\|?>|<[a-z_]+\|>|<｜[^<>]+｜>|</?s>|<(?:bos|eos)>|<(?:start|end)_of_turn>"
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT|ARGS|CALL_ID|TOOL_CONTENT)\]"
)
"""Matches what is a special token in the tokenizers of the templates' models."""
FOREIGN = re.compile(r"\b[ustd]\d(?:bad)?word\b")
OWN = re.compile(r"\b[ahc]\d(?:bad)?word\b")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks up d0word",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "where"}},
                "required": ["place"],
            },
        },
    }
]


@dataclass(frozen=True)
class Shape:
    """A prompt and one completion (a demonstration) or two (a pair)."""

    prompt: Conversation
    completions: tuple[Conversation, ...]

    @property
    def words(self) -> set[str]:
        """Return the assistant's words that may be learned, by the turns of the demonstration or of the pair."""
        return set()


def user(number: int) -> Message:
    return {"role": "user", "content": f"Tell me u{number}word now?"}


def answer(number: int, thought: bool = False, bad: str = "") -> Message:
    extra = {"reasoning_content": f"I recall h{number}{bad}word first."} if thought else {}
    return {"role": "assistant", "content": f"It is a{number}{bad}word indeed.", **extra}


def call(number: int, *, times: int = 1, content: str = "", thought: bool = False) -> Message:
    calls = [
        {
            "id": f"call_0000{number}{index}",
            "type": "function",
            "function": {"name": "look", "arguments": {"place": f"c{number + index}word"}},
        }
        for index in range(times)
    ]
    extra = {"reasoning_content": f"I recall h{number}word first."} if thought else {}
    return {"role": "assistant", "content": content, "tool_calls": calls, **extra}


def result(number: int, of: int, index: int = 0) -> Message:
    return {"role": "tool", "content": f"found t{number}word", "tool_call_id": f"call_0000{of}{index}", "name": "look"}


def with_tools(messages: tuple[Message, ...]) -> Conversation:
    return ({**messages[0], "tools": TOOLS}, *messages[1:])


SYSTEM: Message = {"role": "system", "content": "Be s0word always."}
PLAIN = (user(0), answer(0))
TWICE = (user(0), answer(0), user(1), answer(1))
THRICE = (*TWICE, user(2), answer(2))
THOUGHTS = (user(0), answer(0, True), user(1), answer(1, True))
CALLED = with_tools((user(0), call(0), result(0, 0), answer(1)))


def shown(messages: Conversation) -> Shape:
    return Shape(messages[:-1], (messages[-1:],))


def pair(prompt: Conversation, chosen: Conversation, rejected: Conversation) -> Shape:
    return Shape(prompt, (chosen, rejected))


SHAPES = {
    "plain": shown(PLAIN),
    "two turns": shown(TWICE),
    "three turns": shown(THRICE),
    "system": shown((SYSTEM, *TWICE)),
    "tools": shown(CALLED),
    "tools and a system prompt": shown(with_tools((SYSTEM, user(0), call(0), result(0, 0), answer(1)))),
    "parallel tools": shown(
        with_tools((user(0), call(0, times=2), result(0, 0), result(1, 0, 1), answer(2)))
    ),
    "a call with text": shown(with_tools((user(0), call(0, content="Let a0word see."), result(0, 0), answer(1)))),
    "a call last": shown(with_tools((user(0), call(0)))),
    "tools twice": shown(
        with_tools((user(0), call(0), result(0, 0), answer(1), user(1), call(2), result(1, 2), answer(3)))
    ),
    "a thought": shown((user(0), answer(0, True))),
    "thoughts": shown(THOUGHTS),
    "a thought and a call": shown(
        with_tools((user(0), call(0, thought=True), result(0, 0), answer(1, True)))
    ),
    "the first answer without weight": shown((user(0), {**answer(0), "weight": 0}, user(1), answer(1))),
    "parting at the last answer": pair(TWICE[:-1], (answer(1),), (answer(1, bad="bad"),)),
    "parting at the first answer": pair(
        PLAIN[:1], (answer(0), user(1), answer(1)), (answer(0, bad="bad"), user(1), answer(1, bad="bad"))
    ),
    "parting at a middle answer": pair(
        THRICE[:3], (answer(1), user(2), answer(2)), (answer(1, bad="bad"), user(2), answer(2))
    ),
    "parting in length": pair(PLAIN[:1], (answer(0), user(1), answer(1)), (answer(0, bad="bad"),)),
    "parting with thoughts": pair(
        THOUGHTS[:1],
        (answer(0, True), user(1), answer(1, True)),
        (answer(0, True, "bad"), user(1), answer(1, True, "bad")),
    ),
    "parting thoughts of one answer": pair(PLAIN[:1], (answer(0, True),), (answer(0, True, "bad"),)),
    "parting at a call": pair(
        with_tools((user(0),)), (call(0), result(0, 0), answer(1)), (answer(0, bad="bad"),)
    ),
}  # fmt: skip


def tokenizer_of(template: str) -> Any:
    """Return a tokenizer of bytes that has the special tokens which the template writes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys(["<pad>", "<s>", "</s>", *SPECIAL.findall(template)]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=special[3:],
        clean_up_tokenization_spaces=False,
    )


def templates_in(folder: Path) -> dict[str, str]:
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.jinja"))}


def runs(renderer: Renderer, sequence: TokenSequence) -> list[tuple[bool, str]]:
    """Return the text of a sequence as runs of targets and of context."""
    mask = [False] * sequence.start + list(sequence.mask or [True] * (len(sequence.ids) - sequence.start))
    pieces = groupby(zip(sequence.ids, mask, strict=True), key=lambda item: item[1])
    return [(target, renderer.tokenizer.decode([token for token, _ in run])) for target, run in pieces]


def violations(renderer: Renderer, shape: Shape) -> tuple[list[str], str]:
    """Return what is wrong with the tokens of a shape, and the reason if the renderer refuses it."""
    demonstration = len(shape.completions) == 1
    try:
        tokens = renderer.tokens(Request(shape.prompt, shape.completions, demonstration=demonstration))
    except Unrenderable as refusal:
        return [], refusal.reason
    found: list[str] = []
    heads = {sequence.prompt for sequence in tokens.completions}
    if len(heads) > 1:
        found.append("the sides have different prompts")
    left_out = sum(getattr(tokens, "left_out", {}).values())
    silent = 0
    for place, completion in enumerate(shape.completions):
        sequence = tokens.demonstration if demonstration else tokens.completions[place]
        assert sequence is not None
        turns = (*shape.prompt, *completion) if demonstration else completion
        problems, missing = _of_sequence(renderer, sequence, turns, shape.prompt, left_out)
        found += problems
        silent += missing
        if not demonstration:
            wanted = _own_words(completion[0])
            learned = " ".join(text for target, text in runs(renderer, sequence) if target)
            if not wanted <= set(OWN.findall(learned)) and not left_out:
                found.append("the turn that differs is not compared")
    if silent > left_out:
        found.append(f"{silent} turns are no targets, {left_out} are counted")
    return found, ""


def _of_sequence(
    renderer: Renderer, sequence: TokenSequence, turns: Conversation, prompt: Conversation, left_out: int
) -> tuple[list[str], int]:
    pieces = runs(renderer, sequence)
    text = "".join(piece for _, piece in pieces)
    learned = " ".join(piece for target, piece in pieces if target)
    found = [f"{word} is a target" for word in FOREIGN.findall(learned)]
    if sequence.ids[-1] not in renderer.stop_ids:
        found.append("the sequence does not end at a stop token")
    if text.count("<think>") != text.count("</think>") and "h0" in str(turns):
        found.append("a thought is open, or closed twice")
    if prompt and "tools" in prompt[0] and "d0word" not in text:
        found.append("the tools are missing")
    missing = 0
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        wanted, got = _own_words(turn), set(OWN.findall(learned))
        if turn.get("weight") == 0:
            found += [f"{word} is a target" for word in wanted & got]
        elif not wanted & got:
            missing += 1
            if number == len(turns) - 1 and not left_out:
                found.append("the last answer is no target")
        elif not wanted <= got:
            found.append(f"{', '.join(sorted(wanted - got))} missing in a learned turn")
    return found, missing


def _own_words(turn: Message) -> set[str]:
    return set(OWN.findall(str(turn)))
