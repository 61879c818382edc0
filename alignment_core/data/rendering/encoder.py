"""Encode text as token ids: complete texts, fragments, and special tokens that users wrote as text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment_core.errors import DataError, ModelError, loading_failure
from alignment_core.records import Conversation, Message

PLACEHOLDERS = 0xF0000
"""First code point (in a private-use plane) of the placeholders for special tokens that users wrote as text."""
PLACEHOLDER = re.compile(f"[{chr(PLACEHOLDERS)}-{chr(PLACEHOLDERS + 0xFFFD)}]")
RESERVED = re.compile(f"[{chr(PLACEHOLDERS)}-{chr(0x10FFFF)}]")
"""Matches placeholders, and the marks of the next private-use plane that tell whose words a text holds."""
PANIC = "PanicException"
"""Name of the error of a library in Rust that gives up. It is no `Exception`, and has no module to import it from."""


class Unrenderable(DataError):
    """A row that cannot be converted to tokens. The report counts it under the short name `reason`."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


Span = tuple[int, int]
"""Start and end of a range of characters."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and whether each of them starts in a requested span."""

    ids: list[int]
    targets: list[bool] | None


@dataclass(frozen=True, slots=True)
class Text:
    """A text to encode.

    Attributes:
        text: the text, which may contain placeholders.
        fragment: whether the text is the middle of a longer one, so that no space is added in front of it.
        spans: characters whose tokens are requested. None if not requested.
    """

    text: str
    fragment: bool = False
    spans: tuple[Span, ...] | None = None


def special_tokens(tokenizer: Any) -> list[str]:
    """Return the tokens that text in a message must never become."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*added, *tokenizer.all_special_tokens]))


class Encoder:
    """Encodes with a tokenizer so that special tokens occur only where the chat template wrote them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._names = special_tokens(tokenizer)
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._names, key=len, reverse=True))))
        self._anchor = self._find_anchor()

    def encode(self, texts: Sequence[Text]) -> list[Encoded]:
        """Tokenize all texts together."""
        parts = [(index, part) for index, text in enumerate(texts) for part in self._parts(text)]
        kinds: dict[tuple[bool, bool, bool], list[int]] = defaultdict(list)
        for place, (_, part) in enumerate(parts):
            kinds[part.literal, part.fragment, part.spans is not None].append(place)
        encodings: list[Encoded] = [Encoded([], None)] * len(parts)
        for (literal, fragment, places_wanted), places in kinds.items():
            batch = [parts[place][1] for place in places]
            for place, result in zip(places, self._batch(batch, literal, fragment, places_wanted), strict=True):
                encodings[place] = result
        results: list[Encoded | None] = [None] * len(texts)
        for (index, _), new in zip(parts, encodings, strict=True):
            before = results[index]
            results[index] = new if before is None else _joined(before, new)
        return [
            Encoded([], None if text.spans is None else []) if result is None else result
            for text, result in zip(texts, results, strict=True)
        ]

    def without_front(self, text: str, tokens: int) -> str | None:
        """Return `text` without approximately its first `tokens` tokens, or None if it has no more tokens than that."""
        (encoded,) = self.encode([Text(text, fragment=True)])
        if len(encoded.ids) <= tokens:
            return None
        return text[max(len(text) * tokens // len(encoded.ids), 1) :]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode a fragment without special tokens. A space at its start is kept."""
        anchor_ids, anchor = self._anchor
        text: str = self._tokenizer.decode([*anchor_ids, *ids], skip_special_tokens=True)
        return text.removeprefix(anchor)

    def escape(self, messages: Conversation) -> Conversation:
        """Replace special tokens that users wrote as text ("<s>" in HTML) with placeholders.

        Raises:
            Unrenderable: the conversation already contains placeholder characters.
        """
        return tuple(
            message if _plain(message) and not self._marked(message["content"]) else map_strings(message, self._escape)
            for message in messages
        )

    def unescape(self, messages: Conversation) -> Conversation:
        """Undo `escape`."""
        return tuple(
            message
            if _plain(message) and (message["content"].isascii() or not PLACEHOLDER.search(message["content"]))
            else map_strings(message, self._unescape)
            for message in messages
        )

    def _marked(self, text: str) -> bool:
        """Whether the text contains special tokens, which must be escaped, or placeholders, which are not allowed."""
        return bool(self._names and self._pattern.search(text)) or bool(not text.isascii() and RESERVED.search(text))

    def _escape(self, text: str) -> str:
        if not text.isascii() and RESERVED.search(text):
            raise Unrenderable("private_use_characters", "the text contains characters of a private-use plane")
        if not self._names:
            return text
        return self._pattern.sub(lambda match: chr(PLACEHOLDERS + self._names.index(match.group())), text)

    def _unescape(self, text: str) -> str:
        return PLACEHOLDER.sub(lambda match: self._names[ord(match.group()) - PLACEHOLDERS], text)

    def _parts(self, text: Text) -> list[_Part]:
        """Split the text at its placeholders, which are replaced by the special tokens as text."""
        if text.text.isascii() or not PLACEHOLDER.search(text.text):
            return [_Part(text.text, text.fragment, text.spans, literal=False)]
        parts: list[_Part] = []
        position = 0
        for match in PLACEHOLDER.finditer(text.text):
            for start, end, literal in ((position, match.start(), False), (*match.span(), True)):
                part = self._unescape(text.text[start:end])
                spans = None if text.spans is None else tuple((a - start, b - start) for a, b in text.spans)
                parts.append(_Part(part, text.fragment or start > 0, spans, literal))
            position = match.end()
        spans = None if text.spans is None else tuple((a - position, b - position) for a, b in text.spans)
        parts.append(_Part(text.text[position:], True, spans, literal=False))
        return [part for part in parts if part.text]

    def _batch(self, parts: Sequence[_Part], literal: bool, fragment: bool, places: bool) -> list[Encoded]:
        anchor_ids, anchor = self._anchor if fragment else ([], "")
        call: Callable[..., Any] = self._backend.encode_batch if places else self._backend.encode_batch_fast
        self._backend.encode_special_tokens = literal
        try:
            encodings = call([anchor + part.text for part in parts], add_special_tokens=False)
        except BaseException as error:  # the library panics, for example where a pattern needs too many attempts
            if not isinstance(error, Exception) and type(error).__name__ != PANIC:
                raise
            raise ModelError(
                "the tokenizer fails on a text",
                where=f"model.base {self._tokenizer.name_or_path}",
                got=loading_failure(error),
                do="Use another base model, or report it to the author of this one",
            ) from error
        finally:
            self._backend.encode_special_tokens = False
        skip, shift = len(anchor_ids), len(anchor)
        return [
            Encoded(item.ids[skip:] if skip else item.ids, _targets(item, part, skip, shift) if places else None)
            for part, item in zip(parts, encodings, strict=True)
        ]

    def _find_anchor(self) -> tuple[list[int], str]:
        """Return the token ids and the text to put in front of a fragment. Both are empty if none is needed.

        SentencePiece tokenizers add a space in front of every text. A line break in front of a fragment prevents this,
        and its tokens are removed afterwards.
        """
        alone = self._backend.encode("\n", add_special_tokens=False).ids
        with_text = self._backend.encode("\na", add_special_tokens=False).ids
        prepends = self._backend.encode("a", add_special_tokens=False).tokens[:1] == ["▁a"]
        return (alone, "\n") if prepends and with_text[: len(alone)] == alone else ([], "")


@dataclass(frozen=True, slots=True)
class _Part:
    text: str
    fragment: bool
    spans: tuple[Span, ...] | None
    literal: bool


def _joined(first: Encoded, second: Encoded) -> Encoded:
    targets = None if first.targets is None or second.targets is None else first.targets + second.targets
    return Encoded(first.ids + second.ids, targets)


def _targets(encoding: Any, part: _Part, skip: int, shift: int) -> list[bool]:
    """Return which tokens start in the part's spans. For a special token written as text, its start decides for all."""
    count = len(encoding.ids) - skip
    spans = part.spans or ()
    if part.literal:
        return [any(start <= 0 < end for start, end in spans)] * count
    mask = [False] * count
    for start, end in spans:
        first, last = (_first_token(encoding, place, len(part.text), skip, shift) for place in (start, end))
        mask[first:last] = [True] * (last - first)
    return mask


def _first_token(encoding: Any, place: int, length: int, skip: int, shift: int) -> int:
    """Return the index of the first token that starts at or after the character at `place`."""
    for character in range(max(place, 0), length):
        token: int | None = encoding.char_to_token(character + shift)
        if token is not None:
            reaches_over = bool(encoding.token_to_chars(token)[0] < character + shift)
            return max(token - skip + reaches_over, 0)
    return len(encoding.ids) - skip


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Return `value` with `change` applied to every string in it, except the role of a message."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: item if key == "role" else map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change) for item in value]
    return value


def _plain(message: Message) -> bool:
    """Whether the message has only a role and a text."""
    return len(message) == 2 and isinstance(message.get("content"), str)
