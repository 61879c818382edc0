"""Which names say that a value is a secret, as `api_key` and `X-Amz-Signature` do."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

SECRET_ENDINGS = (
    "password", "passwd", "passphrase", "passcode", "passkey", "pincode", "secret", "signature", "credential",
    "credentials", "apikey", "appkey", "authkey", "accountkey", "accesskey", "secretkey", "privatekey", "sessionkey",
    "apitoken", "accesstoken", "authtoken", "sessiontoken", "sessionid", "session_id", "access_key_id", "access_id",
    "connection_string", "connectionstring", "samlresponse", "auth_code", "authorization_code", "verification_code",
    "access_code", "pin_code", "otp_code", "auth_string", "sharedkey", "masterkey", "signingkey", "encryptionkey",
    "servicekey", "resourcekey", "userkey", "clientkey", "licensekey", "seckey", "rlkey",
)  # fmt: skip
SECRET_WORDS = {
    "pass", "pwd", "pw", "pword", "passw", "userpass", "token", "key", "sig", "auth", "authorization", "bearer", "jwt",
    "sas", "dsn", "pat", "pin", "ticket", "otp", "totp", "cookie", "cookies", "csrf", "xsrf", "sid", "session", "cred",
    "creds", "hmac", "oauth", "assertion", "webhook", "tgt", "hdnea", "hdnts", "hdntl",
}  # fmt: skip
"""Last words of names of secrets."""
SECRET_NAMES = {"code", "gda", "code_verifier", "accesskeyid", "awsaccesskeyid"}
"""Names of secrets that say something else inside a longer name, such as an `exit_code`."""
SECRET_PARTS = {"password", "passwd", "secret", "credential", "credentials"}
ABOUT = {"path", "file", "variable", "name", "env", "length", "policy", "type", "fraction", "count"}
"""Last words of names that are about a secret and hold none, such as `password_file`."""
NO_SECRETS = re.compile(
    r"((.*_)?(per|next|first|last|new|on|likeliest|added|special|prompt|bos|eos|pad|unk|sep|cls|mask|stop|start|end|image|"
    r"audio|video)_)token|(sort|primary|foreign|group|cache|base|parent|artifact)_key"
)
"""Names that end like a secret and are none."""


def is_secret_name(name: str) -> bool:
    """Return whether a value of this name is a secret, as in `api_key`, `X-Amz-Signature` or `sslpassword`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", unquote_plus(name)).lower()
    plain = re.sub(r"[^a-z0-9]+", "_", words).strip("_").rstrip("0123456789").rstrip("_")
    last = plain.rpartition("_")[2]
    if NO_SECRETS.fullmatch(plain) or last in ABOUT:
        return False
    named = (
        plain.endswith(SECRET_ENDINGS)
        or plain.replace("_", "").endswith(SECRET_ENDINGS)
        or last in SECRET_WORDS
        or plain in SECRET_NAMES
    )
    return named or not SECRET_PARTS.isdisjoint(plain.split("_"))
