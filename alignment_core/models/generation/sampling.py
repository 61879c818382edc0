"""Sample responses to prompts: in which batches, and what is kept if the memory ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.decoding import Decoding, choose_decoding
from alignment_core.models.generation.padded_batch import PaddedBatch
from alignment_core.models.generation.response import Response
from alignment_core.models.generation.slot_batch import SlotBatch
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence

_ways: WeakKeyDictionary[Roles, Decoding] = WeakKeyDictionary()


def generate(
    roles: Roles,
    role: str,
    prompts: Sequence[TokenSequence],
    *,
    noise_keys: Sequence[str],
    sampling: Sampling,
    stop_ids: Sequence[int],
    pad_id: int,
    budget: Budget,
    on_step: Callable[[float], None],
    on_token: Callable[[int, int], None] = lambda row, token: None,
) -> list[Response]:
    """Sample one response per prompt, ending with its stop token if it reached one.

    The noise of a row depends only on its key, so batch, padding and order do not change the response (within float
    tolerance).

    Args:
        noise_keys: one string per prompt, e.g. seed, step, row and sample number.
        budget: one batch may hold `Roles.generation_cache_factor` times its tokens (prompts and responses, padding
            included).
        on_step: called before every token with the number of finished responses, to which an unfinished one adds the
            share of its longest length that it has; may raise to stop.
        on_token: called with the index of the prompt and each new token of its response. After an out-of-memory
            error, the rows of that batch that were not finished start over.

    Returns:
        The response to each prompt.

    Raises:
        ModelError: a prompt with its response is too long for the model, or its logits contain NaN.
    """
    results: dict[int, Response] = {}
    room = [len(prompt.ids) + sampling.max_new_tokens for prompt in prompts]
    roles.reach.check(max(room, default=0))

    def remaining() -> None:
        at_work: Counter[int] = Counter()
        way = decoding_of(roles, role)
        todo = [i for i in range(len(prompts)) if i not in results]
        for group, at_once, reading in _groups(todo, prompts, room, budget, roles, way):
            rows, keys = [prompts[i].ids for i in group], [noise_keys[i] for i in group]
            batch: SlotBatch | PaddedBatch
            if reading.slots:
                batch = SlotBatch(roles, role, rows, keys, sampling, set(stop_ids), at_once, str(reading.argument))
            else:
                batch = PaddedBatch(roles, role, rows, keys, sampling, set(stop_ids), pad_id, reading)

            def on_end(place: int, response: Response, group: Sequence[int] = group, slow: bool = reading.slow) -> None:
                results[group[place]] = replace(response, slow=slow)
                del at_work[group[place]]

            def report(place: int, token: int, group: Sequence[int] = group) -> None:
                at_work[group[place]] += 1
                on_token(group[place], token)

            batch.run(lambda: on_step(len(results) + at_work.total() / sampling.max_new_tokens), report, on_end)
            on_step(len(results))

    budget.fit(remaining)
    return [results[i] for i in range(len(prompts))]


def decoding_of(roles: Roles, role: str) -> Decoding:
    """Return how the model is generated from, tried when it is first asked for."""
    if roles not in _ways:
        with roles.use(role), roles.autocast():
            _ways[roles] = choose_decoding(roles.model, roles.reach)
    return _ways[roles]


def _groups(
    todo: Sequence[int],
    prompts: Sequence[TokenSequence],
    room: Sequence[int],
    budget: Budget,
    roles: Roles,
    way: Decoding,
) -> Iterator[tuple[list[int], int, Decoding]]:
    """Yield the rows of each batch, longest first, how many of them are generated at a time, and in which way.

    Rows with the same prompt follow each other, so that it is read once.
    """
    first: dict[tuple[int, ...], int] = {}
    for i in todo:
        first.setdefault(prompts[i].ids, i)
    together = [i for i in todo if room[i] <= roles.reach.batched]
    together.sort(key=lambda i: (-room[i], first[prompts[i].ids], i))
    tokens = budget.tokens * roles.generation_cache_factor()
    lengths = [room[i] for i in together]
    if way.slots:
        found = slot_groups(lengths, tokens)
    else:
        found = [(group, len(group)) for group in padded_groups(lengths, tokens, way)]
    yield from (([together[place] for place in group], at_once, way) for group, at_once in found)
    # A cache would keep what a longer row changes.
    yield from (([i], 1, way.alone()) for i in todo if room[i] > roles.reach.batched)


def padded_groups(lengths: Sequence[int], tokens: int, way: Decoding) -> list[list[int]]:
    """Split rows, longest first, into the batches of a model without slots. Returns groups of their indices.

    Args:
        lengths: length of each row in tokens, prompt and longest response, descending.
        tokens: that a batch may hold, padding included. A longer row is alone.
        way: which rows may share a batch.
    """
    groups: list[list[int]] = []
    for i, length in enumerate(lengths):
        longest = lengths[groups[-1][0]] if groups else 0
        fits = groups and (len(groups[-1]) + 1) * longest <= tokens
        if fits and (way.together or (way.equal and length == longest)):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def slot_groups(lengths: Sequence[int], tokens: int) -> list[tuple[list[int], int]]:
    """Split rows into groups of similar length, each of which is generated in slots as long as its longest row.

    Args:
        lengths: length of each row in tokens, prompt and longest response.
        tokens: that the slots may hold together. A longer row has a slot alone.

    Returns:
        The indices of each group, longest rows first, and its number of slots. Rows that need less than half of a slot
        form a group of their own if it has more slots.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups = []
    while order:
        longest = lengths[order[0]]
        slots = max(1, tokens // longest)
        count = max(slots, sum(2 * lengths[i] >= longest for i in order))
        rest = order[count:]
        if rest and min(len(rest), tokens // lengths[rest[0]]) <= slots:
            count = len(order)  # each further group takes as many steps as its longest response
        groups.append((order[:count], min(slots, count, len(order))))
        order = order[count:]
    return groups
