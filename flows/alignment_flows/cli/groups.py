"""The help of `align`: its commands in groups, in the order in which people need them, with examples."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer
from typer.core import TyperGroup

from alignment_core.addresses import hide_secrets

GROUPS = {
    "First steps": ("tour", "demo", "init", "data", "plan", "fit"),
    "Train and compare": ("run", "runs", "compare"),
    "Use a model": ("promote", "rollback", "chat", "export"),
    "Collect feedback and learn from it": ("sample", "rank", "feedback", "retrain"),
    "In the browser": ("up", "deploy", "down"),
    "What is stored and installed": ("artifacts", "plugins"),
}
EXAMPLES = {
    "tour": ("align tour", "align tour --auto"),
    "init": (
        "align init",
        "align init ./feedback.json --card 12gb",
        "align init ./votes.csv --model HuggingFaceTB/SmolLM2-135M-Instruct --card cpu --out votes.yaml",
    ),
    "data check": (
        "align data check ./feedback.json",
        "align data check my-model.yaml",
        "align data check ./ratings.csv --threshold 4",
        "align data check ./log.csv --column prompt=question --column completion=reply",
        "align data check hf://HuggingFaceH4/ultrafeedback_binarized --split train_prefs --max-records 500",
    ),
    "plan": ("align plan my-model.yaml", "align plan my-model.yaml --card 12gb"),
    "fit": ("align fit my-model.yaml --card 8gb --models Qwen/Qwen2.5-0.5B-Instruct",),
    "run": ("align run my-model.yaml", "align run my-model.yaml --set optimizer.name=kto --set optimizer.beta=0.2"),
    "compare": (
        "align compare my-model.yaml --optimizers dpo,kto --set kto.learning_rate=1e-4",
        "align compare my-model.yaml --grid optimizer.beta=0.05,0.1,0.3 --seeds 3",
    ),
    "runs": ("align runs", "align runs --store ./artifacts --json"),
    "promote": ("align promote my-model", "align promote 3f2a91 candidate --reason 'shorter answers'"),
    "rollback": ("align rollback", "align rollback candidate --reason 'answers too long'"),
    "chat": ("align chat my-model.yaml", "align chat my-model.yaml --model production --beside base"),
    "export": (
        "align export production --to merged --out my-model",
        "align export production --to gguf --quantize Q4_K_M --out my-gguf",
    ),
    "sample": ("align sample my-model.yaml", "align sample my-model.yaml --model production"),
    "rank": ("align rank my-model.yaml", "align rank my-model.yaml --by endpoint"),
    "plugins check": ("align plugins check dpo --set beta=0.2",),
    "plugins new": ("align plugins new my-loss", "align plugins new my-rule --kind evaluator"),
    "feedback export": ("align feedback export votes",),
    "artifacts prune": ("align artifacts prune --dry-run", "align artifacts prune --older-than 30"),
}
EXIT_CODES = (
    "Exit codes: 0 done · 1 a check or an optimizer failed · 2 you have to correct something; the message says what · "
    "130 stopped by Ctrl-C · 143 stopped by SIGTERM. A stopped run resumes when you start it again."
)
OTHER_NAMES = {
    "train": ("run",),
    "finetune": ("run",),
    "start": ("up",),
    "ui": ("up",),
    "serve": ("up", "chat"),
    "stop": ("down",),
    "validate": ("data check", "plan"),
}
"""Commands that people look for under a name that they have elsewhere."""
USAGE_ERROR: Any = typer.BadParameter.__base__
"""What typer raises about arguments. It has no public name for it."""
SHOWN_PACKAGES = ("torch", "transformers", "peft", "prefect")


class Commands(TyperGroup):
    """The commands of `align`, ordered and grouped."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        order = {name: group for group, names in GROUPS.items() for name in names}
        self.commands = {name: self.commands[name] for name in [*order, *self.commands] if name in self.commands}
        for name, command in self.commands.items():
            command.rich_help_panel = order.get(name)  # type: ignore[attr-defined]
        for path, command in self.paths():
            _without_types_of_flags(command)
            _with_plain_arguments(command)
            if path in EXAMPLES:
                command.epilog = "\n\n".join(("Examples:", *EXAMPLES[path]))
        _without_types_of_flags(self)
        self.epilog = EXIT_CODES

    def paths(self) -> Iterator[tuple[str, Any]]:
        """Yield every command with its name after `align`, such as `data check`."""
        for name, command in self.commands.items():
            yield name, command
            for inner, below in getattr(command, "commands", {}).items():
                yield f"{name} {inner}", below

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        with _without_secrets():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _without_secrets():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and (near := self._near(args[0])):
            ctx.fail(f"No such command '{args[0]}'. Did you mean {' or '.join(f'`align {name}`' for name in near)}?")
        return super().resolve_command(ctx, args)

    def _near(self, word: str) -> list[str]:
        """Return the commands with a name like this one, wherever they are."""
        known: dict[str, list[str]] = {name: list(meant) for name, meant in OTHER_NAMES.items()}
        for path, _ in self.paths():
            known.setdefault(path.split(" ")[-1], []).append(path)
        close = [word] if word in known else get_close_matches(word, known)
        return list(dict.fromkeys(path for name in close for path in known[name]))


@contextmanager
def _without_secrets() -> Iterator[None]:
    """Hide secrets in the error about arguments that the command does not take."""
    try:
        yield
    except USAGE_ERROR as error:
        error.message = hide_secrets(error.message)
        raise


def _without_types_of_flags(command: Any) -> None:
    """Leave out `<bool>` beside options that take no value, in the help of a command."""
    help_option = command.get_help_option

    def shown_help_option(ctx: Any) -> Any:
        option = help_option(ctx)
        option.metavar = ""
        return option

    command.get_help_option = shown_help_option
    for param in command.params:
        if getattr(param, "is_flag", False):
            param.metavar = ""


def _with_plain_arguments(command: Any) -> None:
    """Show arguments as manual pages do, `CONFIG` or `[DATA...]`, where typer writes `{CONFIG} <path>`."""
    for param in command.params:
        if param.param_type_name == "argument":
            shown = param.metavar if param.required else f"[{param.metavar}]"
            param.get_usage_pieces = lambda ctx, shown=shown: [shown]
            param.display_type_rich = lambda ctx: ""


def show_version(wanted: bool) -> None:
    """Print the version, and those of the packages that a report of a problem should name."""
    if not wanted:
        return
    packages = ", ".join(f"{name} {_version(name)}" for name in SHOWN_PACKAGES)
    typer.echo(f"align {_version('alignment-flows')} (Python {platform.python_version()}, {packages})")
    raise typer.Exit()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
