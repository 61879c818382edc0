"""Run cells in processes of their own, and add each one's line to the results as soon as it is done."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu_cases.results_file import ResultsFile

from alignment_core.processes.start import ENVIRONMENT
from on_smollm2.cells import ON_POLICY, Cell
from on_smollm2.chat_model import ChatModel, unpacked
from on_smollm2.data_sets import make
from on_smollm2.request import Request

BENCHMARKS = Path(__file__).resolve().parent.parent
ADAPTER = "adapter_model.safetensors"
SIDES = {"ours": "ours", "trl": "theirs"}
"""The module that trains with each side's library."""


class Runner:
    """Runs cells that are not in the results yet."""

    def __init__(self, arguments: argparse.Namespace, results: ResultsFile) -> None:
        self.arguments, self.results = arguments, results
        self.work: Path = arguments.work.resolve()  # the processes work in another folder
        self.base = unpacked(arguments.base, self.work)
        self.done = {line["case"]: line for line in results.read() if line["ok"]}
        self._model: ChatModel | None = None
        self._servers: dict[str, Server] = {}

    def line(self, cell: Cell) -> dict[str, Any]:
        """Return the result of a cell, after running it if it is not in the results. A failure is a result, too."""
        if cell.case in self.done:
            return self.done[cell.case]
        began = time.monotonic()
        line: dict[str, Any] = {"case": cell.case, "device": machine(self.arguments.device)}
        try:
            line |= self._train(cell) | {"judged": self.ask("judge", cell)}
            line |= {"ok": True, "error": None}
            self.done[cell.case] = line
        except Failed as error:
            line |= {"ok": False, "error": str(error)}
        self.results.append(line)
        print(f"{cell.side} {cell.optimizer}, seed {cell.data.seed}: {time.monotonic() - began:.0f} s", flush=True)
        if not line["ok"]:
            print(f"  failed: {line['error']}", flush=True)
        return line

    def _train(self, cell: Cell) -> dict[str, Any]:
        about = {"date": datetime.now().isoformat(timespec="seconds"), "versions": versions()}
        if cell.optimizer == "untouched":
            return about
        return about | self.ask(SIDES[cell.side], cell)

    def _request(self, cell: Cell) -> Request:
        reward = None
        if cell.optimizer in ON_POLICY:  # of both sides: with the same reward model, only the optimizers differ
            trained = replace(cell, side="ours", optimizer="reward", settings=())
            reward = self.work / "adapters" / trained.folder
            if not (reward / ADAPTER).exists():
                self.ask("ours", trained)
        data = make(cell.data, self._sampler, self.arguments.data, self.work)
        self._model = None
        return Request(cell, self.base, data, self.work / "adapters" / cell.folder, reward, self.arguments.device)

    def _sampler(self) -> ChatModel:
        """Return the untouched model, whose answers are compared."""
        if self._model is None:
            self._model = ChatModel(self.base, "bf16", self.arguments.device)
        return self._model

    def ask(self, module: str, cell: Cell) -> dict[str, Any]:
        """Return what a module of this package answers about a cell.

        Raises:
            Failed: it could not.
        """
        request = self._request(cell)
        name = "theirs, PPO" if (module, cell.optimizer) == ("theirs", "ppo") else module
        if name not in self._servers:
            self._servers[name] = Server(module, self._environment(name))
        if module in SIDES.values():
            shutil.rmtree(request.out, ignore_errors=True)
        return self._servers[name].ask(request)

    def _environment(self, name: str) -> dict[str, str]:
        found = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.arguments.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        if not name.startswith("theirs"):  # the environment of `align`'s stages
            return ENVIRONMENT | found
        folder = self.arguments.trl_ppo if name == "theirs, PPO" else self.arguments.trl
        if folder is not None:
            found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder.resolve()), found.get("PYTHONPATH", "")]))
        return found

    def end(self) -> None:
        for server in self._servers.values():
            server.end()


class Failed(Exception):
    """A process could not train or judge a cell."""


class Server:
    """A process that has imported one side's libraries, and forks for each request (`against_trl/world.py`)."""

    def __init__(self, module: str, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"on_smollm2.{module}"],
            cwd=BENCHMARKS,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, request: Request) -> dict[str, Any]:
        """Return the answer.

        Raises:
            Failed: there is none.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request.to_json()), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"failed": "the process ended"}
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def end(self) -> None:
        self._process.communicate()


def machine(device: str) -> str:
    """Return the name of the processor or of the GPU that computes."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else "CPU"


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "peft")}
