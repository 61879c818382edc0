"""A small real run: pairs that prefer a short answer, and the tiny model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import ALIGN, Served


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes the settings of the run, with changes, and its data `pairs.jsonl` beside them."""
    rows = [
        {
            "prompt": f"What is {n} plus {n}?",
            "chosen": f"It is {2 * n}.",
            "rejected": f"I do not know about {n}, sorry!",
        }
        for n in range(24)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def to_file(**changes: Any) -> Path:
        step = {"batch_size": 8, "learning_rate": 1e-3}
        config = {
            "name": "small",
            "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2}},
            "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}], "held_out_fraction": 0.25},
            "sft": step,
            "optimizer": {"name": "dpo", **step},
            "evaluation": {"max_prompts": 2, "max_new_tokens": 8},
            "store": str(tmp_path / "store"),
            "device": "cpu",
            **changes,
        }
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps(config))
        return path

    return to_file


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """What `align up` starts, for every test that needs it; `align down` ends it."""
    folder, home = tmp_path_factory.mktemp("workers"), tmp_path_factory.mktemp("prefect-home")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    here = Served(f"http://127.0.0.1:{port}", folder, home)
    env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | {"PREFECT_HOME": str(home)}

    def align(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*ALIGN, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)

    started = align("up", "--port", str(port))
    try:
        assert started.returncode == 0, started.stderr
        assert f"{here.url}/deployments" in started.stdout
        yield here
    finally:
        ended = align("down")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "ended: server, gpu, cpu\n"
    assert align("down").stdout == "nothing was running\n"
