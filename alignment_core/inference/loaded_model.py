"""A model, loaded into this process, that answers conversations."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignment_core.data.rendering.renderer import Renderer
from alignment_core.inference.model_parts import ModelParts
from alignment_core.inference.trained_model import open_trained_model
from alignment_core.models.base.loading import choose_device, load_base
from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.sampling import generate
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.own_code import OWN_CODE
from alignment_core.records import Message

ROLE = "policy"
UNFINISHED = "\ufffd"
"""The decoded text of a token that is only part of a character."""


@dataclass(frozen=True)
class Answer:
    """The answer to one conversation.

    Attributes:
        text: the answer.
        end: why it ended: the model finished, the length limit was reached, or the caller stopped it.
    """

    text: str
    end: Literal["finished", "length", "stopped"]


class _Stop(Exception):
    """The caller wants no more tokens."""


class LoadedModel:
    """A base model with its chat template, and with a trained adapter if it has one.

    Attributes:
        tokenizer: the base model's tokenizer.
        model: the transformers model with the adapter in its layers.
    """

    def __init__(self, parts: ModelParts, device: str = "auto") -> None:
        """
        Args:
            parts: what to load.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.

        Raises:
            ModelError: the base model or its tokenizer does not load.
        """
        config, place = parts.config, parts.place
        self._renderer = Renderer.of_stage(place, config)
        base = load_base(
            place["path"],
            revision=place["revision"],
            load_in=config["load_in"],
            device=choose_device(device),
            rows=config.get("embedding_rows"),
            own_code=place.get(OWN_CODE),
        )
        self._roles = Roles(base, place["path"], place["revision"])
        if parts.adapter is None:
            self._roles.add_base(ROLE)
        else:
            self._roles.add_saved(ROLE, parts.adapter)
        self.tokenizer: Any = self._renderer.tokenizer
        self.model: Any = base

    @classmethod
    def open(cls, store: Path, key: str, device: str = "auto", *, trusted: bool = False) -> LoadedModel:
        """Load a trained model after verifying its files and its base model.

        Args:
            store: folder of the artifact store.
            key: key of an `sft` or `optimize` artifact.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            trusted: whether the user trusts the code that the base model brings along.

        Raises:
            ConfigError: the base model brings code of its own, which is not trusted.
            ArtifactError: there is no such artifact, or it is not a model.
            ModelError: the base model is gone, or has changed since the adapter was trained.
        """
        return cls(ModelParts.of_artifact(open_trained_model(store, key, trusted=trusted).folder), device)

    def generate(self, prompt: str | Sequence[Message], **settings: Any) -> str:
        """Return the model's answer.

        Args:
            prompt: a question, or the messages of a conversation that ends with a user turn.
            settings: `max_new_tokens`, `temperature`, `top_p` and `seed`, as for `answer`.
        """
        return self.answer(prompt, **settings).text

    def answer(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
        stopping: Callable[[], bool] | None = None,
    ) -> Answer:
        """Sample an answer token by token.

        Args:
            prompt: a question, or the messages of a conversation that ends with a user turn.
            max_new_tokens: longest answer in tokens.
            temperature: divides the logits. 0 always takes the most likely token.
            top_p: smallest set of tokens whose probability reaches this. 1 keeps all.
            seed: seed of the sampling. None: a different answer each time.
            on_text: called with the complete text so far after each token.
            stopping: asked before each token. True ends the answer.

        Raises:
            ModelError: the chat template does not accept the conversation.
        """
        messages: Sequence[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        sequence = self._renderer.prompt(tuple(messages))
        tokens: list[int] = []

        def on_token(_: int, token: int) -> None:
            tokens.append(token)
            if on_text is not None:
                on_text(self._text(tokens))

        def on_step(_: float) -> None:
            if stopping is not None and stopping():
                raise _Stop

        try:
            generate(
                self._roles,
                ROLE,
                [sequence],
                noise_keys=[os.urandom(16).hex() if seed is None else f"{seed}"],
                sampling=Sampling(max_new_tokens, temperature, top_p),
                stop_ids=self._renderer.stop_ids,
                pad_id=self._renderer.pad_id,
                budget=Budget(len(sequence.ids) + max_new_tokens),
                on_step=on_step,
                on_token=on_token,
            )
        except _Stop:
            return Answer(self._text(tokens), "stopped")
        return Answer(self._text(tokens), "finished" if tokens and tokens[-1] in self._renderer.stop_ids else "length")

    def _text(self, tokens: Sequence[int]) -> str:
        # Decoded from the start each time, because a token can complete a character that an earlier one began.
        return self._renderer.decode(tokens).rstrip(UNFINISHED)
