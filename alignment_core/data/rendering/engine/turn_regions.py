"""Find the part of a rendered text that the assistant writes in each of its turns.

The part goes from the place where generation would start to the token that ends the turn. Both are looked for only in
the text that the template itself writes before and after the turn's own strings, so that no word of another turn can be
in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from alignment_core.data.rendering.encoder import Span
from alignment_core.data.rendering.engine.marks import Block, Layout
from alignment_core.data.rendering.engine.message_forms import has_thought
from alignment_core.data.rendering.engine.program import Program, Unmarkable
from alignment_core.data.rendering.engine.template_checks import TemplateRefusal
from alignment_core.records import Conversation, Message
from alignment_core.texts import common_start

KNOWN = 4096
"""Number of texts before an answer whose headers are remembered."""


@dataclass(frozen=True, slots=True)
class Region:
    """The assistant's part of a text in one turn.

    Attributes:
        turn: index of the turn.
        before: where the last string of the turns before it ends.
        start: where generation would start.
        end: end of the turn, its end token included.
        stopped: whether a token that stops generation is at the end.
        missing: why the turn must not be learned. Empty if it may.
        spans: what is learned of it.
    """

    turn: int
    before: int
    start: int
    end: int
    stopped: bool
    missing: str
    spans: tuple[Span, ...]


class RegionFinder:
    """Finds the regions of a template.

    Args:
        program: the template.
        ends: texts of the tokens that end an assistant turn.
    """

    def __init__(self, program: Program, ends: Sequence[str]) -> None:
        self._program = program
        self._ends = tuple(ends)
        self._headers: dict[tuple[str, str], int] = {}

    def find(self, layout: Layout, messages: Conversation) -> tuple[dict[int, Region], Counter[str]]:
        """Return the regions of the assistant's turns, and the reasons why turns have none, with their numbers."""
        blocks: dict[int, list[Block]] = {}
        for block in layout.blocks():
            blocks.setdefault(block.turn, []).append(block)
        parts = layout.parts()
        regions: dict[int, Region] = {}
        missing: Counter[str] = Counter()
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            found = blocks.get(index, [])
            if len(found) != 1:
                if message.get("weight") != 0:
                    missing["turn_interrupted" if found else "turn_not_rendered"] += 1
                continue
            regions[index] = self._region(layout, messages, found[0], self._reason(message, index, parts))
        return regions, missing

    def _region(self, layout: Layout, messages: Conversation, block: Block, reason: str) -> Region:
        text = layout.text
        start = block.before + self._header(text[block.before : block.start], messages[: block.turn])
        end, stop = self._end(text, messages, block)
        spans: tuple[Span, ...] = ((start, end),)
        if layout.generated is not None:
            inside = [(max(a, start), min(b, stop)) for a, b in layout.generated if b > start and a < stop]
            spans = (*inside, *([(stop, end)] if end > stop else []))
        return Region(block.turn, block.before, start, end, end > stop, reason, spans)

    def _header(self, before: str, earlier: Conversation) -> int:
        """Return where generation would start in the text between the last string before a turn and its first one."""
        key = (before, earlier[-1]["role"] if earlier else "")
        if key not in self._headers:
            if len(self._headers) == KNOWN:
                self._headers.clear()
            self._headers[key] = common_start(before, self.header(earlier, default=before))
        return self._headers[key]

    def header(self, earlier: Conversation, default: str = "") -> str:
        """Return what the template writes after the last string of `earlier` if it is asked for an answer."""
        try:
            return self._program.layout(earlier, generation=True).rest()
        except (TemplateRefusal, Unmarkable):
            return default

    def _end(self, text: str, messages: Conversation, block: Block) -> tuple[int, int]:
        """Return the end of a turn, and where its end token starts. They are the same if it has none."""
        after = text[block.end : block.after]
        stops = sorted((after.index(stop), stop) for stop in self._ends if stop in after)
        if stops:
            place, stop = stops[0]
            return block.end + place + len(stop), block.end + place
        end = block.end
        if messages[block.turn].get("tool_calls"):  # brackets after the last string
            try:
                alone = self._program.layout(messages[: block.turn + 1]).rest()
            except (TemplateRefusal, Unmarkable):
                return end, end
            for stop in self._ends:
                alone = alone.partition(stop)[0]
            end += common_start(after, alone.rstrip())
        return end, end

    def _reason(self, message: Message, index: int, parts: dict[tuple[int, str], int]) -> str:
        if message.get("weight") == 0:
            return "weight"
        if has_thought(message) and self._program.form.thoughts != "left_out" and (index, "thought") not in parts:
            return "turn_without_its_thought"
        if (message.get("content") or "").strip() and (index, "content") not in parts:
            return "turn_without_its_text"
        return ""
