"""The memory of a card that is not in this machine: planned on the CPU, it is that of fake tensors on `cuda`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from public_models import MODELS

SUPPORT = Path(__file__).parent.parent / "support"


@pytest.fixture(scope="module")
def no_op_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled backend that does nothing."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: there is no g++")
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    torch, library = Path(found.origin).parent, tmp_path_factory.mktemp("no-op-cuda") / "no_op_cuda.so"
    paths = [f"-I{torch / 'include'}", f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}"]
    source = SUPPORT / "device" / "no_op_cuda.cpp"
    command = [compiler, "-std=c++20", "-shared", "-fPIC", *paths, source, "-ltorch_cpu", "-lc10", "-o", library]
    subprocess.run(command, check=True)
    return library


@pytest.mark.ci
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if later else []) for later, name in enumerate(MODELS)]
)
def test_planned_memory(no_op_cuda: Path, name: str) -> None:
    """Kept activations, recomputed ones, and a pass without gradients, in NF4 and bf16."""
    paths = [str(SUPPORT / "device"), str(SUPPORT / "models"), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, SUPPORT / "device" / "fake_cuda.py", name],
        env={**os.environ, "LD_PRELOAD": str(no_op_cuda), "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for found in json.loads(done.stdout):
        kept, recomputed, _ = found["cuda"]
        assert kept > 2 * recomputed > 0
        assert found["planned"] == pytest.approx(found["cuda"], rel=0.005)
