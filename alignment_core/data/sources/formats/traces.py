"""Logged calls with human scores: Langfuse observations, LangSmith runs and MLflow traces.

Scores are in the call's row, in separate rows or in separate files. They are joined by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.parsing import shapes
from alignment_core.data.sources.parsing.grouping import Groups
from alignment_core.data.sources.parsing.judgments import labelled_response, ordered_pairs
from alignment_core.data.sources.readers import RawRow
from alignment_core.records import Conversation, LabelledResponse
from alignment_core.records.format import (
    BadRow,
    Dropped,
    Fields,
    Outcome,
    Quarantined,
    Reading,
    RecordFormat,
    offering,
    tools_of,
    unread_besides,
)

TRACE = ("trace_id", "traceId", "run_id", "runId", "request_id")
CALL = ("observation_id", "observationId", "run_id", "runId")
ASKED = ("input", "inputs", "request")
ANSWERED = ("output", "outputs", "response")
INSIDE = ("scores", "assessments", "feedback", "feedbacks")
PEOPLE = ("user_feedback", "user-feedback", "feedback", "user_score", "thumbs", "thumb", "rating", "user_rating")
"""Common names of human scores, used to choose among several scores."""
COLUMNS = frozenset({
    *TRACE, *CALL, *ASKED, *ANSWERED, *INSIDE, "id", "data", "info", "name", "key", "value", "score", "string_value",
    "stringValue", "feedback_stats", "parent_observation_id", "parent_run_id", "type", "run_type", "comment",
})  # fmt: skip
"""Columns of calls and scores that are read, or that change nothing."""


@dataclass(frozen=True)
class _Score:
    name: str
    value: Any
    target: str | None
    origin: str


class Traces(RecordFormat):
    """Calls (`input`, `output`) and scores (`name` or `key`, `value` or `score`), joined by trace, run or call id."""

    name: ClassVar[str] = "traces"
    shape: ClassVar[str] = "{id, trace_id, input, output, scores?} and {trace_id, name, value}"
    whole_source: ClassVar[bool] = True

    def matches(self, row: Fields) -> bool:
        return _is_call(row) or _is_score(row) or _is_comparison(row)

    def records(self, rows: Iterable[RawRow], source: SourceConfig) -> Iterator[Outcome]:
        with Groups() as traces:
            comparisons: list[tuple[str, Any]] = []
            scored = False
            for row in rows:
                value = row.value
                if not isinstance(value, Mapping) or not self.matches(value):
                    yield Quarantined(row.origin, "other_format", f"the row does not match {self.shape}", value)
                elif _is_comparison(value):
                    comparisons.append((row.origin, dict(value)))
                    scored = True
                else:
                    traces.add(_trace(value), row.origin, dict(value))
                    yield from unread_besides(COLUMNS, row)
                    scored = scored or any(True for _ in _scores(row.origin, value, inside=_is_call(value)))
                    if _is_call(value) and value.get("id"):  # LangSmith's feedback refers to the run, not to its trace
                        traces.rename(str(value["id"]), _trace(value))
            for _, trace in traces:
                yield from _trace_outcomes(trace, source) if scored else map(_without_scores, trace)
            for origin, value in comparisons:
                try:
                    yield from _compared(value, traces, origin, source)
                except BadRow as bad:
                    yield Quarantined(origin, bad.reason, bad.detail, value)


def _is_call(row: Fields) -> bool:
    body = _body(row)
    if not any(name in body for name in ANSWERED) or not any(name in body for name in ASKED):
        return False
    return any(name in row for name in (*TRACE, "info")) or ("id" in row and "instruction" not in row)


def _is_score(row: Fields) -> bool:
    return any(name in row for name in TRACE) and ("name" in row or "key" in row) and _value_name(row) is not None


def _is_comparison(row: Fields) -> bool:
    """Whether a row is LangSmith's comparative feedback: one key with scores for several runs."""
    scores = row.get("scores")
    return "key" in row and isinstance(scores, Mapping) and len(scores) > 1


def _body(row: Fields) -> Fields:
    """Return the object with the request and the response. MLflow nests it under `data`."""
    data = row.get("data")
    return data if isinstance(data, Mapping) and not any(name in row for name in ASKED) else row


def _trace(row: Fields) -> str:
    info = row.get("info")
    found = next((row[name] for name in TRACE if row.get(name)), None)
    if found is None and isinstance(info, Mapping):
        found = next((info[name] for name in TRACE if info.get(name)), None)
    return str(row.get("id") if found is None else found)


def _value_name(row: Fields) -> str | None:
    names = ("value", "score", "string_value", "stringValue")
    return next((name for name in names if isinstance(row.get(name), bool | int | float | str)), None)


def _trace_outcomes(trace: list[tuple[str, Any]], source: SourceConfig) -> Iterator[Outcome]:
    calls = [(origin, row) for origin, row in trace if _is_call(row)]
    scores = [score for origin, row in trace for score in _scores(origin, row, inside=_is_call(row))]
    if not calls:
        for score in scores:
            yield Quarantined(score.origin, "orphaned_score", "no call has this id", dict(trace)[score.origin])
        return
    if not scores:
        yield from (Dropped("unscored", origin) for origin, _ in calls)
        return
    try:
        chosen = _human_scores(scores, source)
    except BadRow as bad:
        yield Quarantined(scores[0].origin, bad.reason, bad.detail, calls[0][1])
        return
    yield from (Dropped(f"score {score.name}", score.origin) for score in scores if score not in chosen)
    for score in chosen:
        call = next((row for _, row in calls if score.target and str(row.get("id")) == score.target), None)
        row = call if call is not None else _main(calls)
        try:
            yield _judged(*_exchange(row), score, source)
        except BadRow as bad:
            yield Quarantined(score.origin, bad.reason, bad.detail, row)


def _without_scores(call: tuple[str, Any]) -> Quarantined:
    origin, row = call
    advice = "To learn the answers as they are, map the columns with data.sources[].columns: {prompt: …, completion: …}"
    return Quarantined(origin, "no_scores", f"no row has a score. The columns are {', '.join(row)}. {advice}", row)


def _scores(origin: str, row: Fields, *, inside: bool) -> Iterator[_Score]:
    if not inside:
        target = next((row[name] for name in CALL if row.get(name)), None)
        name = _value_name(row)
        label = str(row.get("name", row.get("key")))
        yield _Score(label, row.get(name) if name else None, None if target is None else str(target), origin)
        return
    stats = row.get("feedback_stats")
    for key, stat in stats.items() if isinstance(stats, Mapping) else ():
        if isinstance(stat, Mapping) and stat.get("n"):
            yield _Score(str(key), stat.get("avg"), str(row.get("id")), origin)
    for where in INSIDE:
        for item in row.get(where) or () if isinstance(row.get(where), list) else ():
            if isinstance(item, Mapping):
                value: Any = next((item[name] for name in ("value", "score") if item.get(name) is not None), None)
                nested = item.get("feedback", item.get("expectation"))
                if value is None and isinstance(nested, Mapping):
                    value = nested.get("value")
                label = str(item.get("name", item.get("key", item.get("assessment_name"))))
                target = item.get("observation_id", item.get("observationId"))
                yield _Score(label, value, str(target if target else row.get("id")), origin)


def _human_scores(scores: list[_Score], source: SourceConfig) -> list[_Score]:
    """Return the human scores, which all have the same name.

    Raises:
        BadRow: there are several names, and none is a common one.
    """
    names = sorted({score.name for score in scores})
    wanted = source.columns.get("label")
    if wanted is None:
        wanted = names[0] if len(names) == 1 else next((name for name in PEOPLE if name in names), None)
    if wanted is None:
        raise BadRow("several_scores", f"several scores: {', '.join(names)}. Set data.sources[].columns.label to one")
    return [score for score in scores if score.name == wanted]


def _main(calls: list[tuple[str, Any]]) -> Fields:
    """Return the call that a score of a complete trace refers to: the root call, else the last one."""
    for _, row in calls:
        if str(row.get("id")) == _trace(row) or not (row.get("parent_observation_id") or row.get("parent_run_id")):
            return row  # type: ignore[no-any-return]
    return calls[-1][1]  # type: ignore[no-any-return]


def _judged(prompt: Conversation, response: Conversation, score: _Score, source: SourceConfig) -> Outcome:
    value = score.value
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if numeric and (source.threshold is not None or value not in (0, 1, -1)):
        return labelled_response(prompt, response, float(value), score.origin, source)
    desirable = shapes.label(value, score.name, source.desirable)
    if desirable is None:
        return Dropped("no_label", score.origin)
    return Reading(LabelledResponse(prompt, response, desirable, 1.0, score.origin))


def _compared(row: Fields, traces: Groups, origin: str, source: SourceConfig) -> Iterator[Outcome]:
    judged, prompts = [], []
    for run, value in row["scores"].items():
        calls = [call for _, call in traces.get(str(run)) if _is_call(call)]
        if not calls:
            raise BadRow("orphaned_score", f"run {run} is not in the source")
        prompt, response = _exchange(calls[0])
        number = shapes.number(value, f"score of {run}")
        if number is None:
            raise BadRow("bad_number", f"run {run} has no score")
        prompts.append(prompt)
        judged.append((response, number))
    if any(prompt != prompts[0] for prompt in prompts):
        raise BadRow("different_prompts", "the compared runs answer different prompts")
    yield from ordered_pairs(prompts[0], judged, origin, source)


def _exchange(row: Fields) -> tuple[Conversation, Conversation]:
    """Return the prompt and the response of a call.

    Raises:
        BadRow: one of them is missing or is neither text nor a conversation.
    """
    body = _body(row)
    asked = shapes.loaded(next((body[name] for name in ASKED if body.get(name) is not None), None))
    tools = next((found for place in _places_of_tools(row, asked) if (found := tools_of(place))), [])
    answered = shapes.loaded(next((body[name] for name in ANSWERED if body.get(name) is not None), None))
    prompt = _unwrapped(asked, ("messages", "input", "question", "prompt", "query", "content"))
    response = _unwrapped(answered, ("output", "answer", "response", "completion", "content", "text", "messages"))
    if shapes.is_messages(response):
        response = [response[-1]]
    return offering(shapes.prompt(prompt, "input"), tools), shapes.completion(response, "output")


def _places_of_tools(row: Fields, asked: Any) -> Iterator[Fields]:
    """Yield the objects in which loggers keep the tools of a call: beside its messages, or in its parameters."""
    extra = row.get("extra")
    extra = extra if isinstance(extra, Mapping) else {}
    for place in (asked, row.get("modelParameters"), row.get("model_parameters"), extra.get("invocation_params")):
        if isinstance(place, Mapping):
            yield place


def _unwrapped(value: Any, names: tuple[str, ...]) -> Any:
    """Return the text or the messages inside the objects that frameworks wrap them in."""
    for _ in range(4):
        if not isinstance(value, Mapping) or "role" in value:
            break
        choices = value.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
            value = choices[0].get("message", choices[0].get("text"))
            continue
        found = next((name for name in names if value.get(name) is not None), None)
        if found is None:
            break
        value = value[found]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    return value
