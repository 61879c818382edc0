"""The word list evaluator: scores and validation."""

from typing import Any

import pytest
from pydantic import ValidationError

from alignment_core.records import Conversation
from alignment_plugins.evaluators.wordlist import WordList

CONVERSATION: Conversation = (
    {"role": "system", "content": "Be brief about cats."},
    {"role": "user", "content": "A dog."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Tell me of the River, and of boats"},
)


@pytest.mark.parametrize(
    ("settings", "response", "score"),
    [
        ({}, "anything", 1.0),
        ({"wanted": ["thanks", "please"]}, "Many THANKS!", 1.0),
        ({"wanted": ["Thanks"]}, "thanks", 1.0),
        ({"wanted": ["thanks"]}, "thanksgiving", 0.0),
        ({"unwanted": ["stupid"]}, "That is Stupid.", 0.0),
        ({"unwanted": ["stupid"]}, "That is not.", 1.0),
        ({"wanted": ["please"], "unwanted": ["stupid"]}, "Please, stupid.", 0.0),
        # Of the words to echo, the last user turn has only "river".
        ({"echo": ["river", "dog", "cats"]}, "The river is long.", 1.0),
        ({"echo": ["river", "boats"]}, "The river is long.", 0.0),
        ({"echo": ["grün"]}, "", 1.0),
        ({"first_sentence": 3}, "It is wet. Much more text follows it here.", 1.0),
        ({"first_sentence": 3}, "It is so wet. No.", 0.0),
        ({"first_sentence": 3}, "Of course:\nit is wet", 1.0),
        ({"first_sentence": 3}, "no end of a sentence", 0.0),
        ({"first_sentence": 3}, "1. Boil some water. 2. Wait.", 0.0),  # the first sentence is "1. Boil some water"
        ({"first_sentence": 3}, " \n", 0.0),
    ],
)
def test_scores(settings: dict[str, Any], response: str, score: float) -> None:
    assert WordList.model_validate(settings).score(CONVERSATION, response, {}) == score


@pytest.mark.parametrize("word", ["thank you", "", "don't", "hello!"])
def test_entry_that_is_not_one_word_is_refused(word: str) -> None:
    with pytest.raises(ValidationError, match="not one word"):
        WordList(unwanted=[word])
