"""The command as users and scripts run it: streams, exit codes, and errors of one paragraph."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
from command import align_here
from small_run import small_run
from stored import add, named

from alignment_core.artifacts import ArtifactStore
from alignment_core.config_file import load_config
from alignment_core.data.dataset.folds import rows_in_fold
from alignment_core.data.dataset.splits import read_dataset
from alignment_core.execution.build import StageResult, build_here
from alignment_core.feedback import Rater, open_feedback
from alignment_core.forecast.predictions import Forecast, Prediction
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.planning.retrain import plan_retrain
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_flows.api import plan_retraining
from alignment_flows.cli.command import command
from alignment_flows.cli.show.run import command_line, show_cards, show_plan, show_run
from alignment_flows.planned_run import PlannedRun
from alignment_flows.serve.local.runs import FinishedRun
from alignment_flows.terminal.printable import printable_output

ALIGN = [sys.executable, "-c", "from alignment_flows.cli.app import main; main()"]
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
            "align: optimizer.beta: invalid value. got -1, expected greater than 0.",
        ),
        ("plan", "optimizer.bta=1", "align: optimizer.bta: unknown setting. Did you mean `beta`?"),
        ("plan", "model.base=/nowhere", "align: model.base: there is no such folder. got /nowhere, "),
        ("plan", "data.sources.0.path=/nowhere.jsonl", "align: "),
        ("plan", "rank={by: {name: wordlist}}", "align: rank: there are no responses to rank. Set `sample`, or "),
        ("plan", "sede=1", ": sede: unknown setting. Did you mean `seed`?"),
    ],
)
def test_error_is_one_paragraph_and_exit_code_2(write: Write, command: str, change: str, paragraph: str) -> None:
    done = align_here(command, write(), "--set", change)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert paragraph in done.stderr


def test_unknown_option_and_missing_file_are_exit_code_2(tmp_path: Path) -> None:
    assert align_here("run", "--no-such-option").returncode == 2
    done = align_here("run", tmp_path / "none.yaml")
    assert (done.returncode, done.stderr) == (
        2,
        f"align: {tmp_path}/none.yaml: there is no such file. Check the path.\n",
    )


def test_unreachable_server_is_reported_in_one_paragraph(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nothing listens on the discard port
    done = align("run", write())
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("align: PREFECT_API_URL: the Prefect server does not answer. got ")


def test_plan_names_the_stages_that_the_optimizer_needs(write: Write) -> None:
    stages = {
        name: list(plan_pipeline(load_config(write(optimizer={"name": name})), load_registry()).calls())
        for name in ("dpo", "kto", "ppo", "grpo", "rloo", "online_dpo")
    }
    assert stages == {
        "dpo": ["ingest", "sft", "reference", "optimize", "evaluate_sft", "evaluate", "over_sft"],
        "kto": ["ingest", "sft", "reference", "optimize", "evaluate_sft", "evaluate", "over_sft"],
        **{
            name: ["ingest", "sft", "reward", "optimize", "evaluate_sft", "evaluate", "over_sft"]
            for name in ("ppo", "grpo", "rloo", "online_dpo")
        },
    }


PLAN = """
import sys
from alignment_flows.cli.app import main
try:
    main()
finally:
    print([name for name in HEAVY if name in sys.modules], file=sys.stderr)
""".replace("HEAVY", repr(HEAVY))


def test_plan_predicts_memory_and_time_of_the_stages_to_run(write: Write, tmp_path: Path) -> None:
    config = write(optimizer={"name": "ppo", "rollouts": 2, "rollout_size": 4})
    done = subprocess.run([sys.executable, "-c", PLAN, "plan", config, "--json"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n"), "it loads neither torch nor Prefect"
    plan = json.loads(done.stdout)
    assert not any(stage["cached"] for stage in plan["stages"])
    predicted = {stage["name"]: stage["prediction"] for stage in plan["stages"]}
    assert predicted.pop("ingest") is None
    assert predicted.pop("over_sft") is None, "it only reads measurements"
    for stage in predicted.values():
        assert stage["fits"]
        assert stage["memory"]["base"] == 4 * plan["parameters"]
        assert stage["peak"] == sum(stage["memory"].values()) > 2e8
        assert stage["seconds"] > 0
        assert (stage["token_budget"], stage["gradient_checkpointing"]) == (4096, False)
    assert predicted["sft"]["memory"]["training"] == 12 * plan["trainable"]
    # The policy and the value model each train an adapter. The value model also has a head of the hidden size, 32.
    assert predicted["optimize"]["memory"]["training"] == 12 * (2 * plan["trainable"] + 32)
    assert not (tmp_path / "store").exists(), "planning stores nothing"


def test_plan_fits_into_a_terminal_of_80_columns_or_of_60(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write(optimizer={"name": "ppo"}))
    calls = plan_pipeline(config, load_registry()).calls()
    large = Prediction(
        rows=123_456, tokens=123_456_789, steps=1, token_budget=4096, gradient_checkpointing=2,
        memory={"base": 7 * 2**30, "passes": 2**29}, available=12 * 2**30, seconds=0, ample=False,
    )  # fmt: skip
    times = {"sft": 89.0, "reward": 90.0, "optimize": 5400.0}
    stages = {name: large.model_copy(update={"seconds": seconds}) for name, seconds in times.items()}
    forecast = Forecast(
        device="the CPU",
        parameters=10**9,
        trainable=10**7,
        rows={"prompts": 5},
        used={"records": 5, "of": 6},
        sampled={"records": 2000, "of": 10**9},
        held_out={"prompts": 64},
        raters={"count": 0},
        stages=stages,
        requests={},
        on_cpu=True,
        made=time.time() - 2 * 3600,
    )
    pulled = {"ingest": 2**20, "evaluate": 2**19}
    planned = PlannedRun(config.model_copy(update={"name": "run"}), calls, dict.fromkeys(calls), pulled, forecast)
    assert set(calls) - set(planned.to_build) == set(pulled)
    now = forecast.model_copy(update={"made": time.time()})
    show_plan(replace(planned, forecast=now), as_json=False)
    assert "Time: about 1.5 h in all." in capsys.readouterr().out.splitlines()
    show_plan(planned, as_json=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if str(config.store) not in line]
    advice = [line for line in lines if line.startswith("Advice: ")]
    assert [line[8:40] for line in advice] == ["The optimizer makes only 1 step:", "The model is evaluated on 2 held"]
    assert "Sources: used 5 of 6 records (83 %)." in lines
    assert "Rows, tokens and times are estimated from 2,000 of 1,000,000,000 records." in lines
    assert max(len(line) for line in lines if line not in advice) <= 80
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
    key = calls["sft"].key[:8]
    assert cells["sft"] == ["to", "run", key, "123,456", "123,456,789", "4096", "↻2", "7.50", "89", "s"]
    assert cells["ingest"][:2] == ["to", "pull"]
    assert "To pull from the remote: 2 artifacts, 1.5 MiB." in lines
    assert (cells["reward"][-2:], cells["optimize"][-2:]) == (["1.5", "min"], ["1.5", "h"])
    assert "Available memory: 12.00 GiB." in lines
    assert "Time: about 1.5 h in all, at the speed measured 2.0 h ago." in lines, "89 + 90 + 5400 seconds"
    monkeypatch.setenv("COLUMNS", "60")
    show_plan(planned, as_json=False)
    narrow = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sft "))
    assert narrow.split() == ["sft", "to", "run", "123,456", "123,456,789", "7.50", "89", "s"], "no key, no budget"
    assert len(narrow) <= 60


def test_next_command_can_be_copied_with_the_changed_settings() -> None:
    line = command_line("run", Path("first try.yaml"), ["seed=1", "name=two words"])
    assert line == "align run 'first try.yaml' --set seed=1 --set 'name=two words'"


def test_plan_names_the_stages_that_several_cards_share(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"max_prompts": 2, "max_new_tokens": 8, "lm_eval": {"tasks": ["arc_easy"]}}
    for settings, shown in (
        ({}, ""),
        (
            {"gpus": 2},
            "2 processes on the CPU share sft, reference, optimize, evaluate_sft, evaluate. "
            "Memory is for each of them. Times are those of one.\n"
            "Not shared: over_sft, lm_eval_sft, lm_eval.\n",
        ),
    ):
        config = load_config(write(evaluation=measured, **settings))
        calls = plan_pipeline(config, load_registry()).calls()
        show_cards(config, calls)
        assert capsys.readouterr().out == shown


def test_plan_of_a_retrain_mixes_its_votes_and_counts_requests(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fifth of the rows are older ones. An endpoint gets the answers to 2 held-out prompts in both orders."""
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
    done = align_here("plan", config, "--retrain")
    assert (done.returncode, done.stdout) == (0, "Skipped: 19 new votes, 20 needed\n")
    vote(range(19, 40))
    planned = plan_retraining(load_config(config))
    assert isinstance(planned, PlannedRun)
    show_plan(planned, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["requests"] == {"over_sft": 4}
    predicted = {stage["name"]: stage["prediction"] for stage in found["stages"]}
    # The judge is a separate reward model, trained on its own fold, that reads the responses.
    assert predicted["judge"]["steps"] > 0
    assert predicted["over_sft"]["rows"] == 2
    plan = plan_retrain(load_config(config), load_registry())
    assert isinstance(plan, Plan)
    assert plan.votes is not None
    build_here(plan.votes, Silent())
    new = len(rows_in_fold(read_dataset(tmp_path / "store" / "ingest" / plan.votes.key).train, 0.5, "rest").feedback)
    assert new > 10
    assert predicted["optimize"]["rows"] == new + round(new / 4)
    show_plan(planned, as_json=False)
    assert "Requests to http://127.0.0.1:9/v1: 4 by over_sft." in capsys.readouterr().out


def test_plan_refuses_what_cannot_fit(write: Write) -> None:
    done = align("plan", write(), "--set", "memory_gb=0.01")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "the stage does not fit into the memory of the CPU. got " in done.stderr
    assert "expected at most 0.01 GiB." in done.stderr


def test_plugins_list_describes_needs_and_settings() -> None:
    described = json.loads(align_here("plugins", "list", "--json").stdout)
    assert described["problems"] == []
    plugins = {plugin["name"]: plugin for plugin in described["plugins"]}
    assert plugins["dpo"]["needs"] == ["preferences", "reference"]
    assert plugins["wordlist"]["kind"] == "evaluator"
    beta = next(setting for setting in plugins["dpo"]["settings"] if setting["name"] == "beta")
    assert (beta["type"], beta["default"]) == ("float, > 0", 0.1)
    shown = align_here("plugins", "list").stdout
    assert "dpo · optimizer of alignment-flows" in shown
    assert "list[str]" in shown


def test_run_ends_with_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ArtifactStore(tmp_path)
    metrics: dict[str, dict[str, Any]] = {
        "ingest": {"used": {"records": 1200, "of": 1600}},
        "optimize": {"steps": 3, "loss": 1},
    }
    stages = {}
    for kind, measured in metrics.items():
        artifact = add(store, named("", kind, optimizer={"name": "dpo"}), metrics=measured)
        stages[kind] = StageResult(artifact, False, 1.0, measured)
    run = FinishedRun("run", None, stages, [])
    show_run(run, Path("my.yaml"), as_json=False)
    shown = capsys.readouterr().out.splitlines()
    assert "Used 1,200 of 1,600 records (400 left out)." in shown
    key = stages["optimize"].artifact.key[:12]
    assert shown[-5].startswith("Advice: The optimizer made only 3 steps: ")
    assert shown[-4:] == [
        f"Aligned adapter: {stages['optimize'].artifact.uri}",
        "Next:",
        f"  align chat my.yaml --model {key}",
        f"  align promote {key} --store {tmp_path}",
    ]
    show_run(run, Path("my.yaml"), as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["result"]["used"], [one["rule"] for one in answer["advice"]]) == (1200, ["few-steps"])


def test_data_check_reports_without_training(write: Write, tmp_path: Path) -> None:
    pairs = write().with_name("pairs.jsonl")
    done = align_here("data", "check", pairs, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["rows"]
    # 24 pairs on 24 different prompts, each in one of the splits
    assert rows["train"]["preferences"] + rows["held_out"]["preferences"] == 24
    shown = align_here("data", "check", pairs, "--out", tmp_path / "checked")
    assert shown.stdout.startswith("Used 24 of 24 records.\n")
    assert "|" not in shown.stdout
    assert shown.stdout.splitlines()[-1] == f"Report: {tmp_path / 'checked' / 'report.html'}"
    few = align_here("data", "check", pairs, "--max-records", 5)
    assert few.stdout.startswith(
        "Used 5 of 5 records.\nWarning: Stopped after 5 records of pairs.jsonl (max_records)\n"
    )
    assert (tmp_path / "checked" / "report.html").is_file()
    again = align_here("data", "check", pairs, "--out", tmp_path / "checked")
    assert (again.returncode, again.stderr) == (
        2,
        f"align: --out: the folder already exists. got {tmp_path / 'checked'}. Choose a new folder.\n",
    )
    assert few.stdout.splitlines()[-1] == "To see this as a page with plots: align data check … --out report.html"


def test_data_check_writes_a_page_alone_and_no_markup_to_the_terminal(tmp_path: Path) -> None:
    file, page = tmp_path / "rows.jsonl", tmp_path / "x.html"
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b", "mood": "ok"} for n in range(3)]
    file.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "q"}])))
    done = align_here("data", "check", file, "--out", page)
    assert done.stdout.splitlines()[-1] == f"Report: {page}"
    assert page.read_text().startswith("<!doctype html>")
    assert "Warning: Not read, and left out: mood (3 rows)." in done.stdout
    assert not re.search(r"`|\*\*|quarantine\.jsonl", done.stdout), "markup, or a file that was not written"
    again = align_here("data", "check", file, "--out", page)
    assert (again.returncode, again.stderr) == (
        2, f"align: --out: the file already exists. got {page}. Choose a new file.\n",
    )  # fmt: skip


def test_data_check_reads_the_data_of_a_config_file_as_a_run_does(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"q": f"q{n}", "a": "a", "ok": n % 2} for n in range(8)]
    votes = tmp_path / "votes.db"
    with open_feedback(str(votes)) as store:
        store.thumb(Rater("Ann"), store.add_response(({"role": "user", "content": "Hello?"},), "Hi.", "m"), up=True)
    file = small_run(tmp_path, tiny_model)
    settings = json.loads(file.read_text())
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"q": "long " * 200, "a": "a", "ok": 1}])))
    columns = {"prompt": "q", "completion": "a", "label": "ok"}
    settings["data"]["sources"] = [{"path": str(tmp_path / "rows.jsonl"), "columns": columns}, {"path": str(votes)}]
    file.write_text(json.dumps(settings))
    done = align_here("data", "check", file, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["used"] == {"records": 10, "of": 10}
    assert (report["fit"]["max_length"], report["fit"]["truncated"]) == (128, 1)
    assert [each["format"] for each in report["files"]] == ["columns", "labelled"]
    assert report["unit"] == "tokens"
    assert not (tmp_path / "store").exists()
    more = align_here("data", "check", file, "x.csv", "--threshold", "0", "--column", "a=b", "--held-out", "0.2")
    assert (more.returncode, more.stdout) == (2, "")
    assert "also x.csv, --column, --threshold, --held-out. Give the config file alone" in more.stderr


@pytest.mark.parametrize(
    ("arguments", "paragraph"),
    [
        (["/nowhere.jsonl"], "align: /nowhere.jsonl: there is no such file or folder."),
        (
            ["/nowhere.jsonl", "--column", "prompt"],
            "align: --column: the column mapping is incomplete. got prompt, expected OURS=",
        ),
    ],
)
def test_errors_in_data_check(arguments: list[str], paragraph: str) -> None:
    done = align_here("data", "check", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(paragraph)


# --- complete runs, with a temporary Prefect server ---------------------------------------------------------------


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts the command in a new process group, as a shell does. Kill leftovers at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [*ALIGN, *map(str, arguments)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            # A shell's background job ignores Ctrl-C, and so do its children. A job in a terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def children(process: int) -> list[int]:
    """Return the ids of all descendants of a process."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
    direct = [pid for pid, parent in pairs if parent == process]
    return direct + [pid for child in direct for pid in children(child)]


def gone(processes: list[int]) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in processes):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.ci
def test_failed_stage_is_reported_without_a_traceback(write: Write, tmp_path: Path) -> None:
    settings = write()
    (tmp_path / "pairs.jsonl").write_text("not json\n" * 5)
    done = align("run", settings)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(("align: ", "  "))


@pytest.mark.ci
@pytest.mark.parametrize(
    ("number", "returncode"),
    [
        pytest.param(signal.SIGINT, 130, id="ctrl-c"),
        pytest.param(signal.SIGTERM, 143, id="sigterm", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, id="kill -9", marks=pytest.mark.slow),
    ],
)
def test_stopped_run_leaves_no_process_and_keeps_its_checkpoint(
    write: Write,
    started: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    returncode: int,
) -> None:
    monkeypatch.delenv("ALIGN_FORK_SERVER", raising=False)
    long = write(sft={"batch_size": 1, "epochs": 200, "learning_rate": 1e-3}, checkpoint_seconds=0.5)
    run = started("run", long)
    place = tmp_path / "store" / ".building"
    deadline = time.monotonic() + 120
    while not list(place.glob("*/checkpoints/checkpoint-*")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    descendants = children(run.pid)
    assert len(descendants) >= 3, "Prefect's server, a fork server and a stage"
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # a terminal sends it to the process group
    else:
        os.kill(run.pid, number)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == returncode
    assert gone(descendants)
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert errors.splitlines()[-1].startswith("align: interrupted.")
    assert list(place.glob("*/checkpoints/checkpoint-*")), "the checkpoint must survive"


def test_texts_of_strangers_cannot_command_a_terminal(tmp_path: Path) -> None:
    """A name of a file, in an error and in a table, with the codes that clear the screen and set its title."""
    file = tmp_path / "a\x1b[2J\x1b]0;title\x07\x9b2K.jsonl"
    for row, code in (('{"prompt": "a\x1b[2J", "x\\u001b[2J": 1}\n' * 3, 2), ("not JSON", 2)):
        file.write_text(row)
        done = align_here("data", "check", file)
        assert done.returncode == code
        assert r"\x1b]0;title\x07" in (done.stdout + done.stderr).replace("\n", "")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout + done.stderr)


def test_json_output_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b[2J\x9b\x7f\t\u00e9"
    with printable_output():
        print(json.dumps({"name": text}, ensure_ascii=False))
        print(text)
    json_line, line, _ = capsys.readouterr().out.split("\n")
    assert json.loads(json_line)["name"] == "a\x1b[2J\ufffd\ufffd\t\u00e9"
    assert line == "a\\x1b[2J\ufffd\ufffd\t\u00e9"


def test_colors_reach_a_terminal_and_other_codes_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    with printable_output():
        print("\x1b[31mred\x1b[0m\x1b[1A\x1b[2K\x1b]52;c;YQ==\x07\x1b[2J")
    assert terminal.getvalue() == "\x1b[31mred\x1b[0m\x1b[1A\x1b[2K\\x1b]52;c;YQ==\\x07\\x1b[2J\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_file_system_that_refuses(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def run() -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    with pytest.raises(typer.Exit) as caught:
        run()
    assert caught.value.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"align: /some/file: {os.strerror(number)}. F")
    assert said.endswith(", or choose another folder.\n")
