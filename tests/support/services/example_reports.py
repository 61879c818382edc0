"""Report pages with invented numbers: one of each kind, and extreme ones, for tests and for pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from random import Random
from typing import Any

from alignment_core.artifacts import ArtifactStore, Manifest, key_of
from alignment_core.config import PipelineConfig
from alignment_core.data.ingestion.check import check
from alignment_core.evaluation.promotion import Promotion
from alignment_core.evaluation.win_rate import win_rate
from alignment_core.execution.build import StageResult
from alignment_core.progress import Silent
from alignment_flows.reports.comparison import Comparison, Row, estimate
from alignment_flows.reports.comparison_page import write_comparison
from alignment_flows.reports.run_page import write_run_page

QUESTIONS = (
    "How do I keep basil alive on a window sill?",
    "What is the difference between weather and climate?",
    "Write one line to thank a colleague for covering my shift.",
)
BEFORE = (
    "Basil is a herb. Many people like basil. Give it light and water it when the top of the soil is dry.",
    "Weather is what happens today, and climate is the weather of other countries.",
    "Dear Sir or Madam, thank you for covering my shift.",
)
AFTER = (
    "Give it six hours of light, water it when the top of the soil is dry, and pinch off the tips every week.",
    "Weather is what happens today, and climate is what to expect over thirty years.",
    "Thank you for covering my shift: I owe you one!",
)
RIGHT_TO_LEFT = "ضع الريحان قرب نافذة مشمسة واسقه عندما تجف التربة"
START = "sft"
EXAMPLES = ("data", "run", "comparison")
EXTREMES = ("long-words", "promoted", "failed", "one-prompt", "twelve", "right-to-left", "stranger")


def write_examples(folder: Path, names: Sequence[str] = (*EXAMPLES, *EXTREMES)) -> dict[str, Path]:
    """Write the pages with these names into a folder and return them by name."""
    return {name: MAKERS[name](folder / name) for name in names}


def _data(folder: Path) -> Path:
    random, rows = Random(0), []
    for n in range(300):
        words = random.sample(AFTER[n % 3].split() + BEFORE[n % 3].split(), 12)
        sides = {"chosen": " ".join(words), "rejected": " ".join(words[: random.randint(2, 10)])}
        rows.append({"prompt": f"{QUESTIONS[n % 3]} ({n * 7919})", **sides, **({"mood": "ok"} if n % 9 == 0 else {})})
    rows += [{"prompt": "Half a record"}] * 7 + rows[:5]
    folder.mkdir(parents=True)
    (folder / "feedback.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check([str(folder / "feedback.jsonl")], out=folder / "checked")
    return folder / "checked" / "report.html"


def _long_words(folder: Path) -> Path:
    """Two files with thumbs for a word without end, pairs of very different lengths, and a column that is not read."""
    thumbs = [
        {"prompt": f"What is {n} plus {n}?", "completion": "sum" * 40 + f" {2 * n}", "label": n % 3 > 0}
        for n in range(12)
    ]
    pairs = [
        {"prompt": f"Name {n} towns.", "chosen": f"{n} towns: " + "Ulm, " * n, "rejected": "No.", "verdict": n}
        for n in range(12)
    ]
    folder.mkdir(parents=True)
    files = [folder / "thumbs.jsonl", folder / "pairs.jsonl"]
    for file, rows in zip(files, (thumbs, pairs), strict=True):
        file.write_text("\n".join(map(json.dumps, rows)))
    check(list(map(str, files)), out=folder / "checked")
    return folder / "checked" / "report.html"


def _run(folder: Path, promotion: Promotion | None = None) -> Path:
    random, place = Random(1), folder / "artifacts"
    store = ArtifactStore(place)
    prompts = [[{"role": "user", "content": f"{QUESTIONS[n % 3]}"}] for n in range(120)]
    sides = {
        name: [
            {"prompt": prompt, "response": said[n % 3] + f" ({n})", "reward": random.gauss(mean, 1)}
            for n, prompt in enumerate(prompts)
        ]
        for name, said, mean in (("evaluate_sft", BEFORE, 0.0), ("evaluate", AFTER, 0.4))
    }
    pairs = list(zip(sides["evaluate"], sides["evaluate_sft"], strict=True))
    verdicts = [1 if ours["reward"] > theirs["reward"] else -1 for ours, theirs in pairs]
    judged = [
        {"prompt": a["prompt"], "response": a["response"], "opponent": b["response"], "verdicts": {"reward": verdict}}
        for (a, b), verdict in zip(pairs, verdicts, strict=True)
    ]
    lengths = [sum(len(line["response"]) for line in lines) for lines in sides.values()]
    over = {"win_rate": {"reward": win_rate(verdicts).to_json()}, "length_ratio": lengths[1] / lengths[0]}
    kl = {"prompts": 120, "kl": 2.1, "kl_standard_error": 0.2, "perplexity": 9.8, "response_length": 24.0}
    report = json.loads((_data(folder / "sources").with_name("report.json")).read_text())
    made: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
        ("ingest", "ingest", {"used": report["used"]}, {"report.json": [report]}),
        ("sft", "sft", {}, {"metrics.jsonl": list(_steps(random, sft=True))}),
        ("optimize", "optimize", {}, {"metrics.jsonl": list(_steps(random))}),
        ("evaluate_sft", "evaluate", {**kl, "kl": 0.0}, {"responses.jsonl": sides["evaluate_sft"]}),
        ("evaluate", "evaluate", kl, {"responses.jsonl": sides["evaluate"]}),
        ("over_sft", "head_to_head", over, {"verdicts.jsonl": judged}),
    )
    built = {name: _put(store, kind, name, metrics, files) for name, kind, metrics, files in made}
    data = {"sources": [{"path": "feedback.jsonl"}]}
    settings = {"name": "house-plants", "model": {"base": "example/chat-1b"}, "data": data, "store": place}
    with chdir(folder):  # commands then name no store
        return write_run_page(PipelineConfig.model_validate(settings), built, promotion)


def _put(store: ArtifactStore, kind: str, name: str, metrics: dict[str, Any], files: dict[str, Any]) -> StageResult:
    config = {"optimizer": {"name": "dpo", "beta": 0.1, "learning_rate": 5e-5}, "of": name}
    key = key_of(stage=kind, version=1, config=config, parents={})
    manifest = Manifest(
        kind=kind, key=key, version=1, config=config, metrics=metrics, parents={}, seconds=95.0, peak_memory_bytes=2**31
    )
    with store.building(kind, key, Silent()) as building:
        for file, lines in files.items():
            (building.out / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return StageResult(building.publish(manifest), False, 95.0, metrics)


def _steps(random: Random, *, sft: bool = False, pace: float = 1.0) -> Iterator[dict[str, float]]:
    for step in range(1, 241):
        far = 1 - math.exp(-step * pace / 90)
        values = {"loss": 0.69 - 0.4 * far + random.gauss(0, 0.03), "grad_norm": abs(random.gauss(1, 0.2))}
        if not sft:
            values |= {"kl": 2.1 * far, "accuracy": 0.5 + 0.35 * far + random.gauss(0, 0.03)}
            values |= {"reward_chosen": 0.4 * far, "reward_rejected": -1.1 * far, "reward_margin": 1.5 * far}
        yield {"step": step, **values}


def _comparison(
    folder: Path, models: Sequence[str], prompts: int, *, said: str = "", judged: bool = True, failed: str = ""
) -> Path:
    random, rows, curves = Random(2), [], {}
    for place, model in enumerate((START, *models)):
        scores = [random.gauss(0.25 * place, 1) for _ in range(prompts)]
        lengths = [random.gauss(80 + 6 * place, 20) for _ in range(prompts)]
        verdicts = [1 if random.random() < 0.5 + 0.05 * place else -1 for _ in range(prompts)]
        rows.append(Row(
            model, is_start=model == START, artifact=f"optimize/{place:032x}",
            settings={} if model == START else {"name": model, "beta": 0.1},
            scores={"reward": estimate(scores)} if judged else {}, characters=estimate(lengths) if judged else None,
            win_rate={"reward": win_rate(verdicts).to_json()} if judged and place else {},
            metrics={"prompts": prompts, **({"kl": 1.1 * place, "kl_standard_error": 0.2} if judged else {})},
            seconds=60.0 * (place + 1), peak_memory=2**31, learnt_from={"preferences": 288},
        ))  # fmt: skip
        if place:
            steps = list(_steps(random, pace=0.5 + 0.2 * place))
            metrics = {name: name if judged else f"own_{name}" for name in steps[0] if name != "step"}
            curves[model] = {shown: [(step["step"], step[name]) for step in steps] for name, shown in metrics.items()}
    if failed:
        rows.append(Row(failed, error="the stage's process was killed by SIGKILL"))
    samples = [
        {
            "prompt": [{"role": "user", "content": QUESTIONS[n % 3]}],
            "answers": {
                model: {"response": said or (BEFORE if model == START else AFTER)[n % 3], "scores": {"reward": 0.25}}
                for model in (START, *models)
            },
        }
        for n in range(min(prompts, 24))
    ]
    write_comparison(Comparison([], rows, curves, samples), folder)
    return folder / "report.html"


MAKERS = {
    "data": _data,
    "run": _run,
    "comparison": lambda folder: _comparison(folder, ("dpo", "kto", "ppo"), 200),
    "long-words": _long_words,
    "promoted": lambda folder: _run(folder, Promotion(True, ("candidate",), ("passed",), {})),
    "failed": lambda folder: _comparison(folder, ("dpo",), 4, failed="ppo"),
    "one-prompt": lambda folder: _comparison(folder, ("dpo",), 1),
    "twelve": lambda folder: _comparison(folder, [f"optimizer-{n}" for n in range(12)], 500, said="word " * 2000),
    "right-to-left": lambda folder: _comparison(folder, ("مُحسِّن",), 40, said=RIGHT_TO_LEFT),
    "stranger": lambda folder: _comparison(folder, ("stranger",), 0, judged=False),
}
