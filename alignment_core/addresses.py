"""What in an address or in a setting is a secret, and how to show it without.

A secret in an address is

- the password of a database (`postgresql://user:SECRET@host/name`): the user stays readable;
- user and password of any other address (`https://TOKEN@host`, `s3://KEY:SECRET@bucket`): either may be a token;
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

HIDDEN = "***"

# One slash is left where an address was taken for a path. A limit keeps the search in long words fast.
_SCHEME = (
    r"(?:[A-Za-z][A-Za-z0-9+.\-]{0,30}:(?:\\?/){1,2}|(?:https?|postgres(?:ql)?|mysql|s3|ftp|redis):(?=[^\s/@]{1,300}@))"
)
SCHEME = re.compile(rf"\s*{_SCHEME}")
DATABASES = {"postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle", "cockroachdb", "redshift"}
"""Schemes whose user is a name and no token. SQLAlchemy's parser reads them."""
PASSWORD = re.compile(r"([^:/]*):(.*)@", re.DOTALL)
QUOTED_PASSWORD = re.compile(r"([^:/@%]*)%3[Aa]([^/@]*)@")
ORACLE = re.compile(r"([^:/@]*)/([^@/]+)@")
"""User and password as Oracle writes them, which for other databases would be a host and a path."""
JDBC_ORACLE = re.compile(r"(?i)(\bjdbc:oracle:\w{1,10}:[^/@\s]*/)[^@\s]+(?=@)")
NO_SCHEME = re.compile(r"(?<![:\w/\\*])//[^\s/@:]*:[^\s/@]+(?=@)")
"""User and password of an address that begins with `//`."""
IN_PATH = re.compile(
    r"(/bot\d+:|/services/T\w+/B\w+/|/webhooks?/(?:\d+/)?|/webhookb2/)[^/?#\s]+"
    r"|(/(?:token|key|api_?key|secret|auth|ticket)/)(?=[\w\-]*\d)(?=[\w\-]*[A-Za-z])[\w\-]{20,}(?![\w.\-])"
)
"""A token in a path, as Telegram, Slack, Discord and Teams have it, or after a part that announces one."""
WORD = re.compile(r"[^\s'\"`<>]+")
QUOTED = re.compile(r"(?i)%3A%2F")
"""What shows that an address in a word is quoted with %XX."""
HOST_ONLY = re.compile(r"(\[[^\]@]*\]|[^:/?#@\[\]]*)(:\d{0,5})?([/?#]|$)")
"""The start of an address with a host, perhaps a port, and no user."""
AUTHORITY = re.compile(r"[^/?#]*@")
PLAIN = re.compile(r"[^?&;#]*")
NAME = re.compile(r"[?&;#]([^=&;#?]*)=")
INSIDE = re.compile(rf"(?<='){_SCHEME}[^']*|(?<=\"){_SCHEME}[^\"]*|(?<=`){_SCHEME}[^`]*|{_SCHEME}\S*")
"""An address inside a text. In quotes it ends with them, elsewhere at the next space."""
HEADER = re.compile(
    r"(?i)\b(Bearer\s+|authorization['\"]?\s*[:=]\s*['\"]?\w{1,20}\s+)[\w.~+/=\-]{8,}"
    r"|\b((?:set-)?cookie['\"]?\s*:\s*['\"]?)[^\s'\"][^'\"\r\n]*"
)
"""An authorization header or a cookie, or the value of the first."""
_LISTED = r"(?:password|passwd|pwd|passphrase|secret|api[_\-]?key|account_?key|access_?key|private_?key)"
_VALUE = r"('[^']+'|\"[^\"]+\"|\{\{[^{}]*\}\}|\{[^{}]+\}|[^\s;,&'\"]+)"
ASSIGNED = re.compile(
    rf"(?i)(?<![\w.?&#\-])((?:[\w.\-]{{0,40}}{_LISTED}|(?:\w{{1,20}}_)?(?:token|dsn|pin|pat|ticket|otp|sig|signature|jwt))"
    rf"\s?=\s?){_VALUE}"
)
"""The value of a secret in a list of settings, such as `host=db password=SECRET` or `Server=db;Pwd=SECRET`."""
SAID = re.compile(rf"(?i)(?<![\w.?&#\-])((['\"]?)[\w.\-]{{0,40}}{_LISTED}\2 ?: ?|--[\w\-]{{0,40}}{_LISTED} +){_VALUE}")
"""The same in JSON or YAML, and in a command."""
_KEY = r"[A-Za-z0-9_\-]"
TOKEN = re.compile(
    r"\b(hf_|gh[pousr]_|github_pat_|npm_|dckr_pat_|wandb_v1_|r8_)[A-Za-z0-9_]{20,}"
    rf"|\b(sk-|pypi-|glpat-|xox[a-z]-|dapi|AIza|ya29\.)(?={_KEY}{{0,200}}\d){_KEY}{{20,}}"
    rf"|\b(eyJ){_KEY}{{8,2000}}\.eyJ{_KEY}{{8,4000}}\.{_KEY}+"
    r"|(-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----)(?:(?!-----END)[\s\S])+"
)
"""A token whose issuer marks it as one (the Hub, GitHub, npm, Docker, W&B, Replicate, OpenAI, PyPI, GitLab, Slack,
Databricks, Google), a JSON web token, or a private key."""
VARIABLE = re.compile(rf"\b([A-Z][A-Z0-9_]{{2,60}}=){_VALUE}")
"""A variable of the environment with its value."""
CHANGE = re.compile(rf"[\w.\-]+=(?=\s*{_SCHEME})")
"""The start of a changed setting, as in `feedback=postgresql://…`."""

SECRET_ENDINGS = (
    "password", "passwd", "passphrase", "passcode", "passkey", "pincode", "secret", "signature", "credential",
    "credentials", "apikey", "appkey", "authkey", "accountkey", "accesskey", "secretkey", "privatekey", "sessionkey",
    "apitoken", "accesstoken", "authtoken", "sessiontoken", "sessionid", "session_id", "access_key_id", "access_id",
    "connection_string", "connectionstring", "samlresponse", "auth_code", "authorization_code", "verification_code",
    "access_code", "pin_code", "otp_code",
)  # fmt: skip
SECRET_WORDS = {
    "pass", "pwd", "pw", "pword", "passw", "userpass", "token", "key", "sig", "auth", "authorization", "bearer", "jwt",
    "sas", "dsn", "pat", "pin", "ticket", "otp", "totp", "cookie", "cookies", "csrf", "xsrf", "sid", "session", "cred",
    "creds", "hmac", "assertion", "webhook", "tgt", "hdnea", "hdnts", "hdntl",
}  # fmt: skip
"""Last words of names of secrets."""
SECRET_NAMES = {"code", "gda", "code_verifier", "accesskeyid", "awsaccesskeyid"}
"""Names of secrets that say something else inside a longer name, such as an `exit_code`."""
SECRET_PARTS = {"password", "passwd", "secret", "credential", "credentials"}
ABOUT = {"path", "file", "variable", "name", "env", "length", "policy", "type", "fraction", "count"}
"""Last words of names that are about a secret and hold none, such as `password_file`."""
REFERENCE = re.compile(r"([^:/@]*:)?(\{\{[^{}]*\}\}|\$\{\w+\})")
"""A reference to a secret in place of the secret: `{{ prefect.blocks.secret.NAME }}`, `${NAME}`."""
NO_SECRETS = re.compile(r"(bos|eos|pad|unk|sep|cls|mask|stop|start|end|image)_token|(sort|primary|cache)_key")
"""Names that end like a secret and are none."""


def is_secret_name(name: str) -> bool:
    """Return whether a value of this name is a secret, as in `api_key`, `X-Amz-Signature` or `sslpassword`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", unquote_plus(name)).lower()
    plain = re.sub(r"[^a-z0-9]+", "_", words).strip("_").rstrip("0123456789").rstrip("_")
    last = plain.rpartition("_")[2]
    if NO_SECRETS.fullmatch(plain) or last in ABOUT:
        return False
    named = plain.endswith(SECRET_ENDINGS) or last in SECRET_WORDS or plain in SECRET_NAMES
    return named or not SECRET_PARTS.isdisjoint(plain.split("_"))


def hide_secrets(value: Any) -> Any:
    """Return the JSON value with `***` in place of every secret: in an address, in a text, or under a secret's name.

    A text without a secret is returned unchanged, and so is the result of this function.
    """
    if isinstance(value, str):
        return _in_text(value)
    if isinstance(value, Mapping):
        return {name: HIDDEN if _is_secret(name, inner) else hide_secrets(inner) for name, inner in value.items()}
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
            if _is_secret(name, inner):
                yield from () if inner == HIDDEN else (place,)
            else:
                yield from secret_places(inner, place)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from secret_places(inner, f"{where}.{index}".lstrip("."))


def _is_secret(name: object, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not value:
        return False
    return is_secret_name(str(name)) and not REFERENCE.search(str(value))


def _in_text(text: str) -> str:
    """Hide the secrets of an address, or of each address in a text.

    A text that starts with an address is one.
    """
    for marked in (HEADER, TOKEN, IN_PATH):
        text = marked.sub(lambda found: next(filter(None, found.groups())) + HIDDEN, text)
    text = ASSIGNED.sub(_assigned, text)
    text = SAID.sub(lambda found: found.group(1) + _unless_reference(found.group(3)), text)
    text = VARIABLE.sub(_assigned, text)
    text = JDBC_ORACLE.sub(rf"\1{HIDDEN}", text)
    text = NO_SCHEME.sub(f"//{HIDDEN}", text)
    text = WORD.sub(_quoted, text) if QUOTED.search(text) else text
    if ":" not in text:
        return text
    if SCHEME.match(text):
        return _in_address(text)
    if (change := CHANGE.match(text)) is not None:
        return change.group() + _in_address(text[change.end() :])
    return INSIDE.sub(lambda found: _in_address(found.group()), text)


def _quoted(word: re.Match[str]) -> str:
    """Return the word, or that it is hidden: what in it is a secret shows only without the %XX."""
    text = word.group()
    if SCHEME.match(text) or not QUOTED.search(text):
        return text  # the query of an address is looked at there
    return HIDDEN if has_secret(unquote_plus(text)) else text


def _assigned(found: re.Match[str]) -> str:
    name, value = found.groups()
    return name + _unless_reference(value) if is_secret_name(name.rstrip("= ")) else found.group()


def _unless_reference(value: str) -> str:
    return value if REFERENCE.match(value.strip("'\"")) else HIDDEN


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
    kind = re.split(r"[+:]", scheme.group().strip().lower(), maxsplit=1)[0]
    if kind in DATABASES:
        found = (
            PASSWORD.match(rest) or QUOTED_PASSWORD.match(rest) or (ORACLE.match(rest) if kind == "oracle" else None)
        )
        if found is not None and found.group(2):
            yield start + found.start(2), start + found.end(2)
    elif not HOST_ONLY.match(rest):
        found = PASSWORD.match(rest) or AUTHORITY.match(rest)
        if found is not None and found.end() > 1:
            yield start, start + found.end() - 1
    end = 0
    for name in NAME.finditer(rest):
        if end < name.end():
            end = rest.find("&", name.end())
            end = len(rest) if end < 0 else end
        if end > name.end() and (is_secret_name(name.group(1)) or _holds_secret(rest, name.end(), end)):
            yield start + name.end(), start + end


def _holds_secret(text: str, start: int, end: int) -> bool:
    """Return whether this part, a value in a query, is an address with a secret. It may be written with %XX."""
    if (inner := SCHEME.match(text, start, end)) is not None and text.find("@", inner.end(), end) >= 0:
        return HOST_ONLY.match(text, inner.end(), end) is None
    value = PLAIN.match(text, start, end)
    if value is None or "%" not in value.group():
        return False
    plain = unquote_plus(value.group())
    return _in_text(plain) != plain
