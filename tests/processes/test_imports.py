"""A fork server notices what a new process would import differently."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignment_core.processes import imports
from alignment_core.processes.fork_client import digest_of
from alignment_core.processes.imports import Imports


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Imports]:
    (tmp_path / "imported_by_the_server.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(imports, "LIBRARIES", ("torch", "imported_by_the_server"))
    monkeypatch.setattr(imports, "WITHOUT_CUDA", ())
    made = Imports()
    made.load()
    yield made
    gc.unfreeze()
    del sys.modules["imported_by_the_server"]


def test_unchanged_installation_is_not_outdated(loaded: Imports) -> None:
    assert loaded.loaded
    assert not loaded.outdated()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: os.utime(folder / "imported_by_the_server.py", (1, 1)),
        lambda folder: (folder / "imported_by_the_server.py").unlink(),
        lambda folder: (folder / "new_package-1.0.dist-info").mkdir(),
    ],
)
def test_changed_or_installed_package_is_noticed(
    loaded: Imports, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    change(tmp_path)
    assert loaded.outdated()


def test_only_what_no_library_reads_may_differ_between_environments() -> None:
    here = {"OMP_NUM_THREADS": "1", "PWD": "/a"}
    assert digest_of(here) == digest_of({"PREFECT__FLOW_RUN_ID": "1", "PWD": "/b", "OMP_NUM_THREADS": "1"})
    assert digest_of(here) != digest_of(here | {"OMP_NUM_THREADS": "2"})
    assert digest_of(here) != digest_of(here | {"HF_HOME": "/elsewhere"})
    assert digest_of(here) != digest_of({"PWD": "/a"})


IMPORT = """
import os
from alignment_core.processes.fork_client import digest_of
before = digest_of(os.environ)
import alignment_core.execution.stage_process, alignment_core.stages.sft, alignment_core.stages.sample
print(before == digest_of(os.environ))
"""


@pytest.mark.ci
def test_process_that_has_imported_the_libraries_can_use_the_server() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_folders_may_be_added_to_pythonpath_if_they_hide_no_module(
    loaded: Imports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    added = tmp_path / "added"
    (added / "plugin").mkdir(parents=True)
    assert loaded.import_the_same("/ours")
    assert loaded.import_the_same(f"{added}:/ours:/missing")
    assert not loaded.import_the_same(str(added))
    (added / "torch").mkdir()
    assert not loaded.import_the_same(f"{added}:/ours")
    (added / "torch").rmdir()
    assert loaded.import_the_same(f"{added}:{tmp_path}:/ours"), "the same file"
    (added / "sitecustomize.py").touch()
    assert not loaded.import_the_same(f"{added}:/ours")
