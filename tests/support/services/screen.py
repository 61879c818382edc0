"""A terminal for tests: a program runs in a pseudo-terminal, and what a person would see is kept."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TOKEN = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|\x1b\](.*?)\x07|([\r\n])|([^\x1b\r\n])", re.DOTALL)
PICTURE = "\x1b]picture\x07"
"""What a program writes so that the screen is kept as it is then."""


@dataclass
class Screen:
    """What is written at the cursor of a terminal. It has as many lines as it needs.

    Attributes:
        width: columns.
        lines: text of the lines, without trailing spaces.
        pictures: the lines at each `PICTURE`.
    """

    width: int
    lines: list[str] = field(default_factory=lambda: [""])
    pictures: list[list[str]] = field(default_factory=list)
    row: int = 0
    column: int = 0

    def write(self, text: str) -> None:
        """Interpret text as a terminal does. Colours are ignored.

        Raises:
            ValueError: a control sequence is not known.
        """
        for match in TOKEN.finditer(text):
            arguments, command, other, control, character = match.groups()
            if character:
                self._put(character)
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self._move(self.row + 1)
            elif other == "picture":
                self.pictures.append(self.shown())
            else:
                self._command(arguments, command)

    def shown(self) -> list[str]:
        """Return the lines up to the last that is not empty."""
        return "\n".join(self.lines).rstrip("\n").split("\n")

    def _put(self, character: str) -> None:
        if self.column == self.width:
            self._move(self.row + 1)
            self.column = 0
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = (line[: self.column] + character + line[self.column + 1 :]).rstrip()
        self.column += 1

    def _move(self, row: int) -> None:
        self.row = row
        self.lines += [""] * (row + 1 - len(self.lines))

    def _command(self, arguments: str, command: str) -> None:
        if command == "A":
            self._move(max(0, self.row - int(arguments or 1)))
        elif command == "K" and arguments == "2":
            self.lines[self.row] = ""
        elif command not in "mhl":
            raise ValueError(f"unknown control sequence: {arguments}{command}")


def run_in_terminal(
    command: Sequence[str],
    width: int,
    height: int = 40,
    environment: Mapping[str, str] | None = None,
    typed: str = "",
) -> tuple[int, str]:
    """Run a command in a pseudo-terminal of this size, and type into it. Return its exit code and what it wrote."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    unset = ("NO_COLOR", "CI", "COLUMNS", "LINES")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    process = subprocess.Popen(
        command,
        stdin=theirs, stdout=theirs, stderr=theirs,
        env={**inherited, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **(environment or {})},
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, typed.encode())
    written = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # the last process has closed the terminal
            break
        if not more:
            break
        written += more
    os.close(ours)
    return process.wait(), written.decode()


def python(script: str) -> list[str]:
    """Return the command that runs a Python script."""
    return [sys.executable, "-c", script]
