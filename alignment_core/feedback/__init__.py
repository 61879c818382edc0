"""What people and other raters think of responses: kept, exchanged, and read back as data to learn from."""

from alignment_core.feedback.store import FeedbackStore, open_feedback
from alignment_core.feedback.votes import Rater, Vote

__all__ = ["FeedbackStore", "Rater", "Vote", "open_feedback"]
