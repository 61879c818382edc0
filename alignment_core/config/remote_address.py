"""The address of a remote: where machines share the artifacts of their stores."""

from __future__ import annotations

from alignment_core.addresses import has_secret

REMOTES = ("s3", "gs", "az", "file")


def check_remote(address: str) -> str:
    """Return the address without a final slash.

    Raises:
        ValueError: it is not the address of a bucket or folder, or holds credentials.
    """
    scheme, found, rest = address.partition("://")
    if not found or scheme not in REMOTES or not rest.strip("/"):
        raise ValueError("expected an address such as s3://bucket/prefix, gs://…, az://… or file:///folder")
    if scheme != "file" and rest.startswith("/"):
        raise ValueError(f"the address names no bucket, expected {scheme}://bucket/prefix")
    if ".." in rest.split("/"):
        raise ValueError("the address goes up with `..`, so that it does not say where it is")
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError("a file address has three slashes and an absolute path: file:///shared/artifacts")
    if has_secret(address) or (scheme != "file" and ("@" in rest or "?" in rest)):
        raise ValueError("the address holds credentials. They belong in the environment, where the run finds them")
    return address.rstrip("/")
