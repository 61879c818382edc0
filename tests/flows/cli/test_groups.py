"""The help of `align`: every command has its place, examples are valid, and near names are suggested."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import version

import pytest
import typer
from command import align_here

from alignment_flows.cli.app import app
from alignment_flows.cli.groups import EXAMPLES, GROUPS, OTHER_NAMES, Commands


@pytest.fixture(scope="module")
def commands() -> Commands:
    found = typer.main.get_command(app)
    assert isinstance(found, Commands)
    return found


def test_every_command_is_in_one_group_in_this_order(commands: Commands) -> None:
    placed = [name for names in GROUPS.values() for name in names]
    assert list(commands.commands) == placed
    assert len(set(placed)) == len(placed)


def test_help_shows_groups_in_the_order_of_use_and_exit_codes() -> None:
    shown = align_here("--help").stdout
    places = [shown.index(f"─ {group} ─") for group in GROUPS]
    assert places == sorted(places)
    assert shown.index("│ tour ") < shown.index("│ init ") < shown.index("│ plan ") < shown.index("│ run ")
    assert "130 stopped by Ctrl-C" in shown
    assert "─ Commands ─" not in shown, "a command without a group"


@pytest.mark.parametrize("command", [(), ("run",), ("plugins", "check"), ("data", "check")])
def test_options_without_a_value_are_shown_without_a_type(command: tuple[str, ...]) -> None:
    shown = align_here(*command, "--help").stdout
    assert "--help" in shown
    assert "<bool>" not in shown


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        (("run",), "run [OPTIONS] CONFIG"),
        (("init",), "init [OPTIONS] [DATA...]"),
        (("data", "check"), "data check [OPTIONS] PATH..."),
        (("promote",), "promote [OPTIONS] MODEL [ALIAS]"),
    ],
)
def test_the_usage_shows_which_arguments_are_optional(command: tuple[str, ...], usage: str) -> None:
    shown = align_here(*command, "--help").stdout
    assert re.search(rf"Usage: \w+ {re.escape(usage)} *$", shown, re.MULTILINE)
    assert "<" not in shown.partition("─ Arguments ─")[2].partition("─ Options ─")[0], "types of Python"


def test_every_argument_has_a_name_that_users_know(commands: Commands) -> None:
    for path, command in commands.paths():
        for param in command.params:
            assert param.param_type_name != "argument" or re.fullmatch(r"[A-Z]+(\.\.\.)?", param.metavar), path


def test_examples_are_in_the_help_and_valid(commands: Commands) -> None:
    paths = dict(commands.paths())
    for path, examples in EXAMPLES.items():
        for example in examples:
            program, *words = shlex.split(example)
            inner = words[len(path.split()) :]
            assert (program, " ".join(words[: len(path.split())])) == ("align", path)
            paths[path].make_context(path, inner)  # raises if an option or argument is wrong
    assert "align plan my-model.yaml --card 12gb" in align_here("plan", "--help").stdout


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        (["rum"], "`align run`"),
        (["train", "x.yaml"], "`align run`"),
        (["check", "x.json"], "`align data check` or `align plugins check`"),
        (["prune"], "`align artifacts prune`"),
        (["stop"], "`align down`"),
        (["plugins", "lst"], "'list'"),
        (["run", "x.yaml", "--jsn"], "--json"),
    ],
)
def test_near_commands_and_options_are_suggested(wrong: list[str], near: str) -> None:
    done = align_here(*wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert near in " ".join(re.findall(r"[^\s│]+", done.stderr)), "without the frame"


def test_other_names_mean_commands_that_exist(commands: Commands) -> None:
    paths = dict(commands.paths())
    assert all(path in paths for meant in OTHER_NAMES.values() for path in meant)
    assert not set(OTHER_NAMES) & set(commands.commands)


def test_version_names_the_packages_that_matter() -> None:
    done = align_here("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"align {version('alignment-flows')} (Python 3.")
    assert f"torch {version('torch')}" in done.stdout
