"""Regular expressions and JSON schemas: what must and must not count, and hostile input."""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

import pytest
from pydantic import ValidationError

from alignment_core.errors import ConfigError
from alignment_plugins.evaluators.patterns import JsonSchema, Regex


def regex(response: str, pattern: str, **settings: Any) -> float | None:
    (score,) = Regex(pattern=pattern, **settings).scores([()], [response], [{}])
    return score


def accepted(response: str, schema: dict[str, Any], **settings: Any) -> float | None:
    (score,) = JsonSchema(json_schema=schema, **settings).scores([()], [response], [{}])
    return score


@pytest.mark.parametrize(
    ("response", "pattern", "settings", "score"),
    [
        ("<think>a\nb</think> 7", r"<think>.*</think>", {}, 1),
        ("<think>a\nb</think> 7", r"<think>.*</think>", {"dot_matches_newline": False}, 0),
        ("say 7", r"\d", {}, 1),
        ("say 7", r"\d", {"whole": True}, 0),
        (" 7\n", r"\d", {"whole": True}, 1),
        ("YES", "yes", {}, 0),
        ("YES", "yes", {"ignore_case": True}, 1),
        ("", r"\d", {}, 0),
    ],
)
def test_regex(response: str, pattern: str, settings: dict[str, Any], score: float) -> None:
    assert regex(response, pattern, **settings) == score


@pytest.mark.parametrize("pattern", [r"(a|aa)+$", r"(x+x+)+y", r"(.*)*\d\Z"])
def test_a_catastrophic_pattern_gives_no_score_in_time(pattern: str) -> None:
    start = perf_counter()
    assert regex("a" * 60 + "x" * 60 + "!", pattern) in (None, 0.0)
    assert perf_counter() - start < 30  # without a limit: years


def test_a_pattern_that_runs_out_of_time_is_no_score() -> None:
    assert regex("a" * 5000 + "!", r"(a?){5000}a{5000}b|^(a+)+$") is None


@pytest.mark.parametrize("pattern", ["(", "[a", "*", ""])
def test_a_broken_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        Regex(pattern=pattern)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ('{"name": "Ada", "age": 36}', 1),
        ('\n {"name": "Ada"} ', 1),
        ('```json\n{"name": "Ada"}\n```', 1),
        ('```\n{"name": "Ada"}\n```\n', 1),
        ('{"name": "Ada", "age": -1}', 0),
        ('{"name": "Ada", "age": "36"}', 0),
        ('{"age": 36}', 0),
        ('{"name": "Ada", "x": 1}', 0),
        ('{"name": "Ada"', 0),
        ('Here it is: {"name": "Ada"}', 0),
        ('```json\n{"name": "Ada"}\n```\nDone.', 0),
        ("{'name': 'Ada'}", 0),
        ('{"name": "Ada", "age": NaN}', 0),
        ('{"name": "Ada", "age": Infinity}', 0),
        ('[{"name": "Ada"}]', 0),
        ("", 0),
        ("null", 0),
        ("[" * 100_000, 0),
        ('{"name":' * 50_000, 0),
        ('{"name": "Ada", "age": ' + "9" * 10_000 + "}", 0),
    ],
)
def test_json_schema(response: str, score: float) -> None:
    assert accepted(response, PERSON) == score


def test_any_json_is_accepted_by_an_empty_schema_and_fences_can_be_refused() -> None:
    assert accepted("[1, null]", {}) == 1
    assert accepted("```json\n[1]\n```", {}, fenced=False) == 0
    assert accepted("[1]", {"$ref": "#/$defs/list", "$defs": {"list": {"type": "array"}}}) == 1


def test_deep_json_is_no_crash() -> None:
    tree = {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    deep = "[" * 900 + "]" * 900
    assert accepted(deep, tree) in (0.0, 1.0)
    assert accepted("[[[]]]", tree) == 1


def test_patterns_in_a_schema_have_a_time_limit() -> None:
    start = perf_counter()
    slow = json.dumps("a" * 5000 + "!")
    assert accepted(slow, {"pattern": r"^(a|a?)+$"}) in (None, 0.0)
    assert accepted('"ab"', {"pattern": "^a"}) == 1
    assert accepted('"ba"', {"pattern": "^a"}) == 0
    named = {"patternProperties": {"^n_": {"type": "number"}}}
    assert accepted('{"n_1": 1, "x": "y"}', named) == 1
    assert accepted('{"n_1": "1"}', named) == 0
    assert perf_counter() - start < 30  # without a limit: years


@pytest.mark.parametrize("schema", [{"type": "objct"}, {"required": "name"}, {"minimum": "0"}])
def test_a_broken_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="not a JSON schema"):
        JsonSchema(json_schema=schema)


@pytest.mark.parametrize("place", ["https://example.com/s.json", "file:///etc/passwd", "other.json"])
def test_references_to_other_files_are_refused(place: str) -> None:
    with pytest.raises(ValidationError, match="only references inside it"):
        JsonSchema(json_schema={"allOf": [{"$ref": place}]})


def test_a_reference_to_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="does not have"):
        accepted("1", {"$ref": "#/$defs/missing"})
