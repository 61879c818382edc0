"""Compare an artifact with its manifest."""

from __future__ import annotations

from pathlib import Path

from alignment_core.artifacts.digest import hash_file
from alignment_core.artifacts.manifest import MANIFEST, read_manifest

DESKTOP_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files that a desktop adds to every folder that somebody looks at."""


def fault_in(folder: Path, key: str) -> str | None:
    """Return what is wrong with the artifact in `folder`, or None if every file matches its manifest.

    Raises:
        PermissionError: it may not be read.
    """
    if folder.is_symlink() or not folder.is_dir():
        return "it is not a folder"
    try:
        manifest = read_manifest(folder)
    except PermissionError:
        raise
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read: {str(error).partition(chr(10))[0]}"
    if manifest.key != key or manifest.kind != folder.parent.name:
        return f"{MANIFEST} belongs to {manifest.kind}/{manifest.key}"
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            return f"{name} is a link"
        if not path.is_file() and not path.is_dir():  # a pipe would be waited for
            return f"{name} is a special file"
        if path.is_file() and name not in manifest.files and name != MANIFEST and path.name not in DESKTOP_FILES:
            return f"{name} is not in {MANIFEST}"
    for name, record in manifest.files.items():
        path = folder / name
        try:
            same = path.stat().st_size == record.size and hash_file(path) == record.sha256
        except PermissionError:
            raise
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if not same:
            return f"{name} does not match {MANIFEST}"
    return None
