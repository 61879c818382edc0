"""Digests depend on content alone, and cached digests of large files are never stale."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignment_core.artifacts import digest
from alignment_core.artifacts.digest import file_digest, tree_digest

LARGE = digest.REMEMBERED_FROM + 1


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of files that were actually read."""
    seen: list[Path] = []
    real = digest.hash_file

    def counting(path: Path) -> str:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(digest, "hash_file", counting)
    return seen


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a file above the size limit and let its digest be cached at once, because its ctime cannot be set."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * LARGE)
    monkeypatch.setattr(digest, "SETTLED_SECONDS", 0.0)
    return path


def test_digest_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_large_file_is_read_once(large: Path, reads: list[Path]) -> None:
    expected = hashlib.sha256(b"a" * LARGE).hexdigest()
    assert [file_digest(large) for _ in range(3)] == [expected] * 3
    assert len(reads) == 1


def test_touched_or_copied_file_keeps_its_digest(large: Path, tmp_path: Path) -> None:
    before = file_digest(large)
    os.utime(large, (1, 1))
    copy = tmp_path / "elsewhere.bin"
    copy.write_bytes(large.read_bytes())
    assert file_digest(large) == file_digest(copy) == before


def test_change_is_detected_with_unchanged_size_and_mtime(large: Path) -> None:
    before, stat = file_digest(large), large.stat()
    time.sleep(0.02)
    with large.open("r+b") as file:
        file.write(b"b")
    os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest(large) != before


def test_digest_of_a_file_that_just_changed_is_not_cached(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "fresh"
    path.write_bytes(b"a" * LARGE)
    assert file_digest(path) == file_digest(path)
    assert len(reads) == 2


def test_unusable_cache_costs_only_time(large: Path, own_cache: Path) -> None:
    (own_cache / "alignment-flows").mkdir(parents=True)
    (own_cache / "alignment-flows" / "digests.sqlite").write_bytes(b"not a database" * 100)
    assert file_digest(large) == hashlib.sha256(b"a" * LARGE).hexdigest()


def test_concurrent_processes_share_the_cache(tmp_path: Path) -> None:
    for n in range(6):
        (tmp_path / f"{n}.bin").write_bytes(bytes([n]) * LARGE)
    code = (
        "import sys; from pathlib import Path; from alignment_core.artifacts import digest; digest.SETTLED_SECONDS = 0;"
        "print([digest.file_digest(path) for path in sorted(Path(sys.argv[1]).glob('*.bin'))])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {run.communicate()[0] for run in runs}
    assert answers == {f"{[hashlib.sha256(bytes([n]) * LARGE).hexdigest() for n in range(6)]}\n"}


def test_tree_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text("a")
        (tmp_path / name / "deep" / "b.txt").write_text("b")
    one, two = tmp_path / "one", tmp_path / "two"
    assert tree_digest(one) == tree_digest(two)
    assert tree_digest(one, reversed([one / "a.txt", one / "deep" / "b.txt"])) == tree_digest(one)
    assert tree_digest(one, [one / "a.txt"]) != tree_digest(one)
    (two / "a.txt").rename(two / "c.txt")
    assert tree_digest(one) != tree_digest(two)
