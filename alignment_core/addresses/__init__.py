"""What in an address or in a setting is a secret, and how to show it without.

A secret in an address is

- the password of a database (`postgresql://user:SECRET@host/name`): the user stays readable;
- user and password of any other address (`https://TOKEN@host`, `s3://KEY:SECRET@bucket`): either may be a token;
- what stands where a port belongs and is none (`https://user:SECRET`);
- a value in the query or fragment whose name says so: `?password=`, `?api_key=`, `?sig=`, `X-Amz-Signature`;
- a token in the path of an address that is known to have one there: `/bot123:TOKEN/`, `/webhooks/TOKEN`;
- an address with a secret inside such a value.

A text can hold others: `password=SECRET` as in the settings of a database, `"password": "SECRET"` as in JSON, an
authorization header or a cookie, a token that shows who issued it, a private key, an address that is quoted with %XX.

Parsers disagree where a password with `/`, `?`, `@` or a space ends: SQLAlchemy reads up to the first `@`, urllib up to
the first `/`. Here it ends at the last `@`, so that no reader of the address has a secret that stays visible.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote_plus

from alignment_core.addresses.address import HIDDEN, REFERENCE, SCHEME, spans
from alignment_core.addresses.text import ALL_REFERENCES, CHANGE, INSIDE, in_text, in_text_once
from alignment_core.secret_names import is_secret_name

__all__ = ["HIDDEN", "has_secret", "hide_secrets", "secret_places", "secrets_in"]

LONG_ENOUGH = 6
"""Length in characters of a secret that no other word of a message contains by chance."""


def hide_secrets(value: Any) -> Any:
    """Return the JSON value with `***` in place of every secret: in an address, in a text, or under a secret's name.

    A text without a secret is returned unchanged, and so is the result of this function.
    """
    if isinstance(value, str):
        return in_text(value)
    if isinstance(value, Mapping):
        return {
            hide_secrets(name): _all_hidden(inner) if is_secret_name(str(name)) else hide_secrets(inner)
            for name, inner in value.items()
        }
    return [hide_secrets(inner) for inner in value] if isinstance(value, list | tuple) else value


def has_secret(value: Any) -> bool:
    """Return whether `hide_secrets` would change the JSON value."""
    return next(secret_places(value), None) is not None


def secret_places(value: Any, where: str = "") -> Iterator[str]:
    """Yield the dotted name of each text in the JSON value that holds a secret."""
    if isinstance(value, str):
        if in_text(value) != value:
            yield where
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            place = f"{where}.{name}".lstrip(".")
            if is_secret_name(str(name)):
                yield from () if _all_hidden(inner) == inner else (place,)
            elif hide_secrets(name) != name:
                yield place
            else:
                yield from secret_places(inner, place)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from secret_places(inner, f"{where}.{index}".lstrip("."))


def secrets_in(text: str) -> Iterator[str]:
    """Yield the secrets of the addresses in a text, as written and without %XX. Short ones may be other words."""
    whole = SCHEME.match(text) or CHANGE.match(text)
    addresses = [text[whole.start() if whole.re is SCHEME else whole.end() :]] if whole else INSIDE.findall(text)
    for address in addresses:
        scheme = SCHEME.match(address)
        for start, end in spans(address, scheme, in_text_once) if scheme else ():
            for part in {address[start:end], *address[start:end].split(":")}:
                if len(part) >= LONG_ENOUGH and not REFERENCE.fullmatch(part):
                    yield from {part, unquote_plus(part)}


def _all_hidden(value: Any) -> Any:
    """Return the value of a secret's name with every text and number in it hidden, except references and zeros."""
    if isinstance(value, Mapping):
        return {name: _all_hidden(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_all_hidden(inner) for inner in value]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not value:
        return value
    return value if ALL_REFERENCES.fullmatch(str(value)) else HIDDEN
