"""The client of fork servers: ask one to fork a process, and follow that process.

This process uses the server at ALIGN_FORK_SERVER if there is one (`align up` starts one for all runs of its workers).
Otherwise it starts a server of its own, which ends with it.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

SHARED = "ALIGN_FORK_SERVER"
"""Environment variable with the path of the socket of a fork server that outlives this process."""
COMMAND = (sys.executable, "-P", "-m", "alignment_core.processes.fork_server")
"""The server. It needs one more argument, see its module."""
READ_BY_NO_LIBRARY = (
    "ALIGN_FORK_SERVER", "COLUMNS", "LINES", "OLDPWD", "PREFECT", "PWD", "PYTEST", "PYTHONPATH", "SHLVL",
    "TORCHINDUCTOR_CACHE_DIR", "_",
)  # fmt: skip
"""Prefixes of environment variables that may differ between client and server. No library reads them on import, and
the server compares PYTHONPATH itself. The libraries set TORCHINDUCTOR_CACHE_DIR in a client that imports them."""

READY_SECONDS = 0.3
"""Seconds in which a server whose imports are done answers."""
EXIT_SECONDS = 5.0
"""Seconds that a server without work has to end."""


class ForkedProcess:
    """A process that a fork server has forked. The interface is that of `subprocess.Popen`.

    The connection to the server carries signals in one direction and the exit code in the other. The server ends the
    process when the connection closes.
    """

    def __init__(self, connection: socket.socket, pid: int, module: str) -> None:
        self._connection, self._module = connection, module
        self.pid = pid
        self._returncode: int | None = None

    def poll(self) -> int | None:
        if self._returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if selector.select(0):
                    self._read()
        return self._returncode

    def wait(self, timeout: float | None = None) -> int:
        if self._returncode is None:
            self._connection.settimeout(timeout)
            try:
                return self._read()
            except TimeoutError as error:
                raise subprocess.TimeoutExpired(self._module, timeout or 0.0) from error
        return self._returncode

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # The server sends the signal: only it knows whether the process id is still that of the process.
        with suppress(OSError):
            self._connection.sendall(json.dumps({"signal": number}).encode() + b"\n")

    def _read(self) -> int:
        line = receive_line(self._connection)
        self._connection.close()
        # Without an answer the server itself was killed, and the process gets SIGTERM from the system.
        self._returncode = json.loads(line)["returncode"] if line else -signal.SIGKILL
        return self._returncode


class _OwnServer:
    """The fork server of this process. It exits when the channel to it closes."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(
                [*COMMAND, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=dict(environment),
            )
        self.owner = os.getpid()
        self.used = False
        self._environment = _imported_with(environment)

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Return whether the server was started with this environment."""
        return _imported_with(environment) == self._environment

    def connect(self) -> socket.socket:
        """Return a new connection to the server.

        Raises:
            OSError: the server has ended.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                socket.send_fds(self._channel, [b"c"], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        return ours

    def stop(self) -> None:
        """Tell the server to end when the processes that it has forked have ended."""
        self._channel.close()
        if self.owner == os.getpid():
            if not self.used:
                self._process.kill()  # it may still import
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS)


_lock = threading.Lock()
_own: _OwnServer | None = None


def fork_module(
    module: str,
    streams: tuple[int, int, int],
    passed: Sequence[int],
    environment: Mapping[str, str],
    *,
    wait: bool = True,
) -> ForkedProcess | None:
    """Fork a process that runs `module.main()` from a fork server.

    Args:
        module: the module.
        streams: file descriptors of stdin, stdout and stderr.
        passed: more file descriptors. Their numbers in the new process are its command-line arguments.
        environment: environment of the process.
        wait: whether to wait for a server that has not finished its imports.

    Returns:
        The process, or None if no fork server can be used.
    """
    request = {"module": module, "environment": dict(environment), "folder": os.getcwd(), "umask": _umask()}
    patience = None if wait else READY_SECONDS
    shared = os.environ.get(SHARED)
    if shared is not None:
        try:
            forked = _ask(_connect(Path(shared)), request, [*streams, *passed], patience)
        except TimeoutError:
            return None  # it is busy: a second server would import everything again
        except OSError:  # it has ended
            forked = None
        if forked is not None:
            return forked
    for _ in range(2):
        with suppress(OSError):
            server = _own_server(environment)
            if not server.fits(environment):
                return None
            forked = _ask(server.connect(), request, [*streams, *passed], patience)
            if forked is not None:
                server.used = True
                return forked
        if not wait:
            return None
        # It has ended, or its imports are out of date.
        stop_server()
    return None


def _ask(
    connection: socket.socket, request: Mapping[str, Any], files: Sequence[int], patience: float | None
) -> ForkedProcess | None:
    try:
        connection.sendall(digest_of(request["environment"]).encode() + b"\n")
        connection.settimeout(patience)
        if json.loads(receive_line(connection) or "{}").get("ready"):
            connection.settimeout(None)
            body = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(connection, [body], files)
            connection.sendall(body[sent:])
            answer = json.loads(receive_line(connection) or "{}")
            if "pid" in answer:
                return ForkedProcess(connection, answer["pid"], str(request["module"]))
    except OSError:  # a time-out is one
        connection.close()
        raise
    connection.close()
    return None


def _own_server(environment: Mapping[str, str]) -> _OwnServer:
    global _own
    with _lock:
        if _own is None or _own.owner != os.getpid():
            _own = _OwnServer(environment)
        return _own


@atexit.register
def stop_server() -> None:
    """Stop the fork server of this process, if it has one."""
    global _own
    with _lock:
        server, _own = _own, None
        if server is not None:
            server.stop()


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as short:
            connection.connect(short)
    except OSError:
        connection.close()
        raise
    return connection


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Provide a path of the same file that fits into the 107 characters that the path of a socket may have."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def digest_of(environment: Mapping[str, str]) -> str:
    """Return a digest of the environment variables that an imported library may have read."""
    read = {name: value for name, value in environment.items() if not name.startswith(READ_BY_NO_LIBRARY)}
    return sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def _imported_with(environment: Mapping[str, str]) -> tuple[str, str]:
    return digest_of(environment), environment.get("PYTHONPATH", "")


def receive_line(connection: socket.socket) -> bytes:
    """Return the next line, or what came before the connection closed. Nothing may follow the line yet."""
    line = b""
    while not line.endswith(b"\n"):
        try:
            more = connection.recv(65536)
        except ConnectionError:
            return b""
        if not more:
            break
        line += more
    return line


def _umask() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)
