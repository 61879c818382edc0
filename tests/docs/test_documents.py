"""The files, links, commands, modules and make targets named in the documents exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).resolve().parents[2]


def tracked() -> list[str]:
    """Return the paths that git tracks and that exist on disk."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout: nothing to compare the documents with")
    return sorted(path for path in listing.stdout.split("\0") if path and (ROOT / path).exists())


def documents() -> list[str]:
    return [path for path in tracked() if path.endswith(".md")]


def fenced(text: str) -> Iterator[tuple[str, str]]:
    """Yield the language and content of each fenced block."""
    for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def code(text: str) -> Iterator[str]:
    """Yield the lines of shell blocks and the inline code."""
    for language, block in fenced(text):
        if language in ("bash", "sh", "console"):
            yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", prose(text))


# --- links and names ----------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ +(.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_relative_links_have_targets() -> None:
    broken = []
    for document in documents():
        for target in re.findall(r"\]\(([^)\s]+)\)", prose((ROOT / document).read_text())):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (ROOT / document).parent / path if path else ROOT / document
            if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
                broken.append(f"{document}: {target}")
    assert not broken


def test_paths_and_modules_named_in_documents_exist() -> None:
    """`alignment_core/config.py` and `alignment_core.config` in backticks. CHANGELOG.md may name removed ones."""
    folders = "|".join(sorted({path.split("/")[0] for path in tracked() if "/" in path}))
    gone = []
    for document in documents():
        if document == "CHANGELOG.md":
            continue
        for name in re.findall(r"`([^`\s]+)`", prose((ROOT / document).read_text())):
            is_path = re.fullmatch(rf"\.?(?:{folders})/[\w./*-]*", name)
            if is_path and not list(ROOT.glob(name.rstrip("/"))):
                gone.append(f"{document}: {name}")
            if re.fullmatch(r"alignment_(core|flows|plugins)(\.\w+)+", name) and not importable(name):
                gone.append(f"{document}: {name}")
    assert not gone


def importable(name: str) -> bool:
    """Return whether the name is a module or a name in one (`alignment_core.plugin_api.hookimpl`)."""
    module, _, attribute = name.rpartition(".")
    try:
        if find_spec(name) is not None:
            return True
    except ModuleNotFoundError:
        pass  # the parent is a module, not a package, so the last part may be a name in it
    spec = find_spec(module)
    return spec is not None and spec.origin is not None and attribute in Path(spec.origin).read_text()


# --- commands -----------------------------------------------------------------------------------------------------


def align_problem(command: list[str]) -> str | None:
    """Return why `align` would reject this command, or None. Values of options and arguments are not checked."""
    from alignment_flows.cli.app import app

    node: Any = typer.main.get_command(app)
    for word in command:
        commands = getattr(node, "commands", {})
        if commands and not word.startswith("-"):
            if word not in commands:
                return f"no command `{word}` in {sorted(commands)}"
            node = commands[word]
        elif word.startswith("-") and word != "--help":
            option = word.split("=")[0]
            known = {name for parameter in node.params for name in (*parameter.opts, *parameter.secondary_opts)}
            if option not in known:
                return f"`{node.name}` has no option {option}, only {sorted(known)}"
    return None


def test_align_check_finds_unknown_commands_and_options() -> None:
    assert align_problem(["run", "config.yaml", "--set", "optimizer.beta=0.2", "--json"]) is None
    assert align_problem(["--help"]) is None
    assert "no command `trian`" in (align_problem(["trian"]) or "")
    assert "no command `lst`" in (align_problem(["plugins", "lst"]) or "")
    assert "no option --jsn" in (align_problem(["run", "config.yaml", "--jsn"]) or "")


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each call of a program in the documents: the document and the arguments."""
    for document in documents():
        for line in code((ROOT / document).read_text()):
            call = re.match(rf"(?:\$ )?(?:\S*/bin/)?{program}(?: (.*))?$", line.strip())
            if call:
                yield document, shlex.split((call[1] or "").replace("…", ""), comments=True)


def test_align_commands_in_documents_exist() -> None:
    calls = list(commands("align"))
    wrong = [
        f"{document}: align {shlex.join(words)}: {why}" for document, words in calls if (why := align_problem(words))
    ]
    assert not wrong
    assert {"demo", "run"} <= {words[0] for _, words in calls if words}


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    calls = [(document, word) for document, words in commands("make") for word in words if "=" not in word]
    wrong = [f"{document}: make {word}" for document, word in calls if word not in targets and not word.startswith("-")]
    assert not wrong
    assert {"demo", "test"} <= {word for _, word in calls}
