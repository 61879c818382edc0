"""Tokenizers and a renderer shared by the tests in this folder."""

from __future__ import annotations

from typing import Any

import pytest
from chat_styles import byte_tokenizer

from alignment_core.data.rendering.renderer import Renderer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def sentencepiece() -> Any:
    return byte_tokenizer(sentencepiece=True)


@pytest.fixture(scope="session")
def renderer(tokenizer: Any) -> Renderer:
    """A renderer with the built-in template for base models, byte tokens and a limit of 512 tokens."""
    return Renderer(tokenizer, chat_template=None, max_length=512)
