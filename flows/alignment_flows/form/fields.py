"""The fields of the run form: titles, order and descriptions that look the same in both of Prefect's user interfaces.

Neither interface shows bounds, and they show a default only if no other value is set. The description of each field
therefore includes both. V1 renders a description as markdown, V2 as plain text.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alignment_flows.form.off_tabs import JsonSchema, give_off_tab, may_be_off

Resolve = Callable[[JsonSchema], JsonSchema]
"""Return the schema that a reference points to. Any other schema is returned unchanged."""

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
LENGTHS = {"minItems": "items ≥ {}", "maxItems": "items ≤ {}"}
TEXTS = ("minLength", "maxLength", "pattern")
DRAWN = (
    "type", "title", "description", "default", "const", "enum", "format", "position", "required", "maxItems",
)  # fmt: skip
"""The keywords of a JSON schema that the forms use."""

PLAIN = ("string", "number", "integer", "boolean", "null")
"""Types that need no choice of null. Without it, a group of settings would always be shown in full."""

DEFAULT_CHARACTERS = 60
SPELLED = {"Sft": "SFT", "Kl": "KL", "Lora": "LoRA", "Rslora": "rsLoRA", "Dora": "DoRA", "Gb": "GB"}

JOINER = "\u2060"
"""Invisible. It splits character sequences that markdown would interpret."""

UNMARKED = (
    (r"\s+", " "),
    (r"^(?=[#>+*|-]|\d+[.)])", JOINER),  # a heading, quotation, list or table
    (r"`([^`]+)`", r"\1"),
    (r"(?<! )\*|\*(?! )", "∗"),  # the asterisk operator, because JOINER does not prevent emphasis
    (r"(?<![^\W_])_|_(?![^\W_])", "ˍ"),
    (r"~(?=~)|(?<=~)~", "∼"),
    (r"<(?=[a-zA-Z/!?])|\](?=\()|&(?=#?\w+;)|\\(?=[^\w\s])|https?:(?=//)|www(?=\.)", rf"\g<0>{JOINER}"),
)


def plain_text(text: str) -> str:
    """Return a text that looks the same as markdown and as plain text, and loads no external content."""
    text = text.strip()
    for pattern, replacement in UNMARKED:
        text = re.sub(pattern, replacement, text)
    return text


def annotate_fields(body: JsonSchema, resolve: Resolve, *, off_tabs: bool = False) -> None:
    """Set the title, description and position of every field in a group of settings.

    The position is needed because a database need not keep the order of JSON keys.

    Args:
        off_tabs: also give each group that may be null the tab `Off`.
    """
    _dress(body, resolve, set(), off_tabs)


def without_bounds(schema: JsonSchema, resolve: Resolve) -> JsonSchema:
    """Return the parts of a schema that the forms draw, without bounds, so that it accepts every value of its type."""
    return _drawn(schema, resolve, ())


def without_null(field: JsonSchema) -> JsonSchema:
    """Return a field without the choice of null, which the interfaces show as 'Property is type "None"'.

    An empty field means its default. The server accepts null where a field has neither that choice nor a default.
    """
    branches = [branch for branch in field.get("anyOf", ()) if branch.get("type") != "null"]
    if len(branches) == len(field.get("anyOf", ())):
        return field
    kept = {key: value for key, value in field.items() if key != "anyOf" and (key, value) != ("default", None)}
    return {**kept, **branches[0]} if len(branches) == 1 else {**kept, "anyOf": branches}


def _dress(body: JsonSchema, resolve: Resolve, dressed: set[int], off_tabs: bool) -> None:
    if id(body) in dressed:
        return
    dressed.add(id(body))
    body["title"] = body.get("title", "").removesuffix("Config")
    if "description" in body:
        body["description"] = plain_text(body["description"])
    for position, (name, field) in enumerate(body.get("properties", {}).items()):
        automatic = name.replace("_", " ").title()
        if field.get("title", automatic) == automatic:
            field["title"] = " ".join(SPELLED.get(word, word) for word in automatic.split())
        field["position"] = position
        _lift_bounds(field)
        if text := _text(field):
            field["description"] = text
        if field.get("default", ...) is None and all(branch.get("type") in PLAIN for branch in field.get("anyOf", ())):
            body["properties"][name] = field = without_null(field)
        if off_tabs and may_be_off(field):
            give_off_tab(body, name)
        for inner in _below(field):
            if "properties" in (group := resolve(inner)):
                _dress(group, resolve, dressed, off_tabs)


def _lift_bounds(field: JsonSchema) -> None:
    """Move the bounds of the only number or string branch of `anyOf` to the field itself.

    If a value matches no branch of `anyOf`, the error says only that. The error about a field's bound names the bound.
    """
    for kinds, keywords in ((("number", "integer"), BOUNDS), (("string",), TEXTS)):
        branches = [
            branch for branch in field.get("anyOf", ()) if branch.get("type") in kinds and "const" not in branch
        ]
        if len(branches) == 1:
            field.update({keyword: branches[0].pop(keyword) for keyword in keywords if keyword in branches[0]})


def _text(field: Mapping[str, Any]) -> str:
    """Return the description with the bounds and the default in parentheses."""
    limits = [] if "const" in field else list(_limits(field))
    return " ".join(
        filter(None, [plain_text(field.get("description", "")), f"({', '.join(limits)})" if limits else ""])
    )


def _limits(field: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{sign} {field[keyword]:g}" for keyword, sign in BOUNDS.items() if keyword in field)
    if "prefixItems" not in field:
        yield from (text.format(field[keyword]) for keyword, text in LENGTHS.items() if keyword in field)
    default = field.get("default", {})
    if isinstance(default, bool):
        yield f"default {'on' if default else 'off'}"
    elif isinstance(default, int | float):
        yield f"default {default:g}"
    elif default is None:
        yield "default None"
    elif default and isinstance(default, str) and len(default) <= DEFAULT_CHARACTERS:
        yield f"default {plain_text(default)}"
    elif default and isinstance(default, list) and len(shown := json.dumps(default)) <= DEFAULT_CHARACTERS:
        yield f"default {plain_text(shown)}"


def _below(field: JsonSchema) -> Iterator[JsonSchema]:
    for branch in (*field.get("anyOf", ()), field.get("items", {}), field):
        yield branch
        yield from branch.get("anyOf", ())


def _drawn(schema: JsonSchema, resolve: Resolve, inside: tuple[str, ...]) -> JsonSchema:
    if (reference := schema.get("$ref")) in inside:
        return {}  # a recursive group of settings, which the form edits as JSON
    if reference is not None:
        schema, inside = {**resolve(schema), **schema}, (*inside, reference)
    shown = {name: schema[name] for name in DRAWN if name in schema}
    for many in ("anyOf", "prefixItems"):
        if many in schema:
            shown[many] = [_drawn(branch, resolve, inside) for branch in schema[many]]
    if "items" in schema:
        shown["items"] = _drawn(schema["items"], resolve, inside)
    if "properties" in schema:
        shown["properties"] = {name: _drawn(field, resolve, inside) for name, field in schema["properties"].items()}
    return shown
