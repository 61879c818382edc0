"""The built-in chat templates, and how `model.chat_template` becomes a template's text. Imports no transformers."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from alignment_core.errors import ModelError

BUILTIN_TEMPLATES: dict[str, str] = {
    name: (files("alignment_core.data") / "templates" / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    for name in ("plain", "chatml", "llama3", "alpaca")
}
DEFAULT_TEMPLATE = "plain"
"""For base models whose tokenizer brings no template."""


def lacks_template(tokenizer: object) -> ModelError:
    """The error of a reward model that nobody can talk to."""
    return ModelError(
        "the reward model's tokenizer has no chat template",
        where="reward.model",
        got=tokenizer,
        do="Set `reward.chat_template` to the one that it was trained with: a file, or a built-in name",
    )


def resolve_chat_template(value: str | None, where: str = "model.chat_template") -> str | None:
    """Text of the template that `value` names: a built-in one or a file. None stays None: the tokenizer's own.

    Raises:
        ModelError: `value` is neither a built-in name nor a readable file.
    """
    if value is None:
        return None
    if value in BUILTIN_TEMPLATES:
        return BUILTIN_TEMPLATES[value]
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"the chat template cannot be read ({type(error).__name__})",
            where=where,
            got=value,
            expected=f"a file, or one of {', '.join(BUILTIN_TEMPLATES)}",
        ) from None
