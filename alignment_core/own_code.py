"""Code that a model brings along: found, identified by its content, and run only where the settings trust it by name.

`own_code` is the digest of the code that a run trusts. It is in the key and in the inputs of every stage that loads the
model, and every loader gets it. Without it, `may_run` says no. Loads neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignment_core.artifacts.digest import tree_digest
from alignment_core.config import PipelineConfig
from alignment_core.errors import AlignmentError, ConfigError, ModelError, how_to_trust, ran_out_of_memory
from alignment_core.texts import damaged

OWN_CODE = "own_code"
"""Name of the digest in the settings and the inputs of a stage. It is only there if the run trusts code."""
SETTING = "trust_remote_code"
GROUPS = ("model", "reward")
"""The groups of settings that name a model, which may bring code along."""
KERNELS = ("attn_implementation", "experts_implementation")
"""The fields of a configuration that choose the code of a part. transformers writes them with underscores as well."""
NAMING = ("config.json", "tokenizer_config.json")
"""The files of a model that name classes of its own code."""
CLASS = re.compile(r"(\w+)\.\w+", re.ASCII)


def trusted(settings: PipelineConfig) -> list[str]:
    """Return the settings that trust the code of a model."""
    return [f"{name}.{SETTING}" for name in GROUPS if getattr(getattr(settings, name), SETTING)]


def code_digest(path: str, revision: str | None) -> str:
    """Return the digest of the Python files of a model: of their content, or `owner/name@commit` for one on the Hub."""
    if revision is not None:
        return f"{path}@{revision}"
    folder = Path(path)
    return tree_digest(folder, (file for file in folder.rglob("*.py") if file.is_file()))


def may_run(path: str, revision: str | None, own_code: str | None) -> bool:
    """Return whether a loader may run the code of a model. Every loader asks here.

    Args:
        path: folder or Hub id of the model.
        revision: the Hub commit; None for a folder.
        own_code: the digest of the code that the settings trust; None if they trust none.

    Raises:
        ModelError: the code is not the one that was trusted.
    """
    if own_code is None:
        return False
    if code_digest(path, revision) != own_code:
        raise ModelError(
            "the code of the model is no longer the one that was trusted",
            where=path,
            do="Read what has changed, and start again",
        )
    return True


def check_classes(named: Mapping[str, Mapping[str, Any]], path: str, where: str, folder: Path | None) -> bool:
    """Check that all classes of its own that a model names are in its own files. Return whether it names any.

    Args:
        named: the content of each file in `NAMING`.
        path: folder or Hub id of the model.
        where: the setting that names the model.
        folder: the folder of the model; None for one on the Hub.

    Raises:
        ModelError: a class is elsewhere, so that the run could not say which code it trusted.
    """
    found = False
    for file, content in named.items():
        for reference in _references(content.get("auto_map"), f"{path}/{file}"):
            found, match = True, CLASS.fullmatch(reference)
            if match is None or (folder is not None and not (folder / f"{match[1]}.py").is_file()):
                raise ModelError(
                    "the code of the model is in another repository or folder, so its content is not part of the model",
                    where=where,
                    got=f"{reference} in {path}/{file}",
                    expected="MODULE.CLASS, with the file MODULE.py beside config.json",
                    do="Copy that code into the model's folder, read it, and name it there",
                )
    return found


def refuse_unknown(config: Mapping[str, Any], path: str, where: str) -> None:
    """Refuse a model that no loader can load without its own code, before anything is started.

    Args:
        config: the content of its config.json.
        path: folder or Hub id of the model.
        where: the setting that names the model.

    Raises:
        ModelError: its configuration is a class of its own, and transformers has none for it.
    """
    named, kind = config.get("auto_map"), config.get("model_type")
    if isinstance(named, Mapping) and "AutoConfig" in named and f'"{kind}"' not in _known_kinds():
        raise ModelError(
            "the model brings code of its own, which is not run unless it is asked for by name",
            where=where,
            got=f"{named['AutoConfig']} in {path}/config.json",
            do=how_to_trust(where.partition(".")[0]),
        )


def refuse_kernels(config: Mapping[str, Any], path: str, where: str) -> None:
    """Refuse a model whose configuration names a repository with code for its attention or its experts.

    transformers would load it from the Hub with the package `kernels`, whether or not the model's own code is trusted.
    It is not in the model's files, so no run could say which code it trusted.

    Args:
        config: the content of its config.json.
        path: folder or Hub id of the model.
        where: the setting that names the model.

    Raises:
        ModelError: it names one.
    """
    parts: list[Mapping[str, Any]] = [config]
    while parts:
        for name, value in parts.pop().items():
            if isinstance(value, Mapping):
                parts.append(value)
            if str(name).strip("_").removesuffix("_internal") not in KERNELS:
                continue
            for kernel in value.values() if isinstance(value, Mapping) else [value]:
                if isinstance(kernel, str) and "/" in kernel:
                    raise ModelError(
                        "the configuration of the model names code in another repository, which is not run",
                        where=where,
                        got=f"{name}: {kernel} in {path}/config.json",
                        do=f"Remove `{name}` from config.json",
                    )


def _known_kinds() -> str:
    """Return the file in which transformers lists the models that it has code for: importing it would load torch."""
    package = find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "models" / "auto" / "auto_mappings.py"
    return file.read_text(encoding="utf-8")


def _references(auto_map: Any, file: str) -> Iterator[str]:
    """Yield the classes that an `auto_map` names. That of a tokenizer is a pair, of which one may be null."""
    if auto_map is None:
        return
    values = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
    for value in values:
        for reference in value if isinstance(value, list) else [value]:
            if isinstance(reference, str):
                yield reference
            elif reference is not None:
                raise damaged(file, f"auto_map {reference!r}")


def check_consent(place: Mapping[str, Any], *, trusted: bool, do: str) -> None:
    """Check that code which an artifact says it was trained with is also trusted here.

    A manifest alone is no consent: it may come from a stranger's store.

    Args:
        place: the base model in the inputs of the artifact.
        trusted: whether this command or these settings trust it.
        do: how to trust it.

    Raises:
        ConfigError: it is not.
    """
    if OWN_CODE in place and not trusted:
        raise ConfigError(
            "the base model of this artifact brings code of its own, which is not run unless it is asked for by name",
            where=str(place["path"]),
            do=f"Read the code. If you trust it, {do}",
        )


@contextmanager
def code_may_fail(path: str, own_code: str | None, where: str) -> Iterator[None]:
    """Turn any error of a model's own code into one that names the model. It may raise whatever it likes.

    Args:
        path: folder or Hub id of the model.
        own_code: digest of its code that may run; None: none runs, so an error is not its.
        where: the setting that names the model.

    Raises:
        ModelError: its code failed.
    """
    try:
        yield
    except AlignmentError:
        raise
    except (Exception, SystemExit) as error:
        if own_code is None or ran_out_of_memory(error):
            raise
        raise ModelError(
            "the code that the model brings along failed",
            where=f"{where} {path}",
            got=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
        ) from error
