"""No secret in an address is shown, whatever it consists of, and nothing else is hidden."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy import make_url

from alignment_core.addresses import has_secret, hide_secrets, secret_places
from alignment_core.errors import ConfigError
from alignment_core.secret_names import is_secret_name

MARK = "Σ"
"""A letter that only secrets have."""
RAW = st.text(f"{MARK}/@?#: %;=!'a0", min_size=1).map(lambda text: f"{MARK}{text}{MARK}")
"""Secrets that break the rules of addresses."""
ANY = st.text(min_size=1).map(lambda text: f"{MARK}{text}{MARK}")
DATABASES = st.sampled_from(["postgresql", "postgresql+psycopg", "postgres", "mysql+pymysql"])
OTHERS = st.sampled_from(["https", "http", "s3", "redis", "mongodb+srv", "HTTPS"])
HOSTS = st.sampled_from(["db.example.com", "127.0.0.1:5432", "[::1]:80"])
NAMES = st.sampled_from(
    ["password", "api_key", "apiKey", "sig", "X-Amz-Signature", "X-Amz-Security-Token", "token", "access_token", "pwd",
     "sslpassword", "key", "AccountKey", "client-secret", "pass%77ord", "dsn", "pat", "pin", "ticket", "otp", "session",
     "sid", "code", "auth[password]", "auth%5Btoken%5D", "apitoken", "creds", "hdnea", "__token__", "token2",
     "credentials_base64", "AWSAccessKeyId", "SAMLResponse"]
)  # fmt: skip


@given(DATABASES, RAW, HOSTS)
def test_password_of_a_database_is_hidden_and_its_user_is_not(scheme: str, secret: str, host: str) -> None:
    shown = hide_secrets(f"{scheme}://ann:{secret}@{host}/votes")
    assert MARK not in shown
    assert shown.startswith(f"{scheme}://ann:***")


@given(OTHERS, RAW.map(lambda text: text.replace("/", "").replace("?", "").replace("#", "")), HOSTS)
def test_token_as_user_is_hidden(scheme: str, token: str, host: str) -> None:
    for user in (token, f"{token}:x-oauth-basic", f"x:{token}", f"{token}:{token}"):
        assert hide_secrets(f"{scheme}://{user}@{host}/rows.jsonl") == f"{scheme}://***@{host}/rows.jsonl"


@given(OTHERS | DATABASES, HOSTS, NAMES, RAW.map(lambda text: text.replace("&", "")))
def test_secret_in_the_query_is_hidden(scheme: str, host: str, name: str, secret: str) -> None:
    for written in (secret, quote(secret)):
        for query in (f"?{name}={written}&b=2", f"?a=1&{name}={written}&b=2"):
            shown = hide_secrets(f"{scheme}://{host}/x{query}")
            assert MARK not in shown
            assert quote(MARK) not in shown
            assert shown.endswith("***&b=2")


@given(ANY, ANY, ANY)
def test_whatever_a_library_writes_is_hidden(user: str, password: str, key: str) -> None:
    """SQLAlchemy quotes user, password and query. Then exactly the secrets are hidden."""
    assume("*" not in user)
    url = make_url("postgresql://host/name").set(username=user, password=password).update_query_dict({"api_key": key})
    shown = hide_secrets(url.render_as_string(hide_password=False))
    assert shown == url.set(password="***").update_query_dict({"api_key": "***"}).render_as_string(
        hide_password=False
    ).replace("%2A", "*")


@given(st.text() | st.builds("{}://{}/{}".format, OTHERS | DATABASES, HOSTS, st.text("ab/.-_?=&,@", max_size=12)))
def test_hiding_twice_changes_nothing(text: str) -> None:
    shown = hide_secrets(text)
    assert hide_secrets(shown) == shown
    assert has_secret(text) == (shown != text)


@pytest.mark.parametrize(
    "address",
    [
        "./feedback.db",
        "sqlite:////home/ann/votes:old@home.db",
        "postgresql://ann@db/votes?host=/run/postgresql",
        "postgresql+psycopg://postgres@/feedback?host=/tmp/x",
        "hf://owner/name@main",
        "https://host:8080/@me/rows.jsonl?page=2&tokenizer=gpt2",
        "http://[::1]:4200/api/a@b",
        "C:/Users/a:b@c/rows.jsonl",
        "s3://bucket/a:b@c/*.jsonl",
        "postgresql://u:{{ prefect.blocks.secret.votes }}@h/d",
        "https://user:${TOKEN}@host/x",
        "simplecache::https://host/x.jsonl",
        "host=h password={{ prefect.blocks.secret.votes }} dbname=d",
        "API_KEY=${KEY}",
        "sort_key=3, max_tokens=5, a password=",
        "key=3, mailto:me@home, git@host:owner/name, exit_code=2",
        "https://host/api/keys/rows.jsonl?exit_code=2#part-3",
        "s3://bucket/secret/rows-2026-11-30-part-00017.jsonl",
        "http://h/bot/token/next?u=https%3A%2F%2Fh%2Fx",
        "an answer: see https://host/x, or mail me@home",
        "see http://localhost:8000: refused",
        "zip://*.csv::s3://bucket/x.zip",
        "https://h/api.jsonl?kl_per_token=3&group_key=2",
        "listeners.0.api_token: this setting is missing, got api_key: None",
    ],
)
def test_address_without_a_secret_is_unchanged(address: str) -> None:
    assert hide_secrets(address) == address
    assert not has_secret(address)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read 'postgresql://u:a b@h/d': no", "cannot read 'postgresql://u:***@h/d': no"),
        ("feedback=postgresql://u:a b@h/d", "feedback=postgresql://u:***@h/d"),
        ("403, url=URL('https://h/x?sig=abc')", "403, url=URL('https://h/x?sig=***')"),
        ("GET https://u:p@h/x and https://k@i/y", "GET https://***@h/x and https://***@i/y"),
        ("zip://x.csv::s3://key:secret@bucket/x.zip", "zip://***@bucket/x.zip"),
        ("https://h/?to=https%3A%2F%2Fu%3Ap%40i", "https://h/?to=***"),
        ("no folder postgresql:/u:p@h/d", "no folder postgresql:/u:***@h/d"),
        ("https://h/#access_token=abc", "https://h/#access_token=***"),
        ("https://u:p@h/x?sig=a@b&c=1", "https://***&c=1"),
        ("authorization: Bearer abcdefgh.ijk", "authorization: Bearer ***"),
        ("{'Authorization': 'Basic dTpwYXNz'}", "{'Authorization': 'Basic ***'}"),
        ("invalid dsn: host=h password='a b' dbname=d", "invalid dsn: host=h password=*** dbname=d"),
        ("Server=h;Uid=u;Pwd=abc;Timeout=3", "Server=h;Uid=u;Pwd=***;Timeout=3"),
        ("AccountName=a;AccountKey=YQ==;EndpointSuffix=x", "AccountName=a;AccountKey=***;EndpointSuffix=x"),
        ("OPENAI_API_KEY=abc is wrong", "OPENAI_API_KEY=*** is wrong"),
        ("postgresql://h/d?options=-c%20password%3Dabc", "postgresql://h/d?options=***"),
        (f"no access with hf_{'a1' * 17}", "no access with hf_***"),
        ("https://api.telegram.org/bot123:AAE-x_y/send?chat=1", "https://api.telegram.org/bot123:***/send?chat=1"),
        ("https://hooks.slack.com/services/T0/B0/abc", "https://hooks.slack.com/services/T0/B0/***"),
        ("https://discord.com/api/webhooks/12/ab-c", "https://discord.com/api/webhooks/12/***"),
        (f"https://h/token/{'a1' * 10}/rows.jsonl", "https://h/token/***/rows.jsonl"),
        ("https://h/#/login?pin=123", "https://h/#/login?pin=***"),
        ("jdbc:postgresql://h/d?user=u&password=abc", "jdbc:postgresql://h/d?user=u&password=***"),
        ("jdbc:sqlserver://h:1;user=u;password=abc;a=b", "jdbc:sqlserver://h:1;user=u;password=***"),
        ("jdbc:oracle:thin:ann/abc@//h:1521/s", "jdbc:oracle:thin:ann/***@//h:1521/s"),
        ("oracle://ann/abc@h", "oracle://ann/***@h"),
        ("Driver=x;Uid=u;Pwd={a;b c};Port=1", "Driver=x;Uid=u;Pwd=***;Port=1"),
        ("mssql+pyodbc:///?odbc_connect=Driver%3Dx%3BPWD%3Dabc", "mssql+pyodbc:///?odbc_connect=***"),
        ("postgresql://u%3Aabc@h/d", "postgresql://u%3A***@h/d"),
        ("postgresql://:abc@h/d", "postgresql://:***@h/d"),
        ("redis://:abc@h/0", "redis://***@h/0"),
        ("postgresql:u:abc@h/d", "postgresql:u:***@h/d"),
        (r"https:\/\/u:abc@h\/x", r"https:\/\/***@h\/x"),
        ("//u:abc@h/x", "//***@h/x"),
        ("GET https%3A%2F%2Fu%3Aabc%40h%2Fx: no", "GET *** no"),
        ("https://h/?u=https%253A%252F%252Fu%253Aabc%2540h", "https://h/?u=***"),
        ('{"user": "u", "password": "a b", "n": 1}', '{"user": "u", "password": ***, "n": 1}'),
        ("the client said: X-Api-Key: abc", "the client said: X-Api-Key: ***"),
        ("Set-Cookie: sid=abc; Path=/", "Set-Cookie: ***"),
        ("align chat --password abc --port 1", "align chat --password *** --port 1"),
        (
            "PGPASSWORD=abc psql, HF_TOKEN=abc and EOS_TOKEN=</s>",
            "PGPASSWORD=*** psql, HF_TOKEN=*** and EOS_TOKEN=</s>",
        ),
        ("wrong token=abc", "wrong token=***"),
        (f"glpat-{'a1' * 10}, sk-ant-api03-{'a1' * 20}", "glpat-***, sk-***"),
        (f"eyJ{'a1' * 9}.eyJ{'a1' * 9}.{'a1' * 9}", "eyJ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA", "-----BEGIN RSA PRIVATE KEY-----***-----END RSA"),
        ("https://h/x;jsessionid=abc", "https://h/x;jsessionid=***"),
        ("https://ann:/abc@h/x", "https://***@h/x"),
        ("https://ann:12/abc@db.example.com/x", "https://***@db.example.com/x"),
        ("https://ann:#a?b@h/x", "https://***@h/x"),
        ("https:///ann:abc@h/x", "https:///***@h/x"),
        ("https://ann:abc", "https://ann:***"),
        ("https://ann:abc%40h/x", "https://***%40h/x"),
        ("postgresql://corp/ann:abc@h/d", "postgresql://corp/ann:***@h/d"),
        ("postgresql//ann:abc@h/d", "postgresql//***@h/d"),
        ("postgresql/ann:abc@h.example/d", "postgresql/ann:***@h.example/d"),
        ("filecache::https://ann:a b@h/x", "filecache::https://***@h/x"),
        ("cannot open postgresql://u:a b@h/d: no", "cannot open postgresql://u:***@h/d: no"),
        ("no 'postgresql://u:a'b@h/d' here", "no 'postgresql://u:***@h/d' here"),
        ("ann:abc@db.example.com/votes", "ann:***@db.example.com/votes"),
        ("https://h/?password=a&bc&n=1", "https://h/?password=***&n=1"),
        ("https://h/?password%3Dabc", "https://h/?***"),
        ("https://h/?to=x%3Ftoken%3Dabc", "https://h/?to=***"),
        ('https://h/?q={"token":"abc"}', 'https://h/?q={"token":***}'),
        ("GET /x?sig=abc", "GET /x?sig=***"),
        ("SharedAccessSignature=sv=2020-08-04&ss=b&sig=abc%3D", "SharedAccessSignature=***&ss=b&sig=***"),
        ("Authorization: Bearer abc", "Authorization: Bearer ***"),
        ("Authorization: abc was refused", "Authorization: *** was refused"),
        ('Authorization: Token token="abc"', "Authorization: Token ***"),
        ('Authorization: Digest username="a", response="abc"', "Authorization: ***"),
        ("X-Auth-Token: abc", "X-Auth-Token: ***"),
        ("{'token': 'abc', 'n': 1}", "{'token': ***, 'n': 1}"),
        (r"{\"token\": \"abc\"}", r"{\"token\": ***}"),
        ("[{name: tracker, token: abc}]", "[{name: tracker, token: ***"),
        (r'password="a\"bc"', "password=***"),
        ("password='a''bc' port=1", "password=*** port=1"),
        ("password: 'a bc", "password: ***"),
        ("password={{ x }}abc", "password=***"),
        ("API Key = abc", "API Key = ***"),
        ("user=u pass=abc", "user=u pass=***"),
        ("align --token abc, curl -u ann:abc https://h", "align --token ***, curl -u ann:*** https://h"),
        ("PREFECT_API_AUTH_STRING=admin:abc", "PREFECT_API_AUTH_STRING=***"),
        (f"pnu_{'a1' * 12}, AKIA{'A1' * 8}", "pnu_***, AKIA***"),
    ],
)
def test_secrets_inside_a_text(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown


def test_names_of_secrets() -> None:
    for name in (
        "api_key",
        "Authorization",
        "accessToken",
        "AccountKey",
        "listeners.0.headers.key",
        "db_password",
        "sentry_dsn",
        "GH_PAT",
        "pin",
        "service-ticket",
        "authorization_code",
        "vault.secret_id",
        "password2",
        "Cookie",
        "HFToken",
        "SAMLResponse",
        "client_masterkey",
    ):
        assert is_secret_name(name), name
    for name in (
        "key_variable",
        "max_new_tokens",
        "tokenizer",
        "eos_token",
        "keyword",
        "sslkey",
        "X-Amz-SignedHeaders",
        "exit_code",
        "password_file",
        "pin_memory",
        "sessions",
        "code_tests",
        "author",
        "kl_per_token",
        "base_key",
    ):
        assert not is_secret_name(name), name


def test_settings_and_their_names() -> None:
    given: dict[str, Any] = {
        "feedback": "postgresql://u:p@h/d",
        "listeners": [{"name": "tracker", "options": {"api_key": "abc", "pins": 1, "token": 12}}],
        "endpoint": {"key_variable": "OPENAI_API_KEY", "key": "{{ prefect.blocks.secret.k }}", "token": None},
        "seed": 0,
    }
    shown = hide_secrets(given)
    assert shown["feedback"] == "postgresql://u:***@h/d"
    assert shown["listeners"] == [{"name": "tracker", "options": {"api_key": "***", "pins": 1, "token": "***"}}]
    assert (shown["endpoint"], shown["seed"]) == (given["endpoint"], 0)
    assert list(secret_places(given)) == ["feedback", "listeners.0.options.api_key", "listeners.0.options.token"]
    assert not has_secret(shown)


@pytest.mark.parametrize(
    "part",
    [
        "?a=",
        "?sig=",
        "a",
        "https://",
        "?a=https://",
        "%25",
        "x:/y@",
        "'s3://",
        "&a=%3A%2F",
        "a.",
        "pwd",
        "Bearer ",
        "authorization:a ",
        "-eyJ",
        "sk-",
        "http:",
        "//a:",
        "cookie:",
        "password: ",
        "--password ",
        "/token/a",
        "/services/T",
        "A_TOKEN=",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_long_texts_take_no_time(part: str) -> None:
    started = time.process_time()
    for text in (part * 20_000, f"https://h/x {part * 20_000}", f"https://h/?u={part * 20_000}"):
        hide_secrets(text)
    assert time.process_time() - started < 10


def test_what_a_secrets_name_holds_is_hidden_with_all_in_it() -> None:
    given: dict[str, Any] = {"auth": ["u", "abc", None], "credentials": {"n": 0, "p": "abc"}, "https://u:abc@h": "x"}
    shown = {"auth": ["***", "***", None], "credentials": {"n": 0, "p": "***"}, "https://***@h": "x"}
    assert hide_secrets(given) == shown
    assert list(secret_places(given)) == ["auth", "credentials", "https://u:abc@h"]
    assert not has_secret(shown)


def test_a_secret_of_one_part_of_an_error_is_hidden_in_the_others() -> None:
    error = ConfigError("it has no such user", where="hf://se%20cret@a/b", got=ValueError("no user 'se cret'"))
    assert str(error) == "hf://***@a/b: it has no such user. got no user '***'."


def test_errors_show_no_secret() -> None:
    url = "postgresql://u:a b@h/d"
    error = ConfigError("cannot open it", where=url, got=OSError(f"no answer from {url!r}"), do=f"Check `{url}`")
    assert "a b" not in str(error) + repr(error.to_json())
    assert "postgresql://u:***@h/d" in str(error)
