"""The columns of a row that its format does not read: which are harmless, and which may change what the row means."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

UP = frozenset({
    "true", "1", "1.0", "+1", "yes", "y", "up", "thumbs_up", "thumbsup", "like", "liked", "good", "positive",
    "desirable", "👍", "👍🏻", "👍🏼", "👍🏽", "👍🏾", "👍🏿",
})  # fmt: skip
"""Words that mean thumbs up."""
DOWN = frozenset({
    "false", "0", "0.0", "-1", "-1.0", "no", "n", "down", "thumbs_down", "thumbsdown", "dislike", "disliked", "bad",
    "negative", "undesirable", "👎", "👎🏻", "👎🏼", "👎🏽", "👎🏾", "👎🏿",
})  # fmt: skip
"""Words that mean thumbs down."""
_VAGUE = frozenset(("true", "1", "1.0", "yes", "y", "false", "0", "0.0", "no", "n"))
"""Labels that are only recognized in a column whose name says that it holds judgments."""

JUDGEMENT, CONTEXT, ANSWER, TOOLS, MASK, THOUGHT = (
    "a judgment", "a part of the prompt", "another answer", "tools", "a mask", "a thought",
)  # fmt: skip
HARMLESS, OTHER = "harmless", "other"

_BOOKKEEPING = re.compile(
    r"(.+_)?(id|ids|idx|uuid|guid|hash|fingerprint|index|row|ip)"  # ids
    r"|(.+_)?(time|timestamp|tstamp|ts|date|datetime|at|utc)|created|updated|modified"  # times
    r"|(.+_)?(source|sources|origin|dataset|datasets|subset|split|file|filename|path|url|urls|uri|link|links)"
    r"|(.+_)?(license|licence|version)"
    r"|(.+_)?(lang|language|languages|locale)"  # languages
    r"|(.+_)?(model|models|generator|engine)|model_.+"  # model names
    r"|(.+_)?(user|username|author|annotator|rater|worker|judge|labeler|country|region)|state|header|anony"  # people
    r"|(num|n|len)_.+|(.+_)?(count|counts|length|len|tokens|turns)|turn|turn_identifier"  # sizes
    r"|(.+_)?moderation|toxic|redacted|toxic_chat_tag"
    r"|metadata|meta|usage|finish_reason|stop_reason|latency|cost|seed|temperature|top_p|index_level_\d+|unnamed_\d+"
)
_SUBJECTS = re.compile(r"(.+_)?(category|categories|topic|topics|task|tasks|tag|tags|type|types)|domain|title")
_VERDICT = re.compile("better|safer|best|worse|worst|winner|preferred|selected")
_JUDGEMENT = re.compile(
    "labels?|thumbs?|thumbsup|ratings?|rated|scores?|rewards?|feedback|(up|down)?votes?|(up|down)voted|(dis)?likes?"
    "|(dis)?liked|reactions?|emojis?|verdict|judge?ments?|preferences?|ranks?|ranking|grades?|stars|(un)?helpful"
    "|helpfulness|harmless|harmlessness|harmful|(in)?correct|correctness|coherence|complexity|verbosity|honesty"
    "|truthfulness|accepted|approved|quality|annotations?|annotator|agreement|(un)?desirable|critique|corrections?"
    "|corrected|flag|flagged|good|bad|ok|satisfied|satisfaction|(un)?safe|evaluation|review"
)
_ANSWER = re.compile("answers?|responses?|completions?|outputs?|reply|replies|generations?|chosen|rejected|candidates?")
"""Words in names."""
_CONTEXTS = re.compile(
    r"(system|developer|user|custom|initial|previous|full)_?(prompt|message|instruction|instructions|reason_steps)"
    r"|context|contexts|system|developer|instruction|instructions|input|inputs|question|query|prompt|prompts|history"
    r"|document|documents|passage|passages|background|persona|conversation|conversations|messages|dialog|dialogue"
    r"|dialogs|transcript|article|prefix|preamble|trajectory|chat|knowledge"
)
_TOOLS = re.compile(r"(.+_)?(tools|functions)|tool_choice|function_call|tool_calls")
_MASKS = re.compile(r"(.+_)?(mask|masks)|weight|weights|train|trainable|(loss|sample|token)_weights?")
_THOUGHTS = re.compile(
    r"(.+_)?(reasoning|reasoning_content|thinking|thought|thoughts|rationale|cot|chain_of_thought|scratchpad)"
)

_CONTAINER = re.compile(r"(.+_)?(metadata|meta|info|extra|properties|attributes|details)")
_NEVER_TARGETS = ("user", "human", "system", "developer", "tool")


@lru_cache(4096)
def meaning(name: str) -> str:
    """Return what a column or a key of a turn may hold, judging by its name. `HARMLESS` and `OTHER` change nothing."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    plain = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    words = re.split(r"[_\d]+", plain)
    if any(map(_VERDICT.fullmatch, words)):
        return JUDGEMENT
    if _BOOKKEEPING.fullmatch(re.sub(r"_[ab\d]$", "", plain)):  # two answers have an id each
        return HARMLESS
    for kind, names in ((TOOLS, _TOOLS), (MASK, _MASKS), (THOUGHT, _THOUGHTS), (CONTEXT, _CONTEXTS)):
        if names.fullmatch(plain):
            return kind
    if any(map(_JUDGEMENT.fullmatch, words)) or plain == "kto_tag":
        return JUDGEMENT
    if _SUBJECTS.fullmatch(plain):
        return HARMLESS
    return ANSWER if any(map(_ANSWER.fullmatch, words)) else OTHER


def is_bookkeeping(name: str) -> bool:
    """Whether a column only says where a row comes from, so that it cannot be the prompt."""
    return meaning(name) == HARMLESS and not _SUBJECTS.fullmatch(name.lower())


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN (in CSV as a word), or an empty text, list or object."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return value in ("", "nan", "NaN", "<NA>")
    return value is None or (isinstance(value, list | dict) and not value)


class TrackedRow(dict[str, Any]):
    """A row that remembers which of its columns were read. Asking whether it has a column does not read it.

    Attributes:
        read: the columns that were read.
        objects: the objects that `inside` returned, by column.
    """

    __slots__ = ("objects", "read")

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.read: set[str] = set()
        self.objects: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()  # defined here so that `dict(row)` and `{**row}` read each column by its name

    def items(self) -> Any:
        self.read.update(self)
        return super().items()

    def values(self) -> Any:
        self.read.update(self)
        return super().values()

    def unread(self, turn_keys: Collection[str]) -> Iterator[tuple[str, Any]]:
        """Yield the columns that were not read, neither empty nor harmless, and such keys of turns besides `turn_keys`.

        A key of a turn is named `column[].key`, and so are the keys of the objects that `inside` returned.
        """
        for name, found in self.objects.items():
            items, place = (found, f"{name}[]") if isinstance(found, list) else ([found], name)
            for item in items:
                if isinstance(item, TrackedRow):
                    yield from ((f"{place}.{key}", value) for key, value in item.unread(turn_keys))
        for name, value in super().items():
            if name not in self.read:
                if not is_missing(value):
                    if meaning(str(name)) != HARMLESS:
                        yield str(name), value
                    yield from _judgments_inside(str(name), value)
            elif isinstance(value, list) and value and isinstance(value[0], dict):
                yield from _unread_keys(str(name), value, turn_keys)


def _judgments_inside(column: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object of further facts about a row says about its quality, as `column.key`."""
    if isinstance(value, dict) and _CONTAINER.fullmatch(column.lower()):
        for key, inside in value.items():
            if meaning(str(key)) == JUDGEMENT and not is_missing(inside):
                yield f"{column}.{key}", inside


def inside(row: Mapping[str, Any], name: str) -> Any:
    """Read a column of an object or a list of objects, and return it so that their keys count as columns."""
    value = row[name]
    if not isinstance(row, TrackedRow):
        return value
    if name not in row.objects:
        items = value if isinstance(value, list) else [value]
        tracked = [TrackedRow(item) if isinstance(item, Mapping) else item for item in items]
        row.objects[name] = tracked if isinstance(value, list) else tracked[0]
    return row.objects[name]


def peek(row: Mapping[str, Any], name: str) -> Any:
    """Return a column's value, or None, without reading the column."""
    return dict.get(row, name) if isinstance(row, dict) else row.get(name)


def _unread_keys(column: str, turns: Iterable[Any], known: Collection[str]) -> Iterator[tuple[str, Any]]:
    for turn in turns:
        if isinstance(turn, dict) and ("role" in turn or "from" in turn):
            for key in turn.keys() - known:
                if meaning(key) == HARMLESS:
                    continue
                masks_nothing = meaning(key) == MASK and turn.get("role", turn.get("from")) in _NEVER_TARGETS
                if not is_missing(turn[key]) and not masks_nothing:
                    yield f"{column}[].{key}", turn[key]


def what_is_lost(name: str, value: Any, texts: Collection[str], *, judged: bool) -> str:
    """Return what an unread column may hold: `HARMLESS`, `OTHER`, or what changes the meaning of its row.

    Args:
        name: the column, `column.key` or `column[].key`.
        value: its value, which is not empty.
        texts: the texts of the records that the row became. A column that only repeats them is harmless.
        judged: whether the records carry a judgment already. Another one changes nothing then.
    """
    kind = meaning(name.rpartition(".")[2])
    if kind == MASK:
        return HARMLESS if value == 1 else kind
    if kind == JUDGEMENT or (kind == ANSWER and isinstance(value, bool)):
        return OTHER if judged else JUDGEMENT
    if kind == OTHER and not judged and isinstance(value, str):
        word = value.strip().lower()
        if word in UP | DOWN and word not in _VAGUE:
            return JUDGEMENT
        return HARMLESS if _contains_all(value, texts) else OTHER
    if kind in (CONTEXT, ANSWER, THOUGHT):
        unread = _texts(value)
        if not unread:
            return OTHER
        return HARMLESS if _repeats(unread, texts) else kind
    return kind


def _texts(value: Any) -> list[str]:
    """Return the texts in a value, without the names of roles."""
    if isinstance(value, str):
        return [value.strip()]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    if isinstance(value, dict):
        return [text for name, item in value.items() if name not in ("role", "from") for text in _texts(item)]
    return []


def _repeats(unread: Collection[str], texts: Collection[str]) -> bool:
    """Whether the texts that were read contain every unread one, or one unread text contains all of them."""
    return all(any(text in other for other in texts) for text in unread) or any(
        _contains_all(text, texts) for text in unread
    )


def _contains_all(text: str, texts: Collection[str]) -> bool:
    return any(texts) and all(other.strip() in text for other in texts)
