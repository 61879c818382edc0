"""Tell languages apart by script, by letters and by their most frequent words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

STOP_WORDS = {
    "de": "der die und das ist nicht ein eine zu den mit sich auf für im von dem des auch als wie oder aber bei ich",
    "en": "the of and to is that it was for on are with as his they be at this have from or had by not but we you i",
    "es": "el la los las de que y en un una es no se por con para su al lo como más pero sus le ya este muy está del",
    "fr": "le la les de des et est un une du en que qui dans pour pas au sur ne se ce il elle avec son par vous je",
    "it": "il la di che e è un una per non in sono con del della le si da lo come più ma al dei gli nel questo anche",
    "nl": "de het een en van is dat niet op te zijn met voor er aan die als maar om bij ook naar uit wat ik je hij wij",
    "pl": "i w na z się nie do to jest że o jak ale po co tak za od przez dla są tego czy już może ten być go",
    "pt": "o a os as de que e do da em um uma para com não por mais se na no é dos como mas ao ele das à seu sua você",
    "sv": "och i att det som en på är av för med den till inte om har de ett jag han var men sig så ska från vi kan",
    "tr": "bir ve bu da de için ne mi ile çok daha o ama gibi ben en var kadar sonra olarak ki değil şey nasıl olan",
}
"""The most frequent words of the languages in Latin script."""
SCRIPTS = {
    "ar": "ARABIC", "el": "GREEK", "he": "HEBREW", "hi": "DEVANAGARI", "ja": "JAPANESE", "ko": "HANGUL",
    "ru": "CYRILLIC", "th": "THAI", "uk": "CYRILLIC", "zh": "CJK",
}  # fmt: skip
"""The scripts of the other languages."""
OWN_LETTERS = {"ru": set("ыэъё"), "uk": set("іїєґ")}
LANGUAGES = tuple(sorted({*STOP_WORDS, *SCRIPTS}))
MOST = 0.7
"""Share of the letters that must be in the script."""
READ = 5000
"""Characters that are looked at."""

_STOP = {language: frozenset(words.split()) for language, words in STOP_WORDS.items()}


def is_language(text: str, language: str) -> bool:
    """Return whether a text is in a language. A text without letters is in none."""
    text = unicodedata.normalize("NFC", text[:READ]).lower()
    scripts = Counter(_script(letter) for letter in text if letter.isalpha())
    total = sum(scripts.values())
    if not total:
        return False
    if language in SCRIPTS:
        return _in_script(text, scripts, total, language)
    if scripts["LATIN"] < MOST * total:
        return False
    words = re.findall(r"[^\W\d_]+", text)
    found = {name: sum(word in known for word in words) for name, known in _STOP.items()}
    return found[language] > 0 and found[language] == max(found.values())


def _in_script(text: str, scripts: Counter[str], total: int, language: str) -> bool:
    if language == "ja":
        kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
        return kana > 0 and kana + scripts["CJK"] >= MOST * total
    if language == "zh" and scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.05 * total:
        return False
    if language in OWN_LETTERS:
        other = OWN_LETTERS["uk" if language == "ru" else "ru"]
        own = sum(letter in OWN_LETTERS[language] for letter in text)
        if sum(letter in other for letter in text) > own:
            return False
    return scripts[SCRIPTS[language]] >= MOST * total


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]
