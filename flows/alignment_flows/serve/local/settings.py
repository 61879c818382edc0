"""Settings before a run is recorded: what they refer to in Prefect is read, and a packed base model is unpacked."""

import sys
from collections.abc import Mapping

from alignment_core.config import ModelConfig, PipelineConfig
from alignment_core.execution.build import StageResult, build
from alignment_core.execution.stage import Runtime
from alignment_core.planning.unpacked_base import base_call
from alignment_flows.form.references import refers_to_prefect, resolve
from alignment_flows.serve.local.server import prefect_server


def resolved(config: PipelineConfig) -> PipelineConfig:
    """Return the settings with the values of the blocks and variables of Prefect that they refer to.

    The flow itself is given the references, because Prefect stores its parameters.

    Raises:
        ConfigError: there is no such block or variable, or its value does not fit.
    """
    if not refers_to_prefect(config):
        return config
    with prefect_server(heartbeats=False):
        return resolve(config)


def prepared(config: PipelineConfig) -> PipelineConfig:
    """Return the resolved settings for planning. A base model in a GGUF file is in the store then.

    A run would unpack it as its first stage. Done here, mistakes in the settings are found before the run is recorded.

    Raises:
        AlignmentError: a block or variable does not exist, or the base model cannot be unpacked.
    """
    settings = resolved(config)
    unpack_base(settings.model, Runtime(store=settings.store.absolute(), isolation=settings.isolation))
    return settings


def unpack_base(model: ModelConfig, runtime: Runtime) -> StageResult | None:
    """Unpack the base model into the store if it is a GGUF file that is not there yet. Say so on stderr.

    Raises:
        AlignmentError: it cannot be unpacked.
    """
    call = base_call(model, runtime)
    return None if call is None else build(call, Printed(call.label))


class Printed:
    """Progress that prints log lines and warnings to stderr."""

    stopping = False

    def __init__(self, label: str) -> None:
        self._label = label

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        pass

    def log(self, message: str) -> None:
        print(f"{self._label}: {message}", file=sys.stderr, flush=True)

    def warn(self, message: str) -> None:
        self.log(f"warning: {message}")
