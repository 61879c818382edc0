"""What people and other raters think of responses: kept, exchanged, and read back as data to learn from."""

from alignment_core.feedback.store import FeedbackStore, Rater, Vote, open_feedback

__all__ = ["FeedbackStore", "Rater", "Vote", "open_feedback"]
