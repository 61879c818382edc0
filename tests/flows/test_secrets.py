"""Marked secrets in every setting that takes an address: in no output, error, log, artifact, report or database."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from command import align_here
from local_server import serving
from served import ALIGN
from small_run import small_run

MARK = "M4RK"
CLOSED = "127.0.0.1:9"
"""An address at which nobody listens."""

DATABASES = [
    f"postgresql://ann:{MARK}@{CLOSED}/none",
    f"postgresql://ann:a {MARK}/b@{CLOSED}/none",
    f"postgresql://ann:a@{MARK}@{CLOSED}/none",
    f"postgresql://ann:a@b/{MARK}@{CLOSED}/none",
    f"postgresql://ann:a@b:{MARK}@{CLOSED}/none",
    f"postgresql://{CLOSED}/none?user=ann&password={MARK}",
    f"mysql+nodriver://ann:{MARK}@{CLOSED}/none",
    f"nosuch://{MARK}@{CLOSED}/none",
]
SOURCES = [
    f"http://{CLOSED}/rows.jsonl?sig={MARK}",
    f"http://{MARK}:x@{CLOSED}/rows.jsonl",
    f"http://{CLOSED}/*.jsonl?X-Amz-Signature={MARK}",
    f"https://ann:{MARK} x@{CLOSED}/rows.jsonl",
    f"nosuch://ann:{MARK}@host/rows.jsonl",
    f"s3://key:{MARK}/x@bucket/rows.jsonl",
    f"zip://rows.jsonl::http://ann:{MARK}@{CLOSED}/x.zip",
]


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """Serve a folder until the block ends. Yield its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serving(partial(Quiet, directory=folder)) as address:
        yield address


def check(*arguments: str | Path) -> None:
    done = align_here(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert MARK not in done.stdout + done.stderr
    assert len(done.stderr) > 20


@pytest.mark.parametrize("address", DATABASES)
def test_errors_about_a_feedback_store(address: str, tiny_model: Path, tmp_path: Path) -> None:
    config = small_run(tmp_path, tiny_model, feedback=address, sample={}, isolation="inline")
    check("feedback", "show", "--store", address)
    check("feedback", "export", tmp_path / "out", "--store", address)
    check("feedback", "import", tmp_path / "pairs.jsonl", "--store", address)
    check("plan", config, "--retrain")
    check("plan", config, "--set", f"data.sources=[{{path: '{address}'}}]")
    check("rank", config, "--by", "reward")


@pytest.mark.parametrize("address", [*SOURCES, *DATABASES])
def test_errors_about_a_source(address: str, tiny_model: Path, tmp_path: Path) -> None:
    config = small_run(tmp_path, tiny_model, data={"sources": [{"path": address}]})
    check("data", "check", address)
    check("plan", config)
    check("feedback", "import", address, "--store", tmp_path / "feedback.db")


@pytest.mark.parametrize("address", [*SOURCES, *DATABASES])
def test_errors_about_settings(address: str, tiny_model: Path, tmp_path: Path) -> None:
    config = small_run(tmp_path, tiny_model)
    quoted = json.dumps(address)
    for change in (
        f"seed={quoted}",
        f"store={quoted}",
        f"device={quoted}",
        f"data.sources.7.path={address}",
        f"model.base.x={address}",
        f"evaluation.endpoint={{model: m, url: {quoted}}}",
        f"listeners=[{{name: tracker, to: tensorboard, api_key: {MARK}}}]",
        f"listeners=[{{name: nosuch, url: {quoted}}}]",
        f"listeners.0.api_key='{MARK}",
        f"feedback: {address}",
        f"model.base={quoted}",
    ):
        check("plan", config, "--set", change)


@pytest.mark.ci
def test_run_shows_none_of_its_secrets(tiny_model: Path, tmp_path: Path) -> None:
    """All output and every file of a run, in the store, in Prefect's home with its database, and in the folder."""
    home, work = tmp_path / "prefect", tmp_path / "work"
    work.mkdir()
    listener = {"name": "tracker", "to": "tensorboard", "folder": str(work), "options": {"api_key": MARK}}
    with web_server(tmp_path) as host:
        config = small_run(
            tmp_path,
            tiny_model,
            feedback=DATABASES[0],
            listeners=[listener],
            data={
                "sources": [{"path": f"http://ann:{MARK}@{host}/pairs.jsonl?sig={MARK}"}],
                "held_out_fraction": 0.25,
            },
        )
        env = {**os.environ, "PREFECT_HOME": str(home), "OPENAI_API_KEY": MARK, "HF_TOKEN": MARK}
        shown = ""
        for command in ("plan", "run", "run"):
            done = subprocess.run(
                [*ALIGN, command, str(config)], cwd=work, env=env, capture_output=True, text=True, check=False
            )
            shown += done.stdout + done.stderr
            assert done.returncode == 0, shown
    assert "a listener failed and receives no more events of this stage" in shown.replace("\n", " ")
    assert MARK not in shown
    files = [file for folder in (home, work, tmp_path / "store") for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "prefect.db" for file in files)
    assert any(b"/pairs.jsonl?sig=***" in file.read_bytes() for file in files if file.name == "manifest.json")
    assert [file for file in files if MARK.encode() in file.read_bytes()] == []
