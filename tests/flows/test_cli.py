"""The command as people and scripts meet it: streams, exit codes, one paragraph for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignment_core.config_file import load_config
from alignment_core.data.dataset import read_dataset
from alignment_core.data.folds import in_fold
from alignment_core.feedback import Rater, open_feedback
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.build import run_here
from alignment_core.stages.plan import Plan, make_plan
from alignment_core.stages.plan_retrain import plan_retrain
from alignment_core.stages.prediction import Forecast, Prediction
from alignment_flows.show import show_plan

ALIGN = [sys.executable, "-c", "from alignment_flows.cli import main; main()"]
HEAVY = ("torch", "transformers", "prefect")

Write = Callable[..., Path]


def align(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ALIGN, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("command", "change", "paragraph"),
    [
        ("run", "optimizer.name=dppo", "align: optimizer.name: no installed optimizer has this name. got dppo, "),
        ("plan", "optimizer.name=dppo", "align: optimizer.name: no installed optimizer has this name. got dppo, "),
        (
            "plan",
            "optimizer.beta=-1",
            "align: optimizer.beta: the value does not fit. got -1, expected greater than 0.",
        ),
        ("plan", "optimizer.bta=1", "align: optimizer.bta: there is no such setting. Did you mean `beta`?"),
        ("plan", "model.base=/nowhere", "align: model.base: there is no such folder. got /nowhere, "),
        ("plan", "data.sources.0.path=/nowhere.jsonl", "align: "),
        ("plan", "rank={by: {name: wordlist}}", "align: rank: there is nothing to rank. Set `sample`, or "),
        ("plan", "sede=1", ": sede: there is no such setting. Did you mean `seed`?"),
    ],
)
def test_mistake_is_one_paragraph_and_exit_code_2(write: Write, command: str, change: str, paragraph: str) -> None:
    done = align(command, write(), "--set", change)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert paragraph in done.stderr


def test_unknown_option_and_missing_file_are_exit_code_2(tmp_path: Path) -> None:
    assert align("run", "--no-such-option").returncode == 2
    done = align("run", tmp_path / "none.yaml")
    assert (done.returncode, done.stderr) == (
        2,
        f"align: {tmp_path}/none.yaml: there is no such file. Check the path.\n",
    )


def test_server_that_does_not_answer_is_told_in_one_paragraph(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # the discard port: nobody listens
    done = align("run", write())
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("align: PREFECT_API_URL: the Prefect server does not answer. got ")


def test_plan_names_the_stages_that_the_optimizer_needs(write: Write) -> None:
    stages = {
        name: list(make_plan(load_config(write(optimizer={"name": name})), load_registry()).calls())
        for name in ("dpo", "kto", "ppo")
    }
    assert stages == {
        "dpo": ["ingest", "sft", "reference", "optimize", "evaluate_sft", "evaluate", "over_sft"],
        "kto": ["ingest", "sft", "reference", "optimize", "evaluate_sft", "evaluate", "over_sft"],
        "ppo": ["ingest", "sft", "reward", "optimize", "evaluate_sft", "evaluate", "over_sft"],
    }


def test_plan_predicts_memory_and_time_of_what_is_to_run(write: Write, tmp_path: Path) -> None:
    done = align("plan", write(optimizer={"name": "ppo", "rollouts": 2, "rollout_size": 4}), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads(done.stdout)
    assert not any(stage["cached"] for stage in plan["stages"])
    predicted = {stage["name"]: stage["prediction"] for stage in plan["stages"]}
    assert predicted.pop("ingest") is None
    assert predicted.pop("over_sft") is None, "it reads what was measured"
    for stage in predicted.values():
        assert stage["fits"]
        assert stage["memory"]["base"] == 4 * plan["parameters"]
        assert stage["peak"] == sum(stage["memory"].values()) > 2e8
        assert stage["seconds"] > 0
        assert (stage["token_budget"], stage["gradient_checkpointing"]) == (4096, False)
    assert predicted["sft"]["memory"]["training"] == 12 * plan["trainable"]
    # Policy and value model learn, each with its adapter; the value model has a head of the model's width, 32.
    assert predicted["optimize"]["memory"]["training"] == 12 * (2 * plan["trainable"] + 32)
    assert not (tmp_path / "store").exists(), "planning keeps nothing"


def test_a_plan_fits_into_a_terminal_of_80_columns(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(write(optimizer={"name": "ppo"}))
    calls = make_plan(config, load_registry()).calls()
    large = Prediction(
        rows=123_456, tokens=123_456_789, steps=1, token_budget=4096, gradient_checkpointing=True,
        memory={"base": 7 * 2**30, "passes": 2**29}, available=12 * 2**30, seconds=0,
    )  # fmt: skip
    times = {"sft": 89.0, "reward": 90.0, "optimize": 5400.0}
    stages = {name: large.model_copy(update={"seconds": seconds}) for name, seconds in times.items()}
    forecast = Forecast(
        device="the CPU", parameters=10**9, trainable=10**7, rows={"prompts": 5}, stages=stages, requests={}
    )
    show_plan(config.model_copy(update={"name": "run"}), calls, dict.fromkeys(calls), forecast, as_json=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if str(config.store) not in line]
    assert max(map(len, lines)) <= 80
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
    key = calls["sft"].key[:8]
    assert cells["sft"] == ["to", "run", key, "123,456", "123,456,789", "4096", "↻", "7.50", "89", "s"]
    assert (cells["reward"][-2:], cells["optimize"][-2:]) == (["1.5", "min"], ["1.5", "h"])
    assert "Of memory, 12.00 GiB may be taken." in lines


def test_plan_of_a_retrain_mixes_its_votes_and_counts_requests(write: Write, tmp_path: Path) -> None:
    """A fifth of the rows are older ones; an endpoint sees the answers to 2 held-out prompts both ways."""
    endpoint = {"url": "http://127.0.0.1:9/v1", "model": "judge"}
    measured = {"max_prompts": 2, "max_new_tokens": 8, "endpoint": endpoint, "judge_fraction": 0.5}
    retrain = {"min_votes": 20, "replay": 0.2}
    place = str(tmp_path / "feedback.db")
    config = write(optimizer={"name": "kto"}, gate={}, feedback=place, evaluation=measured, retrain=retrain)

    def vote(numbers: range) -> None:
        with open_feedback(place) as store:
            for n in numbers:
                asked = ({"role": "user", "content": f"Is {n} a number?"},)
                store.thumb(Rater("Ann"), store.add_response(asked, f"Yes, {n} is.", "m"), n % 2 == 0)

    vote(range(19))
    done = align("plan", config, "--retrain")
    assert (done.returncode, done.stdout) == (0, "Skipped: 19 new votes, 20 wanted\n")
    vote(range(19, 40))
    done = align("plan", config, "--retrain", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["requests"] == {"over_sft": 4}
    predicted = {stage["name"]: stage["prediction"] for stage in found["stages"]}
    # The judge's fold is a reward model of its own, which reads the responses.
    assert predicted["judge"]["steps"] > 0
    assert predicted["over_sft"]["rows"] == 2
    plan = plan_retrain(load_config(config), load_registry())
    assert isinstance(plan, Plan)
    assert plan.votes is not None
    run_here(plan.votes, Silent())
    new = len(in_fold(read_dataset(tmp_path / "store" / "ingest" / plan.votes.key).train, 0.5, "rest").feedback)
    assert new > 10
    assert predicted["optimize"]["rows"] == new + round(new / 4)
    assert "Requests to http://127.0.0.1:9/v1: 4 by over_sft." in align("plan", config, "--retrain").stdout


def test_plan_refuses_what_cannot_fit(write: Write) -> None:
    done = align("plan", write(), "--set", "memory_gb=0.01")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "the stage does not fit into the memory of the CPU. got " in done.stderr
    assert "expected at most 0.01 GiB." in done.stderr


def test_plan_loads_neither_torch_nor_prefect(write: Write) -> None:
    code = f"import sys; sys.argv = ['align', 'plan', {str(write())!r}]\nfrom alignment_flows.cli import main\n"
    code += f"try:\n    main()\nexcept SystemExit:\n    print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_plugins_list_describes_needs_and_settings() -> None:
    described = json.loads(align("plugins", "list", "--json").stdout)
    assert described["problems"] == []
    plugins = {plugin["name"]: plugin for plugin in described["plugins"]}
    assert plugins["dpo"]["needs"] == ["preferences", "reference"]
    assert plugins["wordlist"]["kind"] == "evaluator"
    beta = next(setting for setting in plugins["dpo"]["settings"] if setting["name"] == "beta")
    assert (beta["type"], beta["default"]) == ("float, > 0", 0.1)
    shown = align("plugins", "list").stdout
    assert "dpo · optimizer of alignment-flows" in shown
    assert "list[str]" in shown


def test_data_check_reports_without_training(write: Write, tmp_path: Path) -> None:
    pairs = write().with_name("pairs.jsonl")
    done = align("data", "check", pairs, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["rows"]
    # 24 pairs on 24 different prompts, each in one of the splits
    assert rows["train"]["preferences"] + rows["held_out"]["preferences"] == 24
    shown = align("data", "check", pairs, "--out", tmp_path / "checked")
    assert "# Data report" in shown.stdout
    assert (tmp_path / "checked" / "report.html").is_file()
    again = align("data", "check", pairs, "--out", tmp_path / "checked")
    assert (again.returncode, again.stderr) == (
        2,
        f"align: --out: the folder exists already. got {tmp_path / 'checked'}. Name a new one.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "paragraph"),
    [
        (["/nowhere.jsonl"], "align: /nowhere.jsonl: there is no such file or folder."),
        (
            ["/nowhere.jsonl", "--column", "prompt"],
            "align: --column: a column is not named. got prompt, expected OURS=",
        ),
    ],
)
def test_mistakes_in_data_check(arguments: list[str], paragraph: str) -> None:
    done = align("data", "check", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(paragraph)


# --- whole runs, with the temporary server of a user who has none --------------------------------------------------


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command in a process group of its own, as a shell does, and ends what a failed test leaves."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [*ALIGN, *map(str, arguments)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            # A background job of a shell ignores Ctrl-C and hands that down; a person's terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def children(process: int) -> list[int]:
    """Every process that descends from this one."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
    below = [pid for pid, parent in pairs if parent == process]
    return below + [pid for child in below for pid in children(child)]


def gone(processes: list[int]) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in processes):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.ci
def test_failed_stage_is_told_without_a_traceback(write: Write, tmp_path: Path) -> None:
    settings = write()
    (tmp_path / "pairs.jsonl").write_text("not json\n" * 5)
    done = align("run", settings)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(("align: ", "  "))


@pytest.mark.ci
@pytest.mark.parametrize(
    ("number", "returncode"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=["ctrl-c", "sigterm", "kill -9"],
)
def test_stopped_run_leaves_no_process_and_goes_on(
    write: Write, started: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: int, returncode: int
) -> None:
    long = write(sft={"batch_size": 1, "epochs": 200, "learning_rate": 1e-3}, checkpoint_seconds=0.5)
    run = started("run", long)
    place = tmp_path / "store" / ".building"
    deadline = time.monotonic() + 120
    while not list(place.glob("*/checkpoints/checkpoint-*")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    below = children(run.pid)
    assert len(below) >= 2, "a server and a stage"
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # a terminal sends it to the whole group
    else:
        os.kill(run.pid, number)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == returncode
    assert gone(below)
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert errors.splitlines()[-1].startswith("align: interrupted.")
    assert list(place.glob("*/checkpoints/checkpoint-*")), "the checkpoint must survive"
