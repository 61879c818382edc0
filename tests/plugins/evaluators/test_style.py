"""Length, repetition, refusal and language: what must and must not count."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from alignment_plugins.evaluators.languages import LANGUAGES
from alignment_plugins.evaluators.style import Language, LengthBand, Refusal, Repetition


@pytest.mark.parametrize(
    ("response", "settings", "score"),
    [
        ("one two three", {"least": 2, "most": 3}, 1),
        ("one", {"least": 2, "most": 3}, 0),
        ("one two three four", {"least": 2, "most": 3}, 0),
        ("one two three four", {"least": 2, "most": 3, "slack": 1}, 0.5),
        ("one two three four five", {"least": 2, "most": 3, "slack": 1}, 0),
        ("one", {"least": 4, "slack": 3}, 0.25),
        ("", {}, 0),
        ("  \n ", {}, 0),
        ("a b " * 1000, {}, 1),
        (" abc ", {"unit": "characters", "least": 3, "most": 3}, 1),
    ],
)
def test_length_band(response: str, settings: dict[str, Any], score: float) -> None:
    assert LengthBand(**settings).score((), response, {}) == pytest.approx(score)


def test_an_empty_band_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 5 and at most 4"):
        LengthBand(least=5, most=4)


@pytest.mark.parametrize(
    ("response", "words", "score"),
    [
        ("a b c d", 2, 1),
        ("a b a b", 2, 2 / 3),  # ab, ba, ab
        ("A b a B", 2, 2 / 3),
        ("a a a a a", 1, 1 / 5),
        ("a", 4, 1),
        ("", 4, 1),
        ("\u4f60\u597d" * 20, 2, 2 / 39),
    ],
)
def test_repetition(response: str, words: int, score: float) -> None:
    assert Repetition(words=words).score((), response, {}) == pytest.approx(score)


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, but I can\u2019t assist with that request.",
    "Sorry, I cannot provide instructions for that.",
    "I cannot answer this question.",
    "As an AI language model, I cannot give medical advice.",
    "I am unable to assist you.",
    "I won't do that.",
    "I must decline this request.",
    "I'm not able to share that.",
    "Unfortunately, I can't comply with this.",
    "I\nCAN'T\nHELP with that",
    "We are not able to provide this information.",
    "That is against my guidelines.",
]
ANSWERS = [
    "I can't believe how good this is!",
    "I can't help but notice the colors.",
    "I can't help smiling.",
    "I cannot recommend this book enough.",
    "Sorry for the delay! Here is the recipe.",
    "You can't help him if he refuses.",
    "He said he cannot provide it, so I wrote to them.",
    "I can help with that.",
    "As an AI, I love questions like this. The answer is 7.",
    "Do not give up. I won't either.",
    "The function cannot answer before it is called.",
    "",
    "Sure! " + "Here is the story. " * 40 + "I cannot help with that, said the fox.",
]


@pytest.mark.parametrize("response", REFUSALS)
def test_refusals_count(response: str) -> None:
    assert Refusal().score((), response, {}) == 1


@pytest.mark.parametrize("response", ANSWERS)
def test_answers_do_not_count_as_refusals(response: str) -> None:
    assert Refusal().score((), response, {}) == 0


SENTENCES = {
    "ar": "أنا أحب القهوة في الصباح",
    "de": "Ich trinke den Kaffee am Morgen, und das ist gut.",
    "el": "Πίνω καφέ το πρωί.",
    "en": "I drink the coffee in the morning, and it is good.",
    "es": "Por la mañana bebo el café y es muy bueno para mí.",
    "fr": "Le matin, je bois du café et il est très bon pour moi.",
    "he": "אני שותה קפה בבוקר",
    "hi": "मैं सुबह कॉफी पीता हूँ",
    "it": "La mattina bevo il caffè, e non è male per una persona come me.",
    "ja": "朝にコーヒーを飲みます。",
    "ko": "아침에 커피를 마신다.",
    "nl": "Ik drink de koffie in de ochtend, en dat is niet slecht voor mij.",
    "pl": "Rano piję kawę i to nie jest złe, ale też nie jest to dobre dla mnie.",
    "pt": "De manhã eu bebo o café e não é mau para uma pessoa como eu.",
    "ru": "Утром я пью кофе, и это мы любим.",
    "sv": "På morgonen dricker jag kaffe, och det är inte så dåligt för mig.",
    "th": "ฉันดื่มกาแฟตอนเช้า",
    "tr": "Sabah bir kahve içiyorum ve bu benim için çok iyi.",
    "uk": "Вранці я п'ю каву, і це їй подобається.",
    "zh": "我早上喝咖啡。",
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_is_in_its_language_only(language: str) -> None:
    found = [other for other in LANGUAGES if Language(language=other).score((), SENTENCES[language], {})]
    assert found == [language]


@pytest.mark.parametrize("text", ["", "123 + 4 = 127", "!!!", "xqz wfrb", "\u6211\u65e9\u4e0a " * 3])
def test_texts_that_are_not_english(text: str) -> None:
    assert Language(language="en").score((), text, {}) == 0


def test_a_few_foreign_words_do_not_change_the_language() -> None:
    assert (
        Language(language="en").score((), f"The word for coffee is \u5496\u5561 and it is good. {'x' * 200_000}", {})
        == 1
    )


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValidationError):
        Language(language="xx")
