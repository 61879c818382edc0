"""Every error that a user can cause, each one exception.

AlignmentError            what went wrong, where, got/expected, what to do     (exit code 2)
├── ConfigError           a setting is missing, misspelt or out of range
├── DataError             records that cannot be read or are not enough
├── ModelError            a base model, tokenizer or template that does not load or fit
├── PluginError           a plugin that is missing, broken or clashes with another
├── ArtifactError         the artifact store cannot be read or written
├── FeedbackError         the feedback store cannot be opened, read or written
├── TrainingError         NaN, divergence, too little memory, or a loss that breaks its contract
└── StageCrashed          a stage's process died under us                       (exit code 1)
"""

from __future__ import annotations


class AlignmentError(Exception):
    """One paragraph for a person: what, where, got/expected, what to do.

    Args:
        what: the fault as a sentence without its full stop.
        where: the file and line, setting or stage that it was found in.
        got: what was there.
        expected: what should have been there.
        do: the next step for the person who reads it.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: object = None,
        expected: object = None,
        do: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.got = None if got is None else str(got)
        self.expected = None if expected is None else str(expected)
        self.do = do
        super().__init__(what)

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.got is not None and self.expected is not None:
            parts.append(f"got {self.got}, expected {self.expected}")
        elif self.got is not None:
            parts.append(f"got {self.got}")
        elif self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.do:
            parts.append(self.do)
        return " ".join(part if part.endswith((".", "?", "!")) else f"{part}." for part in parts)

    def to_json(self) -> dict[str, str | None]:
        """The fields as plain JSON, so that a stage's process can hand its error to the flow."""
        return {
            "type": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "got": self.got,
            "expected": self.expected,
            "do": self.do,
        }

    @staticmethod
    def from_json(fields: dict[str, str | None]) -> AlignmentError:
        """Inverse of `to_json`; an unknown type becomes a plain `AlignmentError`."""
        known = {kind.__name__: kind for kind in AlignmentError.__subclasses__()}
        kind = known.get(fields["type"] or "", AlignmentError)
        return kind(
            fields["what"] or "",
            where=fields["where"],
            got=fields["got"],
            expected=fields["expected"],
            do=fields["do"],
        )


class ConfigError(AlignmentError):
    """A setting is missing, misspelt or out of range."""


class DataError(AlignmentError):
    """Records that cannot be read, or are not enough for what was asked."""


class ModelError(AlignmentError):
    """A base model, tokenizer or chat template that does not load or does not fit."""


class PluginError(AlignmentError):
    """A plugin that is missing, broken, misspelt or clashes with another."""


class ArtifactError(AlignmentError):
    """The artifact store cannot be read or written."""


class FeedbackError(AlignmentError):
    """The feedback store cannot be opened, read or written."""


class TrainingError(AlignmentError):
    """NaN or divergence in training, memory that does not suffice, or a loss that breaks the contract of a step."""


class StageCrashed(AlignmentError):
    """A stage's process died by a signal or an error of ours, not the user's.

    Attributes:
        killed: a signal ended it, such as the system's when memory runs out; started again, it goes on from its last
            checkpoint.
    """

    exit_code = 1
    killed = False


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory ended: Python's, a GPU's, or the CPU's under PyTorch, which says it in words alone."""
    names = [kind.__name__ for kind in type(error).__mro__]
    return "MemoryError" in names or "OutOfMemoryError" in names or "can't allocate memory" in str(error)
