"""The exceptions for everything that a user can cause or has to know.

AlignmentError            what is wrong, where, got/expected, what to do       (exit code 2)
├── ConfigError           a setting is missing, misspelled or out of range
├── DataError             records cannot be read, or there are too few
├── ModelError            a base model, tokenizer or template does not load or does not fit
├── PluginError           a plugin is missing, broken or conflicts with another
├── ArtifactError         the artifact store cannot be read or written
├── FeedbackError         the feedback store cannot be opened, read or written
├── TrainingError         NaN, divergence, out of memory, or a loss that breaks its contract
└── StageCrashed          a stage's process crashed or was killed               (exit code 1)
"""

from __future__ import annotations

import re

from alignment_core.addresses import HIDDEN, hide_secrets, secrets_in

MEMORY_ENDED = re.compile(
    r"can't allocate memory|not enough memory: you tried to allocate"  # PyTorch on the CPU, on Linux and on Windows
    r"|(CUDA|HIP|CUDA driver|HIP driver|MPS backend)( error:)? out of memory|cuda\w*ErrorMemoryAllocation"
    r"|CU(BLAS|DNN|SPARSE|SOLVER|FFT)_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED|(ROC|HIP)BLAS_STATUS_(ALLOC_FAILED|memory_error)"
    # A handle needs memory of its own, and this is the error if there is none.
    r"|CU(BLAS|SPARSE|SOLVER)_STATUS_NOT_INITIALIZED when calling \W*cu\w+Create"
    r"|CUDA_ERROR_OUT_OF_MEMORY|hipErrorOutOfMemory"
    r"|Error out of memory at line",  # bitsandbytes writes this to the log and ends the process
    re.IGNORECASE,
)
"""The words of the libraries for memory that ran out."""


class AlignmentError(Exception):
    """An error that is shown to the user as one paragraph: what, where, got/expected, what to do.

    Secrets in addresses are hidden in all of them, also in those that a library's error names. If one part has an
    address with a password, the password alone is hidden in the others.

    Args:
        what: the problem, as a sentence without the final period.
        where: the file and line, the setting or the stage in which it was found.
        got: the actual value.
        expected: the expected value.
        do: what the user should do next.
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
        given = [None if part is None else str(part) for part in (what, where, got, expected, do)]
        secrets = {secret for part in given if part for secret in secrets_in(part)}
        shown = [None if part is None else _shown(part, secrets) for part in given]
        self.what: str = shown[0] or ""
        self.where, self.got, self.expected, self.do = shown[1:]
        super().__init__(self.what)

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
        """Return the fields as plain JSON, in which a stage's process sends its error to the flow."""
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
        """Rebuild an error from `to_json`. An unknown type becomes a plain `AlignmentError`."""
        known = {kind.__name__: kind for kind in AlignmentError.__subclasses__()}
        kind = known.get(fields["type"] or "", AlignmentError)
        return kind(
            fields["what"] or "",
            where=fields["where"],
            got=fields["got"],
            expected=fields["expected"],
            do=fields["do"],
        )


def _shown(part: str, secrets: set[str]) -> str:
    """Return a part of a message without secrets. The name of a file may hold bytes that are no text."""
    text: str = hide_secrets(part)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text.encode("utf-8", "backslashreplace").decode()


class ConfigError(AlignmentError):
    """A setting is missing, misspelled or out of range."""


class DataError(AlignmentError):
    """Records cannot be read, or there are too few of them."""


class ModelError(AlignmentError):
    """A base model, tokenizer or chat template does not load or does not fit."""


class PluginError(AlignmentError):
    """A plugin is missing, broken or misspelled, or conflicts with another."""


class ArtifactError(AlignmentError):
    """The artifact store cannot be read or written."""


class FeedbackError(AlignmentError):
    """The feedback store cannot be opened, read or written."""


class TrainingError(AlignmentError):
    """Training gave NaN, diverged or ran out of memory, or a loss breaks the contract of a step."""


class StageCrashed(AlignmentError):
    """A stage's process was killed by a signal, or crashed because of a bug rather than a mistake of the user.

    Attributes:
        killed: whether a signal ended the process, for example the system's out-of-memory killer. If the stage is
            started again, it resumes from its last checkpoint.
    """

    exit_code = 1
    killed = False


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether the error means out of memory: in Python, on a GPU and in its libraries, or in PyTorch on the CPU.

    Only some of them have an exception type of their own, so the message is checked as well.
    """
    names = [kind.__name__ for kind in type(error).__mro__]
    if "MemoryError" in names or "OutOfMemoryError" in names:
        return True
    return isinstance(error, RuntimeError) and MEMORY_ENDED.search(str(error)) is not None


def how_to_trust(group: str) -> str:
    """Return how the code of a model can be run, for messages that refuse it.

    Args:
        group: the group of settings that names the model.
    """
    return f"Read the code. If you trust it, set `{group}.trust_remote_code: true` in the settings of the run"


def loading_failure(error: BaseException, group: str = "model") -> str:
    """Return in one line why transformers did not load something.

    Args:
        error: the error of transformers.
        group: the group of settings that names the model.
    """
    text = str(error).strip()
    if "trust_remote_code" in text:
        return f"it brings code of its own, which is not run unless it is asked for by name. {how_to_trust(group)}"
    return text.partition("\n")[0] or type(error).__name__
