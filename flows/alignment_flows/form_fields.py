"""The fields of the run form: titles, order, and texts that both of Prefect's user interfaces show alike.

Neither interface shows a bound, and a default only where nothing else was set: both stand in the description. V1 reads
a description as markdown, V2 as it is.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

JsonSchema = dict[str, Any]
Resolve = Callable[[JsonSchema], JsonSchema]
"""The schema that a reference means; any other schema is its own."""

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
LENGTHS = {"minItems": "at least {} of them", "maxItems": "at most {} of them"}
TEXTS = ("minLength", "maxLength", "pattern")
DRAWN = (
    "type", "title", "description", "default", "const", "enum", "format", "position", "required", "maxItems",
)  # fmt: skip
"""What a form needs to know of a field."""

DEFAULT_CHARACTERS = 60
SPELLED = {"Sft": "SFT", "Kl": "KL", "Lora": "LoRA", "Rslora": "rsLoRA", "Dora": "DoRA", "Gb": "GB"}

JOINER = "\u2060"
"""Takes no room and parts what markdown would take for its own."""

UNMARKED = (
    (r"\s+", " "),
    (r"^(?=[#>+*|-]|\d+[.)])", JOINER),  # a heading, quotation, list or table
    (r"`([^`]+)`", r"\1"),
    (r"(?<! )\*|\*(?! )", "∗"),  # the operator's sign: markdown's own cannot be parted from what it would make bold
    (r"(?<![^\W_])_|_(?![^\W_])", "ˍ"),
    (r"~(?=~)|(?<=~)~", "∼"),
    (r"<(?=[a-zA-Z/!?])|\](?=\()|&(?=#?\w+;)|\\(?=[^\w\s])|https?:(?=//)|www(?=\.)", rf"\g<0>{JOINER}"),
)


def plain(text: str) -> str:
    """A text that looks the same whether it is read as markdown or not, and loads nothing."""
    text = text.strip()
    for pattern, replacement in UNMARKED:
        text = re.sub(pattern, replacement, text)
    return text


def dress(body: JsonSchema, resolve: Resolve) -> None:
    """Give every field below a group of settings its title, its text, and its place, which a database need not keep."""
    _dress(body, resolve, set())


def drawn(schema: JsonSchema, resolve: Resolve) -> JsonSchema:
    """What is drawn of a schema, without the bounds: it takes every value that its fields can hold."""
    return _drawn(schema, resolve, ())


def _dress(body: JsonSchema, resolve: Resolve, dressed: set[int]) -> None:
    if id(body) in dressed:
        return
    dressed.add(id(body))
    body["title"] = body.get("title", "").removesuffix("Config")
    if "description" in body:
        body["description"] = plain(body["description"])
    for position, (name, field) in enumerate(body.get("properties", {}).items()):
        automatic = name.replace("_", " ").title()
        if field.get("title", automatic) == automatic:
            field["title"] = " ".join(SPELLED.get(word, word) for word in automatic.split())
        field["position"] = position
        _lift_bounds(field)
        if text := _text(field):
            field["description"] = text
        for inner in _below(field):
            if "properties" in (group := resolve(inner)):
                _dress(group, resolve, dressed)


def _lift_bounds(field: JsonSchema) -> None:
    """The bounds of the one number or text that a field may also hold, on the field itself.

    Of a value that fits no branch of `anyOf` an error says only that; a bound says which it is.
    """
    for kinds, keywords in ((("number", "integer"), BOUNDS), (("string",), TEXTS)):
        branches = [
            branch for branch in field.get("anyOf", ()) if branch.get("type") in kinds and "const" not in branch
        ]
        if len(branches) == 1:
            field.update({keyword: branches[0].pop(keyword) for keyword in keywords if keyword in branches[0]})


def _text(field: Mapping[str, Any]) -> str:
    """The description with what a value has to be and what it is unless set."""
    said = [] if "const" in field else list(_limits(field))
    return " ".join(filter(None, [plain(field.get("description", "")), f"({', '.join(said)})" if said else ""]))


def _limits(field: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{sign} {field[keyword]:g}" for keyword, sign in BOUNDS.items() if keyword in field)
    if "prefixItems" not in field:
        yield from (words.format(field[keyword]) for keyword, words in LENGTHS.items() if keyword in field)
    default = field.get("default", {})
    if isinstance(default, bool):
        yield f"default {'on' if default else 'off'}"
    elif isinstance(default, int | float):
        yield f"default {default:g}"
    elif default is None:
        yield "default None"
    elif default and isinstance(default, str) and len(default) <= DEFAULT_CHARACTERS:
        yield f"default {plain(default)}"
    elif default and isinstance(default, list) and len(shown := json.dumps(default)) <= DEFAULT_CHARACTERS:
        yield f"default {plain(shown)}"


def _below(field: JsonSchema) -> Iterator[JsonSchema]:
    for branch in (*field.get("anyOf", ()), field.get("items", {}), field):
        yield branch
        yield from branch.get("anyOf", ())


def _drawn(schema: JsonSchema, resolve: Resolve, inside: tuple[str, ...]) -> JsonSchema:
    if (reference := schema.get("$ref")) in inside:
        return {}  # settings inside themselves: the form takes JSON there
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
