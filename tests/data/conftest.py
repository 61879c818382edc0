"""Tokenizers and a renderer that the tests of this folder share."""

from __future__ import annotations

from typing import Any

import pytest
from chat_styles import byte_tokenizer

from alignment_core.data.rendering import Renderer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def sentencepiece() -> Any:
    return byte_tokenizer(sentencepiece=True)


@pytest.fixture(scope="session")
def renderer(tokenizer: Any) -> Renderer:
    """The built-in template for base models, bytes as tokens, 512 of them."""
    return Renderer(tokenizer, chat_template=None, max_length=512)
