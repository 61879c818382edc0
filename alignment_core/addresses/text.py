"""The secrets in a text: those of its addresses, and what else is one."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

from alignment_core.addresses.address import HIDDEN, SCHEME, SCHEME_PATTERN, in_address
from alignment_core.secret_names import is_secret_name

MOST_PASSES = 5
"""What one secret hides can have made another one hard to see."""

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
_PASSWORD_WITH_SPACES = r"[^\s/@:'\"`]*:(?=\S)(?!\d{1,5}(?:\W|$))[^@\r\n'\"`]{0,200}@\S*"
INSIDE = re.compile(
    "|".join(rf"(?<={mark}){SCHEME_PATTERN}[^{mark}]*(?:{mark}[^\s{mark}@]*@[^{mark}]*)?" for mark in "'\"`")
    + rf"|{SCHEME_PATTERN}(?:{_PASSWORD_WITH_SPACES}|\S*)"
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
CHANGE = re.compile(rf"[\w.\-]+=(?=\s*{SCHEME_PATTERN})")
"""The start of a changed setting, as in `feedback=postgresql://…`."""
ALL_REFERENCES = re.compile(r"(?i)['\"]?(?:(?:bearer|basic|token)\s+)?(?:\{\{[^{}]*\}\}|\$\{\w+\})+['\"]?")
NOTHING = re.compile(r"(?i)['\"]?(?:none|null|true|false)['\"]?[)\]}]*|[`.:()]+|\*\*\*[)\]}]*")


def in_text(text: str) -> str:
    """Hide the secrets of an address, or of each address in a text, and what else is one.

    A text that starts with an address is one.
    """
    for _ in range(MOST_PASSES):
        before, text = text, in_text_once(text)
        text = BARE.sub(lambda found: found.group(1) + _unless_reference(found.group(2)), text)
        if text == before:
            break
    return text


def in_text_once(text: str) -> str:
    """Hide the secrets of a text that can be seen as it is."""
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
        return in_address(text, in_text_once)
    if (change := CHANGE.match(text)) is not None:
        return change.group() + in_address(text[change.end() :], in_text_once)
    return INSIDE.sub(lambda found: in_address(found.group(), in_text_once), text)


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
    plain = unquote_plus(text)
    return text if in_text(plain) == plain else HIDDEN
