"""Evaluators, which score responses or compare two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from alignment_core.config import Settings
from alignment_core.errors import ConfigError
from alignment_core.records import Conversation, Facts


class Evaluator(Settings):
    """Base class of a rule, program or service that scores responses.

    A subclass fixes `name` as a `Literal` and defines `score`, or `scores` if it judges several responses at once.
    """

    example: ClassVar[Mapping[str, Any]] = {}
    """Settings that describe and check the evaluator where no user has chosen any, as for an optimizer."""
    example_facts: ClassVar[Facts] = {}
    """Facts with which it is checked, such as those that `needed_facts` names."""

    name: str

    def score(self, prompt: Conversation, response: str, facts: Facts) -> float:
        """Return the score of a response, a finite number. Higher is better. A yes/no rule returns 1.0 or 0.0.

        Args:
            prompt: the conversation before the response.
            response: the response, without special tokens.
            facts: the columns of the prompt's record that `data.sources[].keep` names, as plain JSON.
        """
        (score,) = self.scores([prompt], [response], [facts])
        if score is None:
            raise ConfigError("the evaluator gave no score", where=self.name)
        return score

    def scores(
        self, prompts: Sequence[Conversation], responses: Sequence[str], facts: Sequence[Facts]
    ) -> Sequence[float | None]:
        """Return the score of each response, in order. None: no score, because a service did not answer."""
        return [self.score(*case) for case in zip(prompts, responses, facts, strict=True)]

    def needed_facts(self) -> Sequence[str]:
        """Return the columns that a source must keep for this evaluator. A run without them is refused at its start."""
        return ()


class PairEvaluator(Settings):
    """Base class of a rule, program or service that compares two responses to one prompt.

    A subclass fixes `name` as a `Literal` and defines `prefer`, or `prefers` if it judges several pairs at once.
    """

    example: ClassVar[Mapping[str, Any]] = {}
    """Settings that describe and check the evaluator where no user has chosen any, as for an optimizer."""
    example_facts: ClassVar[Facts] = {}
    """Facts with which it is checked, such as those that `needed_facts` names."""

    name: str

    def prefer(self, prompt: Conversation, a: str, b: str, facts: Facts) -> float:
        """Return the probability, from 0 to 1, that response `a` is better than response `b`. 0.5 is a tie."""
        (preference,) = self.prefers([prompt], [a], [b], [facts])
        if preference is None:
            raise ConfigError("the evaluator gave no verdict", where=self.name)
        return preference

    def prefers(
        self, prompts: Sequence[Conversation], a: Sequence[str], b: Sequence[str], facts: Sequence[Facts]
    ) -> Sequence[float | None]:
        """Return the probability of each pair, in order. None: no verdict, because a service did not answer."""
        return [self.prefer(*case) for case in zip(prompts, a, b, facts, strict=True)]

    def needed_facts(self) -> Sequence[str]:
        """Return the columns that a source must keep for this evaluator. A run without them is refused at its start."""
        return ()
