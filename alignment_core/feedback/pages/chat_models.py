"""The models that the chat page offers. A few of them are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from alignment_core.feedback.pages.chat_model import ChatModel

LOADED = 2
"""Number of models in memory. With another one, the one that was not used for the longest time leaves."""


class ChatModels:
    """The models that visitors can choose, by the references with which a user names them."""

    def __init__(
        self, first: Sequence[str], open_model: Callable[[str], ChatModel], others: Callable[[], Sequence[str]]
    ) -> None:
        """
        Args:
            first: the models of a new conversation, one or two.
            open_model: returns the model with a reference.
            others: returns further references that can be chosen now.

        Raises:
            AlignmentError: one of the first models does not exist.
        """
        self.first = tuple(first)
        self._open_model, self._others = open_model, others
        self._used = {reference: open_model(reference) for reference in first}  # the last used one is last

    def choices(self) -> list[str]:
        """Return the references that can be chosen now, without a repetition."""
        return list(dict.fromkeys([*self.first, *self._others()]))

    def get(self, reference: str) -> ChatModel:
        """Return the model with a reference.

        Raises:
            AlignmentError: there is no such model.
        """
        if reference not in self._used:
            self._used[reference] = self._open_model(reference)
        return self._used[reference]

    async def make_room(self, references: Sequence[str]) -> None:
        """End the processes of models that were not used for the longest time, so that these can be loaded.

        A model that is answering stays.
        """
        for reference in references:
            model = self.get(reference)
            del self._used[reference]
            self._used[reference] = model
        loaded = [reference for reference, model in self._used.items() if model.is_loaded]
        excess = len({*loaded, *references}) - max(LOADED, len(references))
        idle = [one for one in loaded if one not in references and not self._used[one].is_answering]
        for reference in idle[: max(excess, 0)]:
            await self._used[reference].close()

    async def close(self) -> None:
        """End all processes."""
        for model in self._used.values():
            await model.close()
