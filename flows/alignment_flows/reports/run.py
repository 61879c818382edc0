"""The report of a run in Prefect: the adapter and how to use it, the metrics before and after, and the lineage."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from alignment_core.config import PipelineConfig
from alignment_core.evaluation.promotion import Promotion
from alignment_core.execution.build import StageResult
from alignment_core.markdown import Markdown, code, message, plain, table
from alignment_core.texts import percent
from alignment_flows.progress import tolerate_server_outage
from alignment_flows.reports.result import result_section
from alignment_flows.reports.run_page import gains, write_run_page


def publish_run_report(config: PipelineConfig, built: Mapping[str, StageResult], promotion: Promotion | None) -> None:
    """Write the page of the run into the store, and publish a short version as a Prefect artifact of the flow run."""
    place = None
    try:
        place = write_run_page(config, built, promotion)
    except OSError as error:
        get_run_logger().warning("could not write the report of the run: %s", error)
    with tolerate_server_outage():
        report = run_report(config, built, promotion, place)
        create_markdown_artifact(report, key="run-report", description=f"{config.name}: the adapter")


def run_report(
    config: PipelineConfig, built: Mapping[str, StageResult], promotion: Promotion | None, page: Path | None = None
) -> str:
    """Return the report of a finished run as markdown.

    Args:
        config: the settings of the run.
        built: its stages by their names in the plan, parents before children.
        promotion: the result of the gate; None if the run has no gate.
        page: the page with plots and responses side by side, if it was written.
    """
    parts = [
        f"# {config.name}",
        *result_section(built),
        _headline(built),
        *([] if page is None else [f"With plots, and responses side by side: {code(page)}"]),
        *_promoted(promotion),
        *_listener_errors(built),
        "## The adapter",
        _usage(config, built["optimize"]),
        "## Before and after",
        _gain(built),
        *win_rates(built),
        "## Lineage",
        _lineage(built),
    ]
    return "\n\n".join(parts) + "\n"


def _headline(built: Mapping[str, StageResult]) -> str:
    new = [name for name, stage in built.items() if not stage.cached]
    if not new:
        return "**Nothing to do**: every stage is already in the store."
    return f"Built {len(new)} of {len(built)} stages in this run: {', '.join(new)}."


def _promoted(promotion: Promotion | None) -> Iterator[str]:
    if promotion is None:
        return
    yield f"## {'Promoted' if promotion.passed else 'Not promoted'}"
    if promotion.aliases:
        yield f"The model is now {' and '.join(f'`{alias}`' for alias in promotion.aliases)}."
    yield "\n".join(f"- {message(reason)}" for reason in promotion.reasons)


def _listener_errors(built: Mapping[str, StageResult]) -> Iterator[str]:
    """Yield a section on listeners, such as trackers, that failed in this run."""
    lines = [f"- {name}: {message(fault)}" for name, stage in built.items() for fault in stage.listener_errors]
    if lines:
        yield "## Listener errors"
        yield "\n".join(lines)


def _usage(config: PipelineConfig, policy: StageResult) -> str:
    place = policy.artifact.uri
    lines = [
        f"The adapter of {code(config.model.base)} is in {code(place)}, a PEFT folder in safetensors.",
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
        "To export it for other tools, with the tokenizer and the end-of-turn tokens:\n\n"
        f"```bash\n{command} --to vllm    # or merged, adapter, gguf, ollama\n```"
    )
    return "\n\n".join(lines)


def _gain(built: Mapping[str, StageResult]) -> str:
    """Return the held-out metrics of each model as a table."""
    found = gains(built)
    lines = [f"| {' | '.join(found.head)} |", "| --- |" + " --- |" * (len(found.head) - 1)]
    lines += [f"| {' | '.join(map(plain, row))} |" for row in found.rows]
    return "\n".join(lines)


def win_rates(built: Mapping[str, StageResult]) -> Iterator[str]:
    """Yield a table of the win rates of the model by judge, on the same prompts, if there are any."""
    lines = []
    for opponent, name in (("the SFT model", "over_sft"), ("production", "over_production")):
        metrics = built[name].metrics if name in built else {}
        for judge, rate in metrics.get("win_rate", {}).items():
            interval = f"{100 * rate['low']:.1f} to {percent(rate['high'], 1)}"
            counts = " / ".join(str(rate[outcome]) for outcome in ("wins", "ties", "losses"))
            lines.append(f"| {opponent} | {plain(judge)} | {percent(rate['rate'], 1)} | {interval} | {counts} |")
    if lines:
        head = "| against | judge | win rate | 95 % interval | wins / ties / losses |"
        yield "\n".join([head, "| --- | --- | --- | --- | --- |", *lines])


def _lineage(built: Mapping[str, StageResult]) -> str:
    names = {stage.artifact.key: name for name, stage in built.items()}
    rows = {}
    for name, stage in built.items():
        manifest = stage.artifact.manifest()
        read = ", ".join(names.get(key, key) for key in manifest.parents.values())
        state = "cached" if stage.cached else f"built in {stage.seconds:.0f} s"
        rows[name] = Markdown(f"{code(stage.artifact.key)} {state}" + (f", from {plain(read)}" if read else ""))
    return table("stage", rows)
