"""The secrets of one address."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import unquote_plus

from alignment_core.secret_names import is_secret_name

Shown = Callable[[str], str]
"""Returns a text with its secrets hidden."""

HIDDEN = "***"
# One slash is left where an address was taken for a path, or the colon is missing. A limit keeps the search in long
# words fast.
SCHEME_PATTERN = (
    r"(?:(?:[A-Za-z][A-Za-z0-9+.\-]{0,30}::){0,4}(?:https?:/{3,4}|[A-Za-z][A-Za-z0-9+.\-]{0,30}:(?:\\?/){1,2})"
    r"|(?:https?|postgres(?:ql)?|mysql|s3|ftp|redis):(?=[^\s/@]{1,300}@)"
    r"|(?<!\w)(?:https?|postgres(?:ql)?|mysql|redis)/{1,2}(?=[^\s/@:]{1,100}:[^\s@]{1,300}@))"
)
SCHEME = re.compile(rf"\s*{SCHEME_PATTERN}")
DATABASES = {"postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle", "cockroachdb", "redshift"}
"""Schemes whose user is a name and no token. SQLAlchemy's parser reads them."""
PASSWORD = re.compile(r"([^:/]*):(.*)@", re.DOTALL)
QUOTED_PASSWORD = re.compile(r"([^:/@%]*)%3[Aa]([^/@]*)@")
USER_WITH_SLASH = re.compile(r"([^:?#@]*):(.*)@", re.DOTALL)
ORACLE = re.compile(r"([^:/@]*)/([^@/]+)@")
"""User and password as Oracle writes them, which for other databases would be a host and a path."""
HOST_ONLY = re.compile(r"(\[[^\]@]*\]|[^:/?#@\[\]]*)(:\d{1,5})?([/?#]|$)")
"""The start of an address with a host, perhaps a port, and no user."""
SHORT_HOST = re.compile(r"(?!localhost:)[^:/?#@\[\].]*:\d{1,5}[/?#]")
"""A host and a port, which may also be a user and the start of a password that has a `/`, `?` or `#`."""
HOST_AFTER = re.compile(
    r"(.*)@(?:(?:[\w\-]{1,63}\.){1,9}[A-Za-z]{2,}|(?:\d{1,3}\.){3}\d{1,3}|localhost|[\w.\-]{1,255}:\d{1,5})(?![^/?#:])",
    re.DOTALL,
)
"""What a complete host follows, so that it was no host itself."""
NO_PORT = re.compile(r"[^:/?#@\[\]]*:(?!:|\*\*\*|\d{1,5}(?:\W|$))([^/?#@]+)(?![^/?#])")
QUOTED_USER = re.compile(r"([^/?#@]*)%40")
AUTHORITY = re.compile(r"[^/?#]*@")
PLAIN = re.compile(r"[^?&;#]*")
NAME = re.compile(r"[?&;#]([^=&;#?]*)=")
NO_VALUE = re.compile(r"[?&#]([^=&;#?]+)")
NEXT = re.compile(r"&[^=&]*=")
"""The start of the next value of a query: an `&` without a `=` may be a part of a secret."""
REFERENCE = re.compile(r"([^:/@]*:)?(\{\{[^{}]*\}\}|\$\{\w+\})")
"""A reference to a secret in place of the secret: `{{ prefect.blocks.secret.NAME }}`, `${NAME}`."""


def in_address(address: str, shown: Shown) -> str:
    """Return an address, which begins with its scheme, with its secrets hidden.

    Args:
        address: the address.
        shown: hides the secrets of the texts in its query.
    """
    scheme = SCHEME.match(address)
    assert scheme is not None
    parts: list[str] = []
    done = 0
    for start, end in sorted(spans(address, scheme, shown)):
        if start >= done and REFERENCE.fullmatch(address, start, end):
            continue
        if start > done or not parts:
            parts += [address[done:start], HIDDEN]
        done = max(done, end)
    return "".join([*parts, address[done:]])


def spans(address: str, scheme: re.Match[str], shown: Shown) -> Iterator[tuple[int, int]]:
    """Yield start and end of each secret. They may overlap.

    Args:
        address: the address.
        scheme: its scheme.
        shown: as for `in_address`.
    """
    start, rest = scheme.end(), address[scheme.end() :]
    kind = re.split(r"[+:/]", scheme.group().strip().lower(), maxsplit=1)[0]
    secret = _password(rest, kind) if kind in DATABASES else _user_and_password(rest)
    if secret is not None and secret[0] < secret[1]:
        yield start + secret[0], start + secret[1]
    end = until = 0
    for name in NAME.finditer(rest):
        if end < name.end():
            end = _position(rest, "&", name.end())
            until = end
            while until < len(rest) and not NEXT.match(rest, until):
                until = _position(rest, "&", until + 1)
        if end > name.end() and (is_secret_name(name.group(1)) or _holds_secret(rest, name.end(), end, shown)):
            yield start + name.end(), start + until
    for word in NO_VALUE.finditer(rest) if "%" in rest else ():
        if rest[word.end() : word.end() + 1] != "=" and _holds_secret(rest, *word.span(1), shown):
            yield start + word.start(1), start + word.end()


def _position(text: str, mark: str, start: int) -> int:
    found = text.find(mark, start)
    return len(text) if found < 0 else found


def _password(rest: str, kind: str) -> tuple[int, int] | None:
    """Return where the password is in the address of a database without its scheme."""
    found = PASSWORD.match(rest) or QUOTED_PASSWORD.match(rest) or (ORACLE.match(rest) if kind == "oracle" else None)
    found = found or USER_WITH_SLASH.match(rest)
    if found is not None:
        return found.span(2)
    no_port = NO_PORT.match(rest)
    return None if no_port is None else no_port.span(1)


def _user_and_password(rest: str) -> tuple[int, int] | None:
    """Return where user and password, or what may be one of them, are in any other address without its scheme."""
    if HOST_ONLY.match(rest):
        found = HOST_AFTER.match(rest) if SHORT_HOST.match(rest) else QUOTED_USER.match(rest)
    elif (whole := PASSWORD.match(rest) or AUTHORITY.match(rest)) is not None:
        return 0, whole.end() - 1
    else:
        found = QUOTED_USER.match(rest) or NO_PORT.match(rest)
    return None if found is None else found.span(1)


def _holds_secret(text: str, start: int, end: int, shown: Shown) -> bool:
    """Return whether this part, a value in a query, is an address or a query with a secret. It may have %XX."""
    if (inner := SCHEME.match(text, start, end)) is not None and text.find("@", inner.end(), end) >= 0:
        return HOST_ONLY.match(text, inner.end(), end) is None
    value = PLAIN.match(text, start, end)
    if value is None or "%" not in value.group():
        return False
    plain = unquote_plus(value.group())
    return any(is_secret_name(name.group(1)) for name in NAME.finditer(f"&{plain}")) or shown(plain) != plain
