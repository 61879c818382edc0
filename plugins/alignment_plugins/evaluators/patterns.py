"""Evaluators for the form of a response: a regular expression, or a JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from alignment_core.plugin_api import ConfigError, Evaluator, hookimpl

SECONDS = 1.0
"""How long one pattern may search in one response. A pattern that takes longer gives no score."""


class Regex(Evaluator):
    """Scores 1 if the response matches a regular expression, else 0."""

    model_config = ConfigDict(title="Regular expression")
    example: ClassVar[dict[str, Any]] = {"pattern": "[0-9]+"}

    name: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1)
    """Regular expression in the syntax of Python's `regex` library, which includes that of `re`. A response on which it
    searches for more than a second gets no score."""
    whole: bool = False
    """The pattern must match the whole response, without the spaces around it, instead of any part."""
    ignore_case: bool = False
    """Ignore the difference between upper and lower case."""
    dot_matches_newline: bool = True
    """`.` also matches the end of a line."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        import regex

        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @cached_property
    def _compiled(self) -> Any:
        import regex

        flags = (regex.IGNORECASE if self.ignore_case else 0) | (regex.DOTALL if self.dot_matches_newline else 0)
        return regex.compile(self.pattern, flags)

    def scores(self, prompts: Any, responses: Any, facts: Any) -> list[float | None]:
        return [self._matches(response.strip()) for response in responses]

    def _matches(self, response: str) -> float | None:
        search = self._compiled.fullmatch if self.whole else self._compiled.search
        try:
            return float(search(response, timeout=SECONDS) is not None)
        except TimeoutError:
            return None


class JsonSchema(Evaluator):
    """Scores 1 if the response is JSON that a schema accepts, else 0."""

    model_config = ConfigDict(title="JSON schema")

    name: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any] = Field(default_factory=dict)
    """JSON Schema (draft 2020-12 unless `$schema` says otherwise). Empty: any JSON is accepted. References to other
    files or addresses are refused."""
    fenced: bool = True
    """Also accept JSON in one fenced code block that is the whole response."""

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for

        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"not a JSON schema: {error.message}") from None
        if outside := next((ref for ref in _references(schema) if not ref.startswith("#")), None):
            raise ValueError(f"the schema refers to {outside!r}, but only references inside it (#/…) are followed")
        return schema

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import validators
        from referencing import Registry

        kind = validators.validator_for(self.json_schema)
        timed = validators.extend(kind, {"pattern": _pattern, "patternProperties": _pattern_properties})
        return timed(self.json_schema, registry=Registry())

    def scores(self, prompts: Any, responses: Any, facts: Any) -> list[float | None]:
        return [self._accepts(response) for response in responses]

    def _accepts(self, response: str) -> float | None:
        from referencing.exceptions import Unresolvable

        try:
            value = _json(_unfenced(response) if self.fenced else response)
        except (ValueError, RecursionError):
            return 0.0
        try:
            return float(self._validator.is_valid(value))
        except TimeoutError:
            return None
        except RecursionError:
            return 0.0
        except Unresolvable as error:
            raise ConfigError("the schema refers to a part that it does not have", where=self.name, got=error) from None


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            yield from _references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)


def _unfenced(response: str) -> str:
    match = re.fullmatch(r"\s*```[ \t]*(?:json)?[ \t]*\n(?P<inside>.*?)\n?[ \t]*```\s*", response, re.DOTALL | re.I)
    return match["inside"] if match else response


def _json(text: str) -> Any:
    def refused(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refused)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    """Check `pattern` as jsonschema does, but with a time limit."""
    from jsonschema import ValidationError

    if validator.is_type(instance, "string") and not _found(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, properties: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, inside in properties.items():
        for key, value in instance.items():
            if _found(pattern, key):
                yield from validator.descend(value, inside, path=key, schema_path=pattern)


def _found(pattern: str, text: str) -> bool:
    import regex

    return regex.search(pattern, text, timeout=SECONDS) is not None


@hookimpl
def alignment_evaluators() -> list[type[Evaluator]]:
    return [JsonSchema, Regex]
