"""Every block of docs/how-to/write-a-plugin.md runs in order in a clean environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from environments import build_wheel, make_environment

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "how-to" / "write-a-plugin.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+?)(, continued)?\n")


def test_every_block_is_a_file_or_a_command() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "python", "toml", "yaml", "text"}
    assert all(language in ("bash", "text") or FILE.match(block) for language, block in BLOCKS)


@pytest.mark.slow
def test_the_blocks_make_a_working_plugin(tmp_path: Path, tiny_model: Path) -> None:
    wheel = build_wheel(ROOT, tmp_path / "dist")
    bin_folder = make_environment(tmp_path / "env", wheel)
    folder = tmp_path / "alignment-simpo"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "MODEL": str(tiny_model),
        # Nothing is downloaded, because hatchling is already installed.
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    outputs = []
    for language, block in BLOCKS:
        if language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", block]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, block + done.stdout + done.stderr
            outputs.append(done.stdout)
        elif language != "text":  # what a command prints
            name, continued = FILE.match(block).groups()  # type: ignore[union-attr]
            with (folder / name).open("a" if continued else "w", encoding="utf-8") as file:
                file.write(FILE.sub("", block, count=1))
    output = "".join(outputs)
    assert "simpo · optimizer of alignment-simpo 0.1.0" in output
    assert "Aligned adapter: " in output
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"optimize", "evaluate"} <= {line["stage"] for line in events if line["event"] == "finished"}
    assert (folder / "dist" / "alignment_simpo-0.1.0-py3-none-any.whl").is_file()
