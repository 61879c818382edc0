"""The page of a whole run in Prefect: where the adapter is, how to use it, what it is made from, what it gained."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from alignment_core.config import PipelineConfig
from alignment_core.evaluation.promotion import Promotion
from alignment_core.stages.build import Built
from alignment_flows.progress import if_server_answers
from alignment_flows.report import numbers, table


def publish_run_report(config: PipelineConfig, built: Mapping[str, Built], promotion: Promotion | None) -> None:
    """Put the run's report on its page."""
    with if_server_answers():
        report = run_report(config, built, promotion)
        create_markdown_artifact(report, key="run-report", description=f"{config.name}: the adapter")


def run_report(config: PipelineConfig, built: Mapping[str, Built], promotion: Promotion | None) -> str:
    """The report of a finished run as markdown.

    Args:
        config: the settings of the run.
        built: its stages by the names of the plan, parents before children.
        promotion: what the gate's verdict led to; None where the run has no gate.
    """
    parts = [
        f"# {config.name}",
        _headline(built),
        *_promoted(promotion),
        *_untold(built),
        "## The adapter",
        _usage(config, built["optimize"]),
        "## Before and after",
        _gain(built),
        *_side_by_side(built),
        "## What it is made from",
        _lineage(built),
    ]
    return "\n\n".join(parts) + "\n"


def _headline(built: Mapping[str, Built]) -> str:
    new = [name for name, stage in built.items() if not stage.cached]
    if not new:
        return "**Nothing new**: every stage was in the store already."
    return f"{len(new)} of {len(built)} stages were built in this run: {', '.join(new)}."


def _promoted(promotion: Promotion | None) -> Iterator[str]:
    if promotion is None:
        return
    yield f"## {'Promoted' if promotion.passed else 'Not promoted'}"
    if promotion.aliases:
        yield f"It is {' and '.join(f'`{alias}`' for alias in promotion.aliases)} now."
    yield "\n".join(f"- {reason}" for reason in promotion.reasons)


def _untold(built: Mapping[str, Built]) -> Iterator[str]:
    """Listeners, such as trackers, that did not hear everything."""
    lines = [f"- {name}: {fault}" for name, stage in built.items() for fault in stage.untold]
    if lines:
        yield "## Not all was told"
        yield "\n".join(lines)


def _usage(config: PipelineConfig, policy: Built) -> str:
    place = policy.artifact.uri
    lines = [
        f"`{place}` is a PEFT folder in safetensors, trained on `{config.model.base}`.",
        "```python\n"
        "from pathlib import Path\n\n"
        "from peft import AutoPeftModelForCausalLM\n"
        "from transformers import AutoTokenizer\n\n"
        f'adapter = Path("{place.removeprefix("file://")}")\n'
        "model = AutoPeftModelForCausalLM.from_pretrained(adapter)\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{config.model.base}")\n'
        'tokenizer.chat_template = (adapter / "chat_template.jinja").read_text()\n'
        "```",
    ]
    store = Path(place.removeprefix("file://")).parents[1]
    command = f"align export {policy.artifact.key[:12]} --store {store} --out my-model"
    lines.append(
        "For others, with the tokenizer and the tokens that end an answer:\n\n"
        f"```bash\n{command} --to vllm    # or merged, adapter, ollama, hub\n```"
    )
    return "\n\n".join(lines)


def _gain(built: Mapping[str, Built]) -> str:
    """What was measured of each model on its own."""
    columns = {
        "before": ("evaluate_sft", "lm_eval_sft"),
        "after": ("evaluate", "lm_eval"),
        "production": ("evaluate_production",),
    }
    there = {
        head: {key: value for name in names if name in built for key, value in numbers(built[name].metrics)}
        for head, names in columns.items()
        if names[0] in built
    }
    lines = [f"| held-out metric | {' | '.join(there)} |", "| --- |" + " --- |" * len(there)]
    lines += [f"| {name} | {' | '.join(of.get(name, '') for of in there.values())} |" for name in there["after"]]
    return "\n".join(lines)


def _side_by_side(built: Mapping[str, Built]) -> Iterator[str]:
    """How often each judge prefers the model, on the same prompts."""
    lines = []
    for opponent, name in (("the SFT model", "over_sft"), ("production", "over_production")):
        metrics = built[name].metrics if name in built else {}
        for judge, rate in metrics.get("win_rate", {}).items():
            interval = f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f} %"
            counts = " / ".join(str(rate[outcome]) for outcome in ("wins", "ties", "losses"))
            lines.append(f"| {opponent} | {judge} | {100 * rate['rate']:.1f} % | {interval} | {counts} |")
    if lines:
        head = "| against | judge | win rate | 95 % interval | wins / ties / losses |"
        yield "\n".join([head, "| --- | --- | --- | --- | --- |", *lines])


def _lineage(built: Mapping[str, Built]) -> str:
    names = {stage.artifact.key: name for name, stage in built.items()}
    rows = {}
    for name, stage in built.items():
        manifest = stage.artifact.manifest()
        read = ", ".join(names.get(key, key) for key in manifest.parents.values())
        state = "cached" if stage.cached else f"built in {stage.seconds:.0f} s"
        rows[name] = f"`{stage.artifact.key}` {state}" + (f", from {read}" if read else "")
    return table("stage", rows)
