"""Temporary folders: those of killed processes are removed by the next one, and those of running processes are not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment_core.errors import ConfigError
from alignment_core.temporary import temporary_folder

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import sys
from alignment_core.temporary import temporary_folder
with temporary_folder("held") as folder:
    (folder / "large").mkdir()
    (folder / "large" / "weights").write_text("w")
    (folder / "large").chmod(0)
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files, here and in new processes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def holder(system: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has a temporary folder, made an hour ago."""
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        folder = Path(it.stdout.readline().strip())
        age(folder)
        yield it, folder
        it.kill()


def age(folder: Path) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(folder, (an_hour_ago, an_hour_ago))


def test_folder_is_private_and_goes_with_the_block(system: Path) -> None:
    with temporary_folder("mine") as folder:
        assert folder.parent == system / f"alignment-flows-{os.geteuid()}"
        assert folder.name.startswith("mine-")
        assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}
        (folder / "file").touch()
    assert list(folder.parent.iterdir()) == []


def test_folder_of_a_killed_process_goes_with_the_next(holder: tuple[subprocess.Popen[str], Path]) -> None:
    process, left = holder
    with temporary_folder("mine"):
        assert left.is_dir(), "its process still runs"
    process.kill()
    process.wait()
    with temporary_folder("mine") as folder:
        assert list(folder.parent.iterdir()) == [folder]


def test_new_folder_may_not_be_locked_yet(holder: tuple[subprocess.Popen[str], Path]) -> None:
    process, left = holder
    process.kill()
    process.wait()
    os.utime(left)
    with temporary_folder("mine"):
        assert left.is_dir()


def test_links_are_not_followed(system: Path) -> None:
    mine = system / "mine"
    (mine / "inner").mkdir(parents=True)
    (mine / "inner").chmod(0o755)
    with temporary_folder("first") as folder:
        parent = folder.parent
    (parent / "link").symlink_to(mine)
    (parent / "left").mkdir()
    (parent / "left" / "link").symlink_to(mine / "inner")
    age(parent / "left")
    age(mine)
    with temporary_folder("second") as folder:
        assert {path.name for path in parent.iterdir()} == {"link", folder.name}
    assert (mine / "inner").stat().st_mode & 0o777 == 0o755


def test_folder_that_others_can_open_is_refused(system: Path) -> None:
    parent = system / f"alignment-flows-{os.geteuid()}"
    parent.mkdir()
    parent.chmod(0o755)
    with (
        pytest.raises(ConfigError, match=r"not one that only you can open.* set TMPDIR to another folder"),
        temporary_folder("mine"),
    ):
        pass
    parent.rmdir()
    for make in (lambda: parent.symlink_to(system), lambda: parent.symlink_to(system / "none"), parent.touch):
        make()
        with pytest.raises(ConfigError, match="not one that only you can open"), temporary_folder("mine"):
            pass
        parent.unlink()


def test_no_other_code_makes_temporary_folders() -> None:
    """A folder from `tempfile` stays for good if its process is killed. A file without a name does not."""
    makers = re.compile(r"\b(TemporaryDirectory|mkdtemp|mkstemp|NamedTemporaryFile)\b")
    sources = [path for folder in ("alignment_core", "flows", "plugins") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 300
    found = {path.relative_to(ROOT).as_posix() for path in sources if makers.search(path.read_text(encoding="utf-8"))}
    assert found == {"alignment_core/temporary.py"}
