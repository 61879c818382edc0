"""`align plugins new`: create a working plugin distribution from templates."""

import ast
import keyword
import re
from pathlib import Path
from typing import Literal

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from alignment_core.errors import ConfigError
from alignment_core.registry import Registry

Kind = Literal["optimizer", "on-policy", "format", "evaluator", "listener"]
USES: dict[Kind, tuple[str, str]] = {
    "optimizer": ("an optimizer", "align run my-model.yaml --set optimizer.name={name}"),
    "on-policy": ("an optimizer", "align run my-model.yaml --set optimizer.name={name}"),
    "format": ("a record format", "align data check my-rows.jsonl"),
    "evaluator": ("an evaluator", "align run my-model.yaml --set 'evaluation.evaluators=[{{name: {name}}}]'"),
    "listener": ("a listener", "align run my-model.yaml --set 'listeners=[{{name: {name}, path: diary.txt}}]'"),
}
"""What the README calls a plugin of each kind, and the command with which it is used."""
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def new_plugin(name: str, kind: Kind, parent: Path, registry: Registry) -> Path:
    """Write the distribution `alignment-NAME` into a new folder of that name, and return the folder.

    Raises:
        ConfigError: the name is invalid or in use, or the folder exists.
    """
    # YAML does not read names such as `true` or `no` as strings.
    if not NAME.fullmatch(name) or not isinstance(yaml.safe_load(name), str):
        raise ConfigError(
            "the name is invalid",
            where="NAME",
            got=name,
            expected="lower-case letters and digits, separated by single dashes, e.g. my-loss",
        )
    registered = "optimizer" if kind == "on-policy" else kind
    for plugin in registry.plugins:
        if (plugin.kind, plugin.name) == (registered, name):
            owner = f"{plugin.package} {plugin.version}"
            raise ConfigError(
                f"an installed {registered} already has this name",
                where="NAME",
                got=f"{name} of {owner}",
                do="Choose another name",
            )
    folder = parent / f"alignment-{name}"
    if folder.exists():
        raise ConfigError("the folder already exists", where=str(folder), do="Choose another name or folder")
    module = f"alignment_{name}".replace("-", "_")
    noun, use = USES[kind]
    title = "".join(map(str.title, name.split("-")))
    names = {"name": name, "module": module, "title": title, "noun": noun, "use": use.format(name=name)}
    templates = Environment(
        loader=PackageLoader("alignment_flows.cli", "templates/plugin"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    files = {
        "pyproject.toml": "pyproject.toml.jinja",
        "README.md": "README.md.jinja",
        f"{module}.py": f"{kind}.py.jinja",
        f"tests/test_{module}.py": f"test_{kind}.py.jinja",
    }
    texts = {path: templates.get_template(template).render(names) for path, template in files.items()}
    if _is_taken(names["title"], texts[f"{module}.py"]):
        raise ConfigError(
            "the class name is a Python keyword or hides one of the plugin's imports",
            where="NAME",
            got=f"{name} (class {names['title']})",
            do="Choose another name",
        )
    for path, text in texts.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


def _is_taken(title: str, module: str) -> bool:
    """Return whether the class name is a Python keyword or hides an import of its module."""
    if keyword.iskeyword(title):
        return True
    imports = [node for node in ast.walk(ast.parse(module)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return any(title == (alias.asname or alias.name) for node in imports for alias in node.names)
