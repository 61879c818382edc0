"""The rows that ingestion reads, made from votes: one file of thumbs and one of rankings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from json.encoder import encode_basestring as quoted

from alignment_core.feedback.current_votes import Judged

THUMBS, RANKINGS = "thumbs.jsonl", "rankings.jsonl"
"""Two files, because each has one record format: labelled responses and K-way rankings."""

_LABELS = {True: "true", False: "false", None: "null"}
_quoted = lru_cache(1024)(quoted)


def training_rows(judged: Judged, *, metadata: bool = False) -> Iterator[tuple[str, str]]:
    """Yield the file and the line of each vote. A withdrawn vote and a skipped ranking have none.

    If all responses are bad, there is a line for each, as for a thumb down.

    Args:
        judged: the votes.
        metadata: whether to add rater, time, model and comment.
    """
    texts = {name: quoted(text) for name, (_, text, _) in judged.answers.items()}
    models = {name: f', "model": {_quoted(model)}' * metadata for name, (_, _, model) in judged.answers.items()}
    rest = ""
    for (_, _, _, rater, kind, _, comment, time), said, names in judged.rows:
        prompt = judged.messages[judged.answers[names[0]][0]]
        if metadata:
            rest = f', "rater": {_quoted(rater)}, "rater_kind": "{kind}", "time": {time!r}'
            rest += f', "comment": {_quoted(comment)}'
        if "ranks" in said:
            ranks: Mapping[str, int] = said["ranks"]
            edited = {said.get("edited"): ', "edited": true' * metadata}
            completions = ", ".join(
                [
                    f'{{"completion": {texts[name]}, "rank": {ranks[name]}{models[name]}{edited.get(name, "")}}}'
                    for name in names
                ]
            )
            yield RANKINGS, f'{{"prompt": {prompt}, "completions": [{completions}]{rest}}}'
        elif "up" in said or "bad" in said:
            label = _LABELS[said.get("up", False)]
            for name in names:
                thumb = f'"completion": {texts[name]}, "label": {label}{models[name]}'
                yield THUMBS, f'{{"prompt": {prompt}, {thumb}{rest}}}'
