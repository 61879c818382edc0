"""The built-in chat templates, and the lookup of the text that `model.chat_template` names."""

from __future__ import annotations

from datetime import date
from importlib.resources import files

from alignment_core.config.places import expanded
from alignment_core.errors import ModelError
from alignment_core.texts import read_text

BUILTIN_TEMPLATES: dict[str, str] = {
    name: (files(__package__) / "templates" / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    for name in ("plain", "chatml", "llama3", "alpaca")
}
DEFAULT_TEMPLATE = "plain"
"""Used for base models whose tokenizer has no template."""
LARGEST_TEMPLATE = 1_000_000
"""Size in bytes of the largest file with a chat template."""
TEMPLATE_DATE = date(2024, 7, 26)
"""The date that templates print. The same conversation must give the same tokens on every day."""


def lacks_template(tokenizer: object) -> ModelError:
    """Return the error for a reward model without a chat template."""
    return ModelError(
        "the reward model's tokenizer has no chat template",
        where="reward.model",
        got=tokenizer,
        do="Set `reward.chat_template` to the template that the model was trained with: a file or a built-in name",
    )


def check_template_size(size: int, where: str) -> None:
    """Check that a chat template of a model is not too large to be read.

    Args:
        size: its length in bytes or characters.
        where: the file or the folder that it is from.

    Raises:
        ModelError: it is.
    """
    if size > LARGEST_TEMPLATE:
        raise ModelError(
            "the chat template is too large",
            where=where,
            got=f"{size:,} characters",
            expected=f"at most {LARGEST_TEMPLATE:,}",
            do="Download the model again, or remove the template and set `chat_template`",
        )


def resolve_chat_template(value: str | None, where: str = "model.chat_template") -> str | None:
    """Return the text of the template that `value` names: a built-in name or a file. None means the tokenizer's own.

    Raises:
        ModelError: `value` is neither a built-in name nor a readable file.
    """
    if value is None:
        return None
    if value in BUILTIN_TEMPLATES:
        return BUILTIN_TEMPLATES[value]
    try:
        return read_text(expanded(value), LARGEST_TEMPLATE)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"the chat template cannot be read ({type(error).__name__})",
            where=where,
            got=value,
            expected=f"a file, or one of {', '.join(BUILTIN_TEMPLATES)}",
        ) from None
