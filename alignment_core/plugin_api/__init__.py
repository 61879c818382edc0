"""The plugin API: everything that a plugin imports.

An optimizer is a frozen pydantic model whose fields are its hyperparameters. It has three methods. `needs` says which
data and models it needs. `batches` yields one `StepBatch` per optimizer step. `loss` returns the loss of a micro-batch:
a sum divided by the step's denominator. The training loop calls `backward`, updates the weights, and only then asks for
the next batch.

    class Hinge(AlignmentOptimizer):
        name: Literal["hinge"] = "hinge"

        def needs(self):
            return Needs(preferences=True)
        ...

    @hookimpl
    def alignment_optimizers():
        return [Hinge]

Register the module with an entry point of the group `alignment_core` in the `pyproject.toml` of the plugin. Record
formats, evaluators and listeners are registered in the same way.

    steps.py      what `batches` yields, what `loss` gets and returns
    run.py        the models, data and services that both use
    optimizer.py  the base class of optimizers
    evaluator.py  the base class of evaluators
    listener.py   the base class of listeners
    advice.py     what an optimizer says about a finished run
    hooks.py      the hooks that register them

This package does not import torch. Tensors appear only in annotations.
"""

from alignment_core.chat_endpoint import ChatEndpoint, both_orders, conversation_text, verdict_of
from alignment_core.config import ChatEndpointSettings, SourceConfig
from alignment_core.errors import ConfigError, DataError
from alignment_core.plugin_api.advice import Advice
from alignment_core.plugin_api.evaluator import Evaluator, PairEvaluator
from alignment_core.plugin_api.hooks import hookimpl, hookspec
from alignment_core.plugin_api.listener import Listener, StageInfo
from alignment_core.plugin_api.optimizer import API_VERSION, AlignmentOptimizer, Needs
from alignment_core.plugin_api.run import AlignmentRun, LanguageModelRole, TokenLogps, ValueRole
from alignment_core.plugin_api.steps import LossOutput, MicroBatch, Rollout, StepBatch
from alignment_core.records import Conversation, Demonstration, Facts, LabelledResponse, PreferencePair, Prompt, RawRow
from alignment_core.records.format import BadRow, Dropped, Quarantined, Reading, RecordFormat, Unread
from alignment_core.temporary import temporary_folder
from alignment_core.token_rows import Row, TokenSequence

__all__ = [
    "API_VERSION", "Advice", "AlignmentOptimizer", "AlignmentRun", "BadRow", "ChatEndpoint", "ChatEndpointSettings",
    "ConfigError", "Conversation", "DataError", "Demonstration", "Dropped", "Evaluator", "Facts",
    "LabelledResponse", "LanguageModelRole", "Listener", "LossOutput", "MicroBatch", "Needs", "PairEvaluator",
    "PreferencePair", "Prompt", "Quarantined", "RawRow", "Reading", "RecordFormat", "Rollout", "Row",
    "SourceConfig", "StageInfo", "StepBatch", "TokenLogps", "TokenSequence", "Unread", "ValueRole", "both_orders",
    "conversation_text", "hookimpl", "hookspec", "temporary_folder", "verdict_of",
]  # fmt: skip
