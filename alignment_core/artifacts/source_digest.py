"""Digest of a plugin's source code, for a plugin whose version does not identify its code."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from alignment_core.artifacts.digest import file_digest

OURS = ("alignment_core.losses", "alignment_core.on_policy")
"""Packages of this library whose code is part of an optimizer."""


def source_digest(module: str) -> str:
    """Return the SHA-256 of an imported module and its direct and indirect imports from its package and `OURS`.

    Imports are read from the source without running it, so imports inside functions count as well.
    """
    package = module.partition(".")[0]
    roots = {package: _root(module), **dict.fromkeys(OURS, Path(__file__).parents[2])}
    files: dict[str, Path] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        root = next((root for inside, root in roots.items() if f"{name}.".startswith(f"{inside}.")), None)
        path = None if root is None else _file(root, name)
        if path is None or name in files:
            continue
        files[name] = path
        # Importing a module also runs its parent packages.
        todo.extend([name.rpartition(".")[0], *_imports(path, name)])
    listing = "".join(f"{file_digest(path)}  {name}\n" for name, path in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def _root(module: str) -> Path:
    """Return the folder that contains the module's top-level package."""
    file = sys.modules[module].__file__
    assert file is not None
    depth = module.count(".") + (Path(file).name == "__init__.py")
    return Path(file).resolve().parents[depth]


def _file(root: Path, name: str) -> Path | None:
    place = root.joinpath(*name.split("."))
    candidates = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _imports(path: Path, name: str) -> Iterator[str]:
    """Yield the names that the file imports. `from a import b` gives `a` and `a.b`, since `b` may be a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, [*package.split(".")[: package.count(".") + 2 - node.level], base]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
