"""A tokenizer with one token per UTF-8 byte, which gives meaningful lengths without a model.

It does without transformers, whose import takes longer than reading a small file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PAD, EOS = "<pad>", "</s>"


class ByteTokenizer:
    """The part of transformers' interface that a `Renderer` uses, for the tokenizer of `byte_backend`."""

    chat_template = None
    name_or_path = ""
    pad_token, pad_token_id = PAD, 0
    eos_token, eos_token_id = EOS, 1
    bos_token_id = None
    special_tokens_map = {"eos_token": EOS, "pad_token": PAD}  # noqa: RUF012  # as in transformers
    all_special_tokens = (EOS, PAD)

    def __init__(self) -> None:
        self.backend_tokenizer = byte_backend()

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Return the special tokens by id."""
        found: dict[int, Any] = self.backend_tokenizer.get_added_tokens_decoder()
        return found

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the id of a token."""
        index: int = self.backend_tokenizer.token_to_id(token)
        return index

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of the ids."""
        text: str = self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text


def byte_backend() -> Any:
    """Return a tokenizer of the library `tokenizers` for bytes, a padding token (0) and an end token (1)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = [PAD, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (EOS, PAD)])
    return backend
