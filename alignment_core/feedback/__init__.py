"""The feedback store: save votes on responses, import and export them, and read them back as training data.

Names load their modules on first use, because SQLAlchemy takes a third of a second, and few runs read a store.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignment_core.feedback.store import FeedbackStore, open_feedback
    from alignment_core.feedback.votes import Rater, Vote

_HOME = {"FeedbackStore": "store", "open_feedback": "store", "Rater": "votes", "Vote": "votes"}

__all__ = ["FeedbackStore", "Rater", "Vote", "open_feedback"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
