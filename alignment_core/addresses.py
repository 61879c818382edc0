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

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote_plus

from alignment_core.secret_names import is_secret_name

HIDDEN = "***"
LONG_ENOUGH = 6
"""Length in characters of a secret that no other word of a message contains by chance."""
MOST_PASSES = 5
"""What one secret hides can have made another one hard to see."""

# One slash is left where an address was taken for a path, or the colon is missing. A limit keeps the search in long
# words fast.
_SCHEME = (
    r"(?:(?:[A-Za-z][A-Za-z0-9+.\-]{0,30}::){0,4}(?:https?:/{3,4}|[A-Za-z][A-Za-z0-9+.\-]{0,30}:(?:\\?/){1,2})"
    r"|(?:https?|postgres(?:ql)?|mysql|s3|ftp|redis):(?=[^\s/@]{1,300}@)"
    r"|(?<!\w)(?:https?|postgres(?:ql)?|mysql|redis)/{1,2}(?=[^\s/@:]{1,100}:[^\s@]{1,300}@))"
)
SCHEME = re.compile(rf"\s*{_SCHEME}")
DATABASES = {"postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle", "cockroachdb", "redshift"}
"""Schemes whose user is a name and no token. SQLAlchemy's parser reads them."""
PASSWORD = re.compile(r"([^:/]*):(.*)@", re.DOTALL)
QUOTED_PASSWORD = re.compile(r"([^:/@%]*)%3[Aa]([^/@]*)@")
USER_WITH_SLASH = re.compile(r"([^:?#@]*):(.*)@", re.DOTALL)
ORACLE = re.compile(r"([^:/@]*)/([^@/]+)@")
"""User and password as Oracle writes them, which for other databases would be a host and a path."""
JDBC_ORACLE = re.compile(r"(?i)(\bjdbc:oracle:\w{1,10}:[^/@\s]*/)[^@\s]+(?=@)")
NO_SCHEME = re.compile(r"(?<![:\w/\\*])//[^\s/@]+(?=@)|(?<=\w)//[^\s/@:]*:[^\s/@]+(?=@)")
"""User and password of an address that begins with `//`."""
BARE = re.compile(
    r"(?<![^\s'\"`=(\[])(?!mailto:)([^\s:/@'\"`=(\[]{1,100}:)([^\s/@][^\s@]{0,300})"
    r"(?=@(?:[\w\-]+(?:\.[\w\-]+)+|[\w\-.]+:\d{2,5}(?!\w)))"
)
"""The same without `//`, if a complete host follows: `user:SECRET@db.example.com`."""
IN_PATH = re.compile(
    r"(/bot\d+:|/services/T\w+/B\w+/|/webhooks?/(?:\d+/)?|/webhookb2/)[^/?#\s]+"
    r"|(/(?:token|key|api_?key|secret|auth|ticket)/)(?=[\w\-]*\d)(?=[\w\-]*[A-Za-z])[\w\-]{20,}(?![\w.\-])"
)
"""A token in a path, as Telegram, Slack, Discord and Teams have it, or after a part that announces one."""
WORD = re.compile(r"[^\s'\"`<>]+")
QUOTED = re.compile(r"(?i)%3A(?:%2F|/)|:%2F")
"""What shows that an address in a word is quoted with %XX."""
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
_PASSWORD_WITH_SPACES = r"[^\s/@:'\"`]*:(?=\S)(?!\d{1,5}(?:\W|$))[^@\r\n'\"`]{0,200}@\S*"
INSIDE = re.compile(
    "|".join(rf"(?<={mark}){_SCHEME}[^{mark}]*(?:{mark}[^\s{mark}@]*@[^{mark}]*)?" for mark in "'\"`")
    + rf"|{_SCHEME}(?:{_PASSWORD_WITH_SPACES}|\S*)"
)
"""An address inside a text. In quotes it ends with them, elsewhere at the next space that is in no password."""
_STRING = r"\"(?:[^\"\\]|\\.)+\"|'(?:[^'\\]|\\.|'')+'"
HEADER = re.compile(
    r"(?i)\b(Bearer\s+)[\w.~+/=\-]{8,}"
    r"|(authorization(?:\\?['\"])?\s*[:=]\s*(?:\\?['\"])?(?:(?:Bearer|Basic|Token|Bot|JWT|Negotiate|\w{0,20}Key)\s+)?)"
    r"(?:(?:Digest|AWS4[\w\-]*|OAuth|Hawk|Signature)\s[^\r\n]*"
    rf"|(?:[^\s'\",}}\\]|(?<==)(?:{_STRING}))+)"
    r"|\b((?:set-)?cookie['\"]?\s*:\s*['\"]?)[^\s'\"][^'\"\r\n]*"
)
"""An authorization header or a cookie, or the value of the first."""
_END = r"\s;,&'\""
_VALUE = (
    rf"(?P<value>\\\"(?:(?!\\\").)+\\\"|{_STRING}|['\"](?=[^\s'\"])[^\r\n]*|\{{\{{[^{{}}]*\}}\}}[^{_END}]*"
    rf"|\{{[^{{}}]+\}}[^{_END}]*|(?:\\.|[^{_END}\\]|['\"](?=[^{_END}}}\])]))+)"
)
PAIR = re.compile(
    r"(?<![\w.\-/])((?:\\?['\"])?)((?i:(?:api|access|account|secret|private|auth) key)|[\w.\-]{1,200})\1(\s?[=:]\s?)"
)
"""A name before its value, as in `host=db password=SECRET`, `Server=db;Pwd=SECRET`, JSON, YAML or a header."""
OPTION = re.compile(rf"(?<![\w\-])((?:-u|--user)[ =][^\s:@]{{1,100}}:|--[\w\-]{{1,60}} +){_VALUE}")
"""An option of a command, and user and password as curl wants them."""
VAGUE = {"key", "code", "session"}
"""Names of secrets in queries that mean something else in most texts."""
VALUE = re.compile(_VALUE)
LISTED = re.compile(r"(?i)(?:password|passwd|pwd|passphrase|secret|api[_\- ]?key|(?:account|access|private)[_ ]?key)$")
"""Names that say enough in any text."""
_KEY = r"[A-Za-z0-9_\-]"
TOKEN = re.compile(
    r"\b(hf_|gh[pousr]_|github_pat_|npm_|dckr_pat_|wandb_v1_|r8_|gsk_|pn[ub]_)[A-Za-z0-9_]{20,}"
    rf"|\b(sk-|pypi-|glpat-|pplx-|xox[a-z]-|dapi|AIza|ya29\.|SG\.)(?=[.\w\-]{{0,200}}\d)[.\w\-]{{20,}}"
    rf"|\b(A[KS]IA)[A-Z0-9]{{12,}}"
    rf"|\b(eyJ){_KEY}{{8,2000}}\.eyJ{_KEY}{{8,4000}}\.{_KEY}+"
    r"|(-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----)(?:(?!-----END)[\s\S])+"
)
"""A token whose issuer marks it as one (the Hub, GitHub, npm, Docker, W&B, Replicate, Groq, Prefect, OpenAI, PyPI,
GitLab, Perplexity, Slack, Databricks, Google, SendGrid, AWS), a JSON web token, or a private key."""
CHANGE = re.compile(rf"[\w.\-]+=(?=\s*{_SCHEME})")
"""The start of a changed setting, as in `feedback=postgresql://…`."""
REFERENCE = re.compile(r"([^:/@]*:)?(\{\{[^{}]*\}\}|\$\{\w+\})")
"""A reference to a secret in place of the secret: `{{ prefect.blocks.secret.NAME }}`, `${NAME}`."""
ALL_REFERENCES = re.compile(r"(?i)['\"]?(?:(?:bearer|basic|token)\s+)?(?:\{\{[^{}]*\}\}|\$\{\w+\})+['\"]?")
NOTHING = re.compile(r"(?i)['\"]?(?:none|null|true|false)['\"]?[)\]}]*|[`.:()]+|\*\*\*[)\]}]*")


def hide_secrets(value: Any) -> Any:
    """Return the JSON value with `***` in place of every secret: in an address, in a text, or under a secret's name.

    A text without a secret is returned unchanged, and so is the result of this function.
    """
    if isinstance(value, str):
        return _in_text(value)
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
        if _in_text(value) != value:
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
        for start, end in _spans(address, scheme) if scheme else ():
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


def _in_text(text: str) -> str:
    """Hide the secrets of an address, or of each address in a text, and what else is one.

    A text that starts with an address is one.
    """
    for _ in range(MOST_PASSES):
        before, text = text, _in_text_once(text)
        text = BARE.sub(lambda found: found.group(1) + _unless_reference(found.group(2)), text)
        if text == before:
            break
    return text


def _in_text_once(text: str) -> str:
    for marked in (HEADER, TOKEN, IN_PATH):
        text = marked.sub(lambda found: next(filter(None, found.groups())) + HIDDEN, text)
    text = _in_pairs(_in_addresses(text))
    text = OPTION.sub(_option, text)
    text = JDBC_ORACLE.sub(rf"\1{HIDDEN}", text)
    text = NO_SCHEME.sub(f"//{HIDDEN}", text)
    return WORD.sub(_quoted, text) if QUOTED.search(text) else text


def _in_addresses(text: str) -> str:
    if ":" not in text:
        return text
    if SCHEME.match(text):
        return _in_address(text)
    if (change := CHANGE.match(text)) is not None:
        return change.group() + _in_address(text[change.end() :])
    return INSIDE.sub(lambda found: _in_address(found.group()), text)


def _in_pairs(text: str) -> str:
    shown: list[str] = []
    done = 0
    for found in PAIR.finditer(text):
        if found.start() < done or not _says_so(found):
            continue
        if (value := VALUE.match(text, found.end())) is not None:
            shown += [text[done : found.end()], _unless_reference(value.group())]
            done = value.end()
    return "".join([*shown, text[done:]])


def _says_so(found: re.Match[str]) -> bool:
    """Return whether the name of a value in a text says that it is a secret. A word before a colon may say nothing."""
    mark, name, sign = found.groups()
    if not is_secret_name(name) or name.lower().endswith(("authorization", "cookie")):  # `HEADER` is for these two
        return False
    if mark or LISTED.search(name):
        return True
    if "=" in sign or name.lower() in VAGUE:
        return name.lower() not in VAGUE
    if "." in name:  # the setting that a message is about
        return False
    before = found.string[max(0, found.start() - 9) : found.start()].rstrip(" -")
    return re.search(r"[_\-]|[a-z][A-Z]", name) is not None or before[-1:] in ("", "{", "\n", ",")


def _option(found: re.Match[str]) -> str:
    option = found.group(1)
    named = option.endswith(":") or is_secret_name(option)
    return option + _unless_reference(found["value"]) if named else found.group()


def _unless_reference(value: str) -> str:
    return value if ALL_REFERENCES.fullmatch(value) or NOTHING.fullmatch(value) else HIDDEN


def _quoted(word: re.Match[str]) -> str:
    """Return the word, or that it is hidden: what in it is a secret shows only without the %XX."""
    text = word.group()
    if SCHEME.match(text) or not QUOTED.search(text):
        return text  # the query of an address is looked at there
    return HIDDEN if has_secret(unquote_plus(text)) else text


def _in_address(address: str) -> str:
    scheme = SCHEME.match(address)
    assert scheme is not None
    shown: list[str] = []
    done = 0
    for start, end in sorted(_spans(address, scheme)):
        if start >= done and REFERENCE.fullmatch(address, start, end):
            continue
        if start > done or not shown:
            shown += [address[done:start], HIDDEN]
        done = max(done, end)
    return "".join([*shown, address[done:]])


def _spans(address: str, scheme: re.Match[str]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each secret. They may overlap."""
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
        if end > name.end() and (is_secret_name(name.group(1)) or _holds_secret(rest, name.end(), end)):
            yield start + name.end(), start + until
    for word in NO_VALUE.finditer(rest) if "%" in rest else ():
        if rest[word.end() : word.end() + 1] != "=" and _holds_secret(rest, *word.span(1)):
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


def _holds_secret(text: str, start: int, end: int) -> bool:
    """Return whether this part, a value in a query, is an address or a query with a secret. It may have %XX."""
    if (inner := SCHEME.match(text, start, end)) is not None and text.find("@", inner.end(), end) >= 0:
        return HOST_ONLY.match(text, inner.end(), end) is None
    value = PLAIN.match(text, start, end)
    if value is None or "%" not in value.group():
        return False
    plain = unquote_plus(value.group())
    return any(is_secret_name(name.group(1)) for name in NAME.finditer(f"&{plain}")) or _in_text_once(plain) != plain
