"""Formats that compare completions of one prompt: K-way rankings, SHP, HALOs, PandaLM, OpenAI."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats.context import asked
from alignment_core.data.sources.formats.instructions import alpaca_prompt
from alignment_core.data.sources.parsing import shapes
from alignment_core.data.sources.parsing.judgments import (
    labelled_response,
    ordered_pairs,
    preference_pair,
)
from alignment_core.data.sources.readers import RawRow
from alignment_core.records import Conversation, LabelledResponse
from alignment_core.records.columns import inside
from alignment_core.records.format import BadRow, Dropped, Fields, Outcome, Reading, RecordFormat

SHP_RATIO = 2.0
"""Minimum ratio between the votes of two comments. SHP's authors regard preferences below it as noise."""
SHP_PAIRS = 5
"""Maximum pairs per post, as the authors recommend, to prevent one post from dominating."""
ANNOTATOR = re.compile(r"annotator\d+")
"""Matches the columns with PandaLM's votes."""


class KWay(RecordFormat):
    """A prompt with completions that carry a rank (lower is better) or a score (higher is better)."""

    name: ClassVar[str] = "k_way"
    shape: ClassVar[str] = (
        "{prompt, completions|answers: [{completion, rank|score}]} or {prompt, responses, ranks|scores}"
    )
    unused: ClassVar[frozenset[str]] = frozenset(
        # The prompt of UltraFeedback's models, which its raters did not see.
        {"rater_kind", "comment", "correct_answers", "incorrect_answers", "completions[].custom_system_prompt"}
        # Who wrote a completion is no matter: one that a rater wrote has its rank.
        | {"completions[].edited"}
    )

    PROMPTS: ClassVar = ("prompt", "context", "instruction", "question", "query")
    LISTS: ClassVar = ("completions", "answers", "responses")
    TEXTS: ClassVar = ("completion", "answer", "response", "text", "output", "content")
    SCORES: ClassVar = ("score", "rating", "overall_score", "reward")

    def matches(self, row: Fields) -> bool:
        if not any(name in row for name in self.PROMPTS):
            return False
        items = next((row[name] for name in self.LISTS if isinstance(row.get(name), list)), None)
        if not items:
            return False
        if isinstance(items[0], Mapping):
            return bool(self._judgment(items[0]))
        return any(isinstance(row.get(name), list) for name in ("ranks", "rank", "scores", "ratings", "rating"))

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        prompt, scored, judged = self.judged(row)
        yield from ordered_pairs(prompt, judged, origin, source, margins=scored)
        if scored and source.threshold is not None:
            for completion, score in judged:
                yield labelled_response(prompt, completion, score, origin, source)

    def judged(self, row: Fields) -> tuple[Conversation, bool, list[tuple[Conversation, float]]]:
        """Return the prompt, whether the numbers are scores, and each completion with its number (ranks are negated).

        Raises:
            BadRow: the row does not rank at least two completions.
        """
        prompt = asked(row, next(name for name in self.PROMPTS if name in row))
        scored, judged = self._judged(row)
        if len(judged) < 2:
            raise BadRow("one_completion", "a ranking needs at least two completions")
        return prompt, scored, judged

    def _judged(self, row: Fields) -> tuple[bool, list[tuple[Conversation, float]]]:
        column = next(name for name in self.LISTS if isinstance(row.get(name), list))
        items = row[column]
        if isinstance(items[0], Mapping):
            return self._judged_items(inside(row, column))
        names = [name for name in ("scores", "ratings", "rating") if isinstance(row.get(name), list)]
        values = row[names[0]] if names else next(row[n] for n in ("ranks", "rank") if isinstance(row.get(n), list))
        if len(values) != len(items):
            raise BadRow(
                "bad_ranking", f"the number of judgments is {len(values)}, expected {len(items)} (one per completion)"
            )
        completions = [shapes.completion(item, f"responses[{index}]") for index, item in enumerate(items)]
        numbers = [_number(value, f"judgment {index}") for index, value in enumerate(values)]
        sign = 1 if names else -1
        return bool(names), [(text, sign * number) for text, number in zip(completions, numbers, strict=True)]

    def _judged_items(self, items: list[Any]) -> tuple[bool, list[tuple[Conversation, float]]]:
        judged, scored = [], True
        for index, item in enumerate(items):
            name = self._judgment(item) if isinstance(item, Mapping) else None
            if name is None:
                raise BadRow("bad_ranking", f"completion {index} has neither a rank nor a score")
            value = next((item[text] for text in self.TEXTS if text in item), None)
            scored = scored and name != "rank"
            number = _number(item[name], f"{name} of completion {index}")
            judged.append((shapes.completion(value, f"completion {index}"), -number if name == "rank" else number))
        return scored, judged

    def _judgment(self, item: Fields) -> str | None:
        return next((name for name in ("rank", *self.SCORES) if name in item), None)


class SHP(RecordFormat):
    """Stanford Human Preferences: two comments on a post. The comment with more votes is preferred."""

    name: ClassVar[str] = "shp"
    shape: ClassVar[str] = "{history, human_ref_A, human_ref_B, score_A, score_B, labels}"
    unused: ClassVar[frozenset[str]] = frozenset({"upvote_ratio", "seconds_difference", "score_ratio"})

    def matches(self, row: Fields) -> bool:
        return {"history", "human_ref_A", "human_ref_B", "labels"} <= set(row)

    def records(self, rows: Iterable[RawRow], source: SourceConfig) -> Iterator[Outcome]:
        limit = SHP_PAIRS if source.max_pairs is None else source.max_pairs
        pairs: Counter[Any] = Counter()
        for row in rows:
            for outcome in self.outcomes(row, source):
                if isinstance(outcome, Reading):
                    post = hash(str(row.value["history"]))
                    pairs[post] += 1
                    yield outcome if pairs[post] <= limit else Dropped("more_than_max_pairs", row.origin)
                else:
                    yield outcome

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        prompt = shapes.prompt(row["history"], "history")
        first, second = (shapes.completion(row[f"human_ref_{side}"], f"human_ref_{side}") for side in "AB")
        prefers_first = shapes.label(row["labels"], "labels")
        if prefers_first is None:
            yield Dropped("no_label", origin)
            return
        scores = [_number(row.get(f"score_{side}"), f"score_{side}") for side in "AB"]
        low, high = sorted(scores)
        needed = SHP_RATIO if source.threshold is None else source.threshold
        if high < needed * max(low, 1.0):
            yield Dropped("below_score_ratio", origin)
            return
        yield Reading(preference_pair(prompt, *((first, second) if prefers_first else (second, first)), None, origin))


class Halos(RecordFormat):
    """Feedback files of the HALOs library: one output with a label, or two outputs and a label for the better one."""

    name: ClassVar[str] = "halos"
    shape: ClassVar[str] = "{prompt, output, label, type} or {prompt, output_A, output_B, label, type}"

    def matches(self, row: Fields) -> bool:
        return row.get("type") in ("binary_feedback", "pairwise_feedback") and "prompt" in row

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        prompt = shapes.prompt(row["prompt"])
        label = shapes.label(row.get("label"))
        if label is None:
            yield Dropped("no_label", origin)
        elif row["type"] == "binary_feedback":
            response = shapes.completion(row.get("output"), "output")
            yield Reading(LabelledResponse(prompt, response, label, 1.0, origin))
        else:
            first, second = (shapes.completion(row.get(f"output_{side}"), f"output_{side}") for side in "AB")
            yield Reading(preference_pair(prompt, *((first, second) if label else (second, first)), None, origin))


class PandaLM(RecordFormat):
    """Two responses and a vote of each annotator: 1, 2 or 0 (tie). The majority decides."""

    name: ClassVar[str] = "pandalm"
    shape: ClassVar[str] = "{instruction, input, response1, response2, annotator1, …}"
    unused: ClassVar[frozenset[str]] = frozenset({"cmp_key", "motivation_app"})

    def matches(self, row: Fields) -> bool:
        return {"instruction", "response1", "response2", "annotator1"} <= set(row)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        prompt = alpaca_prompt(row)
        first, second = (shapes.completion(row[name], name) for name in ("response1", "response2"))
        votes = Counter(_vote(row[name], name) for name in sorted(row) if ANNOTATOR.fullmatch(str(name)))
        (verdict, count), *others = votes.most_common()
        if verdict == 0 or (others and others[0][1] == count):
            yield Dropped("tie", origin)
            return
        yield Reading(preference_pair(prompt, *((first, second) if verdict == 1 else (second, first)), None, origin))


class OpenAIPreference(RecordFormat):
    """The preference format that OpenAI's fine-tuning interface imports and exports."""

    name: ClassVar[str] = "openai_preference"
    shape: ClassVar[str] = "{input: {messages, tools?}, preferred_output, non_preferred_output}"

    def matches(self, row: Fields) -> bool:
        return isinstance(row.get("input"), Mapping) and {"preferred_output", "non_preferred_output"} <= set(row)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        prompt = shapes.conversation(row["input"].get("messages"), "input.messages")
        sides = [shapes.completion(row[name], name) for name in ("preferred_output", "non_preferred_output")]
        yield Reading(preference_pair(prompt, sides[0], sides[1], None, origin))


def _number(value: Any, field: str) -> float:
    number = shapes.number(value, field)
    if number is None:
        raise BadRow("bad_number", f"{field} is missing")
    return number


def _vote(value: Any, field: str) -> int:
    if value in (0, 1, 2, "0", "1", "2"):
        return int(value)
    raise BadRow("rating_out_of_range", f"{field} is {value!r}, expected 0 (tie), 1 or 2")
