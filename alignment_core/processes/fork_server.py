"""A process that has imported the libraries, and forks a child for each request. A child starts in a tenth of a second.

The argument is the path of a socket to listen at, for everyone who can open it, or the file descriptor of a channel
that brings connections. The server ends when the other end of the channel closes.

On each connection, the client names its environment. The server refuses an environment other than its own. Otherwise
it says that it is ready, once its imports are done. Then the client sends its request, a line of JSON with the file
descriptors of the child's streams attached. The answer is the process id of the child, then its exit code. Meanwhile
the client may send signals. If the connection closes, the child gets SIGTERM.
"""

from __future__ import annotations

import atexit
import importlib
import io
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from alignment_core.processes.fork_client import COMMAND, digest_of, receive_line, short_path
from alignment_core.processes.imports import Imports, extend_path

REQUEST_SECONDS = 10.0
IDLE_SECONDS = 600.0
"""A server that others can connect to gives its memory back after this time without a child."""
MAXIMUM_FILES = 8


@dataclass
class Request:
    """What a child shall run.

    Attributes:
        module: the module whose `main` is called.
        environment: environment of the child.
        folder: its working directory.
        umask: its umask.
        files: its stdin, stdout and stderr, and the file descriptors whose numbers are its arguments.
        forked: whether the child can use what the server has imported. Otherwise it becomes a new Python process.
    """

    module: str
    environment: dict[str, str]
    folder: str
    umask: int
    files: list[int] = field(default_factory=list)
    forked: bool = True


class Server:
    """Forks children and follows them until all have ended."""

    def __init__(self, entrance: socket.socket) -> None:
        self._entrance = entrance
        self._shared = bool(entrance.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        self._imports = Imports()
        self._environment = dict(os.environ)
        self._children: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._open = True

    def serve(self) -> Request | None:
        """Serve until the end. Return twice: None in the server, and in each child what it shall run."""
        wakeup, written = os.pipe()
        os.set_blocking(written, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._close())
        # Ctrl-C reaches the whole foreground process group. The clients decide what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._selector.register(self._entrance, selectors.EVENT_READ, self._enter)
        self._selector.register(wakeup, selectors.EVENT_READ, partial(_discard, wakeup))
        while self._open or self._children:
            ready = self._selector.select(self._patience())
            if not ready and self._patience() is not None:
                self._restart()
            for key, _ in ready:
                request: Request | None = key.data()
                if request is not None:
                    signal.set_wakeup_fd(-1)
                    os.close(wakeup)
                    os.close(written)
                    return request
            self._reap()
        return None

    def _patience(self) -> float | None:
        idle = self._shared and self._open and not self._children and self._imports.loaded
        return IDLE_SECONDS if idle else None

    def _restart(self) -> None:
        """Become a new server without any imports, unless there are children to follow."""
        if self._children:
            return
        self._entrance.set_inheritable(True)
        os.execve(sys.executable, [*COMMAND, str(self._entrance.fileno())], self._environment)

    def _enter(self) -> Request | None:
        connection = self._next_connection()
        if connection is None:
            return None
        try:
            connection.settimeout(REQUEST_SECONDS)
            if receive_line(connection).decode().strip() != digest_of(self._environment):
                self._refuse(connection)
                return None
            if not self._imports.loaded:
                self._imports.load()
            elif self._imports.outdated():
                self._refuse(connection)
                self._restart()
                return None
            _send(connection, ready=True)
            request = _receive(connection)
        except (OSError, ValueError, TypeError):  # the client has gone, or is none
            connection.close()
            return None
        if not self._imports.import_the_same(request.environment.get("PYTHONPATH", "")):
            for file in request.files:
                os.close(file)
            self._refuse(connection)
            return None
        if (pid := os.fork()) == 0:
            self._leave(connection)
            request.environment |= self._imports.changed
            request.forked = not self._imports.threads
            return request
        for file in request.files:
            os.close(file)
        self._children[pid] = connection
        _send(connection, pid=pid)
        self._selector.register(connection, selectors.EVENT_READ, partial(self._follow, pid, connection))
        return None

    def _next_connection(self) -> socket.socket | None:
        if self._shared:
            connection, _ = self._entrance.accept()
            return connection
        message, files, _, _ = socket.recv_fds(self._entrance, 1, 1)
        if not message:
            self._close(stop=False)
            return None
        return socket.socket(fileno=files[0])

    def _refuse(self, connection: socket.socket) -> None:
        _send(connection, ready=False)
        connection.close()

    def _leave(self, connection: socket.socket) -> None:
        """In a child: close what belongs to the server."""
        self._selector.close()
        for other in (self._entrance, connection, *self._children.values()):
            other.close()
        self._children.clear()

    def _follow(self, pid: int, connection: socket.socket) -> None:
        """Pass a signal on to a child, or SIGTERM if its client has gone."""
        line = receive_line(connection)
        if not line:
            self._selector.unregister(connection)
        self._signal(pid, json.loads(line)["signal"] if line else signal.SIGTERM)

    def _signal(self, pid: int, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self._children.pop(pid)
            with suppress(KeyError):  # its client has gone
                self._selector.unregister(connection)
            _send(connection, returncode=os.waitstatus_to_exitcode(status))
            connection.close()

    def _close(self, *, stop: bool = True) -> None:
        """Accept no more requests. Stop the children, or let them end."""
        if self._open:
            self._open = False
            self._selector.unregister(self._entrance)
        if stop:
            for pid in self._children:
                self._signal(pid, signal.SIGTERM)


def _receive(connection: socket.socket) -> Request:
    body, files, _, _ = socket.recv_fds(connection, 65536, MAXIMUM_FILES)
    if not body.endswith(b"\n"):
        body += receive_line(connection)
    return Request(**json.loads(body), files=list(files))


def _send(connection: socket.socket, **answer: int) -> None:
    with suppress(OSError):  # the client has gone
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _discard(pipe: int) -> None:
    os.read(pipe, 512)


def _run(request: Request) -> None:
    """Make this forked process like a new one, and run the module."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    streams, passed = request.files[:3], request.files[3:]
    for target, source in enumerate(streams):
        os.dup2(source, target)
        os.close(source)
    extend_path(request.environment.get("PYTHONPATH", ""))
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    os.umask(request.umask)
    arguments = [request.module, *map(str, passed)]
    if not request.forked or sys.modules["torch"].cuda._is_in_bad_fork():
        for file in passed:
            os.set_inheritable(file, True)
        os.execv(sys.executable, [sys.executable, "-P", "-m", *arguments])
    sys.stdin = io.TextIOWrapper(io.FileIO(0, "r", closefd=False), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
    sys.argv = arguments
    tempfile.tempdir = None
    sys.modules["numpy"].random.seed()
    importlib.import_module(request.module).main()
    # The rest of Python's own exit takes half a second: it frees every object of every library.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _entrance(argument: str) -> socket.socket:
    if argument.isdecimal():
        entrance = socket.socket(fileno=int(argument))
        entrance.set_inheritable(False)
        return entrance
    path = Path(argument)
    path.unlink(missing_ok=True)
    entrance = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_path(path) as short:
        entrance.bind(short)
    path.chmod(0o600)
    entrance.listen()
    return entrance


def main() -> None:
    request = Server(_entrance(sys.argv[1])).serve()
    if request is not None:
        _run(request)


if __name__ == "__main__":
    main()
