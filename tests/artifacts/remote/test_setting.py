"""The setting `remote`: which addresses it takes, and that it holds no credentials."""

from __future__ import annotations

from typing import Any

import pytest

from alignment_core.config.remote_address import check_remote
from alignment_core.config_file import check_config
from alignment_core.errors import ConfigError


@pytest.mark.parametrize(
    "address", ["s3://bucket", "s3://bucket/a/prefix", "gs://bucket/x", "az://container", "file:///mnt/shared@home"]
)
def test_addresses(address: str) -> None:
    assert check_remote(address) == check_remote(f"{address}/") == address


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/mnt/shared", "an address such as s3://"),
        ("https://bucket.example.com", "an address such as s3://"),
        ("s3:///", "an address such as s3://"),
        ("file://shared/artifacts", "three slashes"),
        ("s3://KEY:SECRET@bucket/prefix", "credentials"),
        ("s3://TOKEN@bucket", "credentials"),
        ("s3://bucket/prefix?secret_key=SECRET", "credentials"),
        ("az://container/prefix?sig=SECRET", "credentials"),
    ],
)
def test_other_addresses_are_refused_and_no_secret_is_shown(address: str, words: str) -> None:
    raw: dict[str, Any] = {"model": {"base": "x"}, "data": {"sources": [{"path": "y"}]}, "optimizer": {"name": "dpo"}}
    with pytest.raises(ConfigError) as caught:
        check_config(raw, [f"remote={address}"])
    assert words in str(caught.value)
    assert "remote" in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert "TOKEN" not in str(caught.value)
