"""Shards: the records of a source file on disk. Each row is a record with its tokens, hashes and MinHash signature.

A shard depends only on its file, the source's settings and the renderer, never on other files. It can therefore be
cached, and the next ingestion reads only the files that changed. Decisions that span files are made in `selection`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from alignment_core.data.dataset.arrow_columns import arrow_array, numpy_array
from alignment_core.data.dataset.disk_arrays import DiskColumns, disk_array, index_batches
from alignment_core.data.dataset.kinds import FEEDBACK, PROMPT
from alignment_core.data.dataset.stored_rows import SIDES, token_schema
from alignment_core.data.ingestion.kept_columns import to_json
from alignment_core.data.ingestion.minhash import PERMUTATIONS, signature
from alignment_core.data.ingestion.record_parts import (
    RecordParts,
    canonical,
    digest64,
    plain_text,
    split_record,
    words_hash,
)
from alignment_core.data.rendering.renderer import Renderer, Request, Tokens, Unrenderable
from alignment_core.plugin_api import TokenSequence
from alignment_core.records.format import Quarantined, Reading

LONGEST = 1_000_000
"""Characters of a record's texts: more than the context of any model that is trained here holds."""
CUT = 2_000
"""Characters of a longer record that its line in the quarantine shows."""
BATCH, BATCH_CHARACTERS = 256, 4_000_000
"""Number of records that are tokenized together, and the characters of their texts from which fewer are. With its
tokens, masks and hashes, a character takes about 200 bytes for that time."""
KEPT_BATCHES = 16
"""Number of record batches that are kept in memory for look-ups of single records."""
NUMBERS = (
    "kind", "sign", "weight", "margin", "voter", "when", "root", "prompt_hash", "first_hash", "second_hash",
    "facts_hash", "fits", "truncated", "rewritten", "prompt_tokens", "head_tokens", "first_tokens", "second_tokens",
    "tokens", "targets",
)  # fmt: skip
"""Columns that `selection` works on. They are kept in files and take about 100 bytes per record."""
HASHES = ("prompt_hash", "first_hash", "second_hash", "facts_hash")
TOKEN_COUNTS = ("prompt_tokens", "head_tokens", "first_tokens", "second_tokens", "tokens", "targets")
"""Tokens in the prompt alone, the completions' prompt, each completion, the demonstration, and its targets."""


def shard_schema() -> Any:
    """Return the Arrow schema of a shard: the text, numbers and tokens of each record.

    `first` and `second` are the completions: chosen and rejected, or the response, or a demonstration's last turn.
    `…_text` is their JSON. `…_hash` is 0 for an absent part. `reason` and `detail` say why a record does not fit.
    """
    import pyarrow as pa

    texts = ("line", "prompt_text", "first_text", "second_text", "reason", "detail")
    return pa.schema(
        [
            *[pa.field(name, pa.string()) for name in texts],
            *[pa.field(name, pa.int8()) for name in ("kind", "sign")],
            pa.field("file", pa.int32()),
            *[pa.field(name, pa.float64()) for name in ("weight", "margin", "when")],
            *[pa.field(name, pa.uint64()) for name in ("voter", "root", *HASHES)],
            *[pa.field(name, pa.bool_()) for name in ("fits", "truncated", "rewritten")],
            *[pa.field(name, pa.int32()) for name in TOKEN_COUNTS],
            pa.field("signature", pa.list_(pa.uint32(), PERMUTATIONS)),
            *token_schema(),
        ]
    )


class ShardWriter:
    """Tokenizes records and appends them to a shard.

    Attributes:
        rendering: assistant turns that are no targets (`left_out`) by reason, and thoughts for which the template has
            no place (`thoughts`) by what becomes of them.
    """

    def __init__(self, path: Path, renderer: Renderer) -> None:
        import pyarrow as pa

        self._renderer = renderer
        self._schema = shard_schema()
        self._writer = pa.ipc.new_file(str(path), self._schema)
        self._waiting: list[tuple[Reading, RecordParts, str, int]] = []
        self._characters = 0
        self._signature: tuple[int, Any] = (0, None)
        self.rendering: dict[str, Counter[str]] = {"left_out": Counter(), "thoughts": Counter()}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()

    def add(self, reading: Reading, line: str, file: int = 0) -> Quarantined | None:
        """Append a record from `line` of the shard's file with index `file`, or return why it is left out."""
        item = split_record(reading.record)
        if (length := item.characters()) > LONGEST:
            detail = f"its texts have {length:,} characters, and at most {LONGEST:,} are read"
            return Quarantined(reading.record.origin, "text_too_long", detail, item.text()[:CUT])
        self._waiting.append((reading, item, line, file))
        self._characters += length
        if len(self._waiting) == BATCH or self._characters > BATCH_CHARACTERS:
            self._flush()
        return None

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._waiting:
            return
        results = self._renderer.batch([_request(item) for _, item, _, _ in self._waiting])
        rows = [
            {**self._row(reading, item, result), "line": line, "file": file}
            for (reading, item, line, file), result in zip(self._waiting, results, strict=True)
        ]
        columns = [arrow_array([row.get(field.name) for row in rows], field.type) for field in self._schema]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._waiting.clear()
        self._characters = 0

    def _row(self, reading: Reading, item: RecordParts, result: Tokens | Unrenderable) -> dict[str, Any]:
        prompt = canonical(item.prompt)
        texts = [canonical(completion) for completion in item.completions]
        first, second = [*texts, None, None][:2]
        prompt_hash = digest64(prompt) if item.prompt else 0
        facts = to_json(item.facts) if item.facts else None
        row = {
            "kind": item.kind,
            "sign": item.sign,
            "weight": item.weight,
            "margin": item.margin,
            "voter": 0 if reading.voter is None else digest64(reading.voter),
            "when": reading.when,
            "root": words_hash(reading.conversation) if reading.conversation else item.root(),
            "prompt_text": prompt,
            "first_text": first,
            "second_text": second,
            "prompt_hash": prompt_hash,
            "first_hash": 0 if first is None else digest64(first),
            "second_hash": 0 if second is None else digest64(second),
            "facts": facts,
            "facts_hash": 0 if facts is None else digest64(facts),
        }
        if isinstance(result, Unrenderable):
            return {**row, **_UNFIT, "reason": result.reason, "detail": result.what}
        self.rendering["left_out"].update(result.left_out)
        self.rendering["thoughts"].update(result.thoughts)
        return {**row, "signature": self._signed(prompt_hash, item), **_token_fields(result)}

    def _signed(self, prompt_hash: int, item: RecordParts) -> Any:
        """Return the signature. The last one is cached, because records with the same prompt are often consecutive."""
        if not prompt_hash or self._signature[0] != prompt_hash:
            self._signature = (prompt_hash, signature(item.text()))
        return self._signature[1]


_UNFIT = {
    **dict.fromkeys(("fits", "truncated", "rewritten"), False),
    **dict.fromkeys(TOKEN_COUNTS, 0),
    "signature": [0] * PERMUTATIONS,
}


def _request(item: RecordParts) -> Request:
    imitated = item.kind not in (PROMPT, FEEDBACK) or item.sign > 0
    return Request(item.prompt, item.completions, demonstration=imitated, waiting=bool(item.prompt))


def _token_fields(tokens: Tokens) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "fits": True,
        "truncated": tokens.truncated,
        "rewritten": tokens.rewritten,
        **dict.fromkeys(TOKEN_COUNTS, 0),
    }
    head: tuple[int, ...] | None = tokens.completions[0].prompt if tokens.completions else None
    if head is not None:
        fields |= {"head": head, "head_tokens": len(head)}
    if tokens.prompt is not None:
        ids = tokens.prompt.ids
        fields |= {
            "prompt": None if ids == head else ids,
            "prompt_tokens": len(ids),
            "messages": canonical(tokens.kept),
        }
    for name, sequence in zip(SIDES, tokens.completions, strict=False):
        completion = sequence.completion
        fields |= {name: completion, f"{name}.mask": sequence.mask, f"{name}_tokens": len(completion)}
    if tokens.demonstration is not None:
        fields |= {"demonstration.start": tokens.demonstration.start, "demonstration.mask": tokens.demonstration.mask}
        fields |= {"tokens": len(tokens.demonstration.ids), "targets": tokens.demonstration.targets}
    return fields


class Shards:
    """The records of several shards as one table, read from disk one batch at a time.

    Args:
        paths: the shards.
        names: names of each shard's files, as shown in reports.
        scratch: a folder for temporary files.

    Attributes:
        names: names of each shard's files, as shown in reports.
        numbers: the columns `NUMBERS` of all records, and `shard`, the index of each record's shard. Backed by files.
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[Sequence[str]], scratch: Path) -> None:
        import pyarrow as pa

        self.names = list(names)
        # Not memory-mapped: pages that are read once would stay resident as long as RAM is free.
        self._readers = [pa.ipc.open_file(pa.OSFile(str(path))) for path in paths]
        self._places = [
            (shard, index) for shard, reader in enumerate(self._readers) for index in range(reader.num_record_batches)
        ]
        self._kept: dict[int, Any] = {}
        sizes = []
        spool = DiskColumns(scratch)
        spool.append(**{name: np.zeros(0, dtype=_dtype(name)) for name in NUMBERS}, shard=np.zeros(0, dtype=np.int32))
        for place, (shard, _) in enumerate(self._places):
            batch = self._read(place)
            sizes.append(batch.num_rows)
            columns = {name: numpy_array(batch.column(name)) for name in NUMBERS}
            spool.append(**columns, shard=np.full(batch.num_rows, shard))
        self._ends = list(accumulate(sizes))
        self.numbers: dict[str, Any] = spool.arrays()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def batches(self) -> Iterator[tuple[int, Sequence[str], Any]]:
        """Yield the index of each batch's first record, the names of its shard's files, and the batch."""
        start = 0
        for place, end in enumerate(self._ends):
            yield start, self.names[self._places[place][0]], self._read(place)
            start = end

    def value(self, index: int, column: str) -> Any:
        """Return one record's value in one column."""
        place = bisect_right(self._ends, index)
        if place not in self._kept:
            if len(self._kept) == KEPT_BATCHES:
                del self._kept[next(iter(self._kept))]
            self._kept[place] = self._read(place)
        start = self._ends[place - 1] if place else 0
        return self._kept[place].column(column)[index - start].as_py()

    def _read(self, place: int) -> Any:
        shard, index = self._places[place]
        return self._readers[shard].get_batch(index)

    def origin(self, index: int) -> str:
        """Return `file:line` of a record."""
        names = self.names[int(self.numbers["shard"][index])]
        return origin(names[self.value(index, "file")], self.value(index, "line"))

    def reasons(self) -> Counter[str]:
        """Count the records that cannot be tokenized, by reason."""
        return Counter(self.value(index, "reason") for index in self.unfit())

    def unfit(self) -> Iterator[int]:
        """Yield the records that cannot be tokenized."""
        for part in index_batches(~self.numbers["fits"]):
            yield from part.tolist()

    def text(self, index: int, *columns: str) -> str:
        """Return the text of some parts of a record (`prompt`, `first`, `second`)."""
        found = [self.value(index, f"{column}_text") for column in columns]
        return "\n".join(plain_text(json.loads(text)) for text in found if text is not None)

    def signatures(self, chosen: Any, scratch: Path) -> Any:
        """Return the signatures of the records in `chosen`, shape (records, 64), uint32. Other records get zeros."""
        result = disk_array(scratch, (len(self), PERMUTATIONS), np.uint32)
        for start, _, batch in self.batches():
            wanted = np.flatnonzero(chosen[start : start + batch.num_rows])
            if len(wanted):
                values = numpy_array(batch.column("signature").values).reshape(-1, PERMUTATIONS)
                result[start + wanted] = values[wanted]
        return result

    def sequence(self, index: int, name: str) -> TokenSequence:
        """Return the token sequence `first`, `second` or `demonstration` of a record."""
        ids = self.value(index, "second" if name == "second" else "first")
        head = self.value(index, "head")
        start = self.value(index, "demonstration.start") if name == "demonstration" else len(head)
        mask = self.value(index, f"{name}.mask")
        return TokenSequence((*head, *ids), start, None if mask is None else tuple(mask))


def origin(file: str, line: str) -> str:
    """Return `file:line`, or the part of it that is known."""
    return f"{file}:{line}" if file and line else file or line


def _dtype(name: str) -> Any:
    return shard_schema().field(name).type.to_pandas_dtype()
