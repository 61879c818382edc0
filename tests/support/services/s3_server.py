"""An S3 server in a process of its own: moto's, which can be told to fail, and which can be stopped and started again.

Run as a program, it serves on the port that is its argument (0: any), and prints the port.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from urllib.request import urlopen

BUCKET = "shared-artifacts"
SECRET = "marked-secret-key"
FAIL, BREAK = "/fail-every/", "/break-off/"
App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class S3Server:
    """The server. Its content is lost when it ends, and kept while it is paused."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which a process finds the server and its credentials."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fail_every(self, requests: int) -> None:
        """Answer every so-manyth request with 503 without looking at it, 0: none, 1: all."""
        with urlopen(f"{self.endpoint}{FAIL}{requests}"):
            pass

    def break_off(self, after: int) -> None:
        """Let every answer break off after so many bytes, 0: none."""
        with urlopen(f"{self.endpoint}{BREAK}{after}"):
            pass

    def end(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Serve until the block ends, with the empty bucket `BUCKET`."""
    server = S3Server()
    try:
        import boto3

        names = {name: server.environment[name] for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")}
        boto3.client(
            "s3",
            endpoint_url=names["AWS_ENDPOINT_URL"],
            region_name=names["AWS_DEFAULT_REGION"],
            aws_access_key_id="someone",
            aws_secret_access_key=SECRET,
        ).create_bucket(Bucket=BUCKET)
        yield server
    finally:
        server.end()


def _failing(app: App) -> App:
    every, after, requests = 0, 0, count(1)

    def wrapped(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        nonlocal every, after
        path = environ["PATH_INFO"]
        if path.startswith(FAIL):
            every = int(path.removeprefix(FAIL))
        elif path.startswith(BREAK):
            after = int(path.removeprefix(BREAK))
        elif every and next(requests) % every == 0:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        else:
            answer = app(environ, start_response)
            return [b"".join(answer)[:after]] if after else answer
        start_response("200 OK", [("Content-Length", "0")])
        return [b""]

    return wrapped


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, _failing(DomainDispatcherApplication(create_backend_app)), threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
