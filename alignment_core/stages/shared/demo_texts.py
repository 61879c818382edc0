"""Generate the texts of the demo, and define its true rule of what makes an answer good.

Each text describes an animal. Many texts have a flaw: a rude word, no kind word, or the wrong color or animal. By the
true rule, a good answer names the requested animal and color, says something kind and nothing rude. No text states this
rule. The optimizers only see noisy comparisons that were made with it.
"""

from __future__ import annotations

import random
from typing import Any

COLOURS = ["red", "blue", "green", "brown", "white", "black", "golden", "grey", "pink", "orange", "purple", "silver"]
ANIMALS = [
    "fox",
    "cat",
    "dog",
    "bear",
    "owl",
    "frog",
    "horse",
    "mouse",
    "duck",
    "lion",
    "goat",
    "whale",
    "rabbit",
    "tiger",
    "sheep",
    "crow",
]
KIND = ["kind", "gentle", "brave", "clever", "friendly", "lovely"]
NEUTRAL = ["small", "old", "quiet", "tall", "young", "round"]
RUDE = ["stupid", "ugly", "lazy", "nasty", "awful", "boring"]
VERBS = ["run", "sleep", "sing", "play", "swim", "hide", "dance", "jump"]
PLACES = ["garden", "forest", "river", "house", "field", "village", "mountain", "barn"]
REQUESTS = (
    "tell me about the {colour} {animal}",
    "what is the {colour} {animal} like ?",
    "describe a {colour} {animal} for me",
    "my {colour} {animal} is here . what do you think of it ?",
    "say something about this {colour} {animal}",
)
LAYOUTS = (
    "{request}\n{answer}",
    "Question: {request} Answer: {answer}",
    "{request} - {answer}",
    "* {request}\n* {answer}",
)
COLOUR_IS_RIGHT, ANIMAL_IS_RIGHT = 0.92, 0.95
ADJECTIVE_SHARES = (0.4, 0.35, 0.25)

TRUE_RULE: dict[str, Any] = {
    "name": "wordlist",
    "wanted": KIND,
    "unwanted": RUDE,
    "echo": COLOURS + ANIMALS,
}


def answer(colour: str, animal: str, noise: random.Random) -> str:
    """Return a text about the animal, with random flaws."""
    if noise.random() > COLOUR_IS_RIGHT:
        colour = noise.choice(COLOURS)
    if noise.random() > ANIMAL_IS_RIGHT:
        animal = noise.choice(ANIMALS)
    sentences = [f"the {colour} {animal} is {_adjective(noise)} ."]
    if noise.random() < 0.4:
        sentences.append(f"people say it is {_adjective(noise)} .")
    if noise.random() < 0.5:
        sentences.append(f"it likes to {noise.choice(VERBS)} in the {noise.choice(PLACES)} .")
    return " ".join(sentences)


def documents(count: int, seed: int) -> list[str]:
    """Return plain texts for training the base model: requests with answers in several layouts, none of them a chat."""
    noise = random.Random(seed)
    texts = []
    for _ in range(count):
        colour, animal = noise.choice(COLOURS), noise.choice(ANIMALS)
        request = noise.choice(REQUESTS).format(colour=colour, animal=animal)
        texts.append(noise.choice(LAYOUTS).format(request=request, answer=answer(colour, animal, noise)))
    return texts


def demonstrations(seed: int) -> list[dict[str, Any]]:
    """Return one conversation for every possible request, in random order."""
    noise = random.Random(seed)
    rows = []
    for request in REQUESTS:
        for colour in COLOURS:
            for animal in ANIMALS:
                asked = request.format(colour=colour, animal=animal)
                turns = [("user", asked), ("assistant", answer(colour, animal, noise))]
                rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    noise.shuffle(rows)
    return rows


def _adjective(noise: random.Random) -> str:
    (words,) = noise.choices((KIND, NEUTRAL, RUDE), ADJECTIVE_SHARES)
    return noise.choice(words)
