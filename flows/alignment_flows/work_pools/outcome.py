"""How a stage in another work pool ended, as its flow run tells the flow run that started it.

It is stored with the run, as an input of it, because Prefect keeps no results of flows that need no result storage.
"""

from pydantic import BaseModel, ConfigDict

from alignment_core.errors import AlignmentError, StageCrashed
from alignment_core.execution.build import StageResult

KEY = "align-outcome"
"""Key of the input."""


class Outcome(BaseModel):
    """How a stage ended.

    Attributes:
        cached: whether its artifact was found.
        seconds: wall time of the stage, without the time that its run waited for a worker.
        listener_errors: errors of listeners.
        error: the error that ended it, as JSON; None if it succeeded.
        killed: whether a signal ended it.
    """

    model_config = ConfigDict(frozen=True)

    cached: bool = False
    seconds: float = 0.0
    listener_errors: tuple[str, ...] = ()
    error: dict[str, str | None] | None = None
    killed: bool = False

    @classmethod
    def success(cls, built: StageResult) -> "Outcome":
        """Describe a stage that succeeded."""
        return cls(cached=built.cached, seconds=built.seconds, listener_errors=built.listener_errors)

    @classmethod
    def failure(cls, error: AlignmentError) -> "Outcome":
        """Describe a stage that failed."""
        return cls(error=error.to_json(), killed=isinstance(error, StageCrashed) and error.killed)

    def raise_error(self) -> None:
        """Raise the error that ended the stage, if there is one."""
        if self.error is None:
            return
        error = AlignmentError.from_json(self.error)
        if isinstance(error, StageCrashed):
            error.killed = self.killed
        raise error
