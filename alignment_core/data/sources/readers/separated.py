"""Read CSV and TSV, including cells that span several lines."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from typing import IO

from alignment_core.data.sources.readers.lines import MAX_LINE, numbered_lines
from alignment_core.data.sources.readers.unreadable import Unreadable
from alignment_core.records import RawRow


def separated_rows(name: str, stream: IO[bytes], delimiter: str, headerless: bool) -> Iterator[RawRow | Unreadable]:
    """Yield the rows of CSV or TSV. Columns are named by the first line, or "0", "1", … if `headerless`."""
    csv.field_size_limit(MAX_LINE)
    bad: list[Unreadable] = []

    def decoded() -> Iterator[str]:
        for line in numbered_lines(name, stream):
            if isinstance(line, Unreadable):
                bad.append(line)
                continue
            number, data = line
            try:
                yield data.decode("utf-8") + "\n"
            except UnicodeDecodeError as error:
                bad.append(Unreadable(f"{name}:{number}", "not_utf8", str(error), repr(data[:2000])))

    lines = decoded()
    first = next(lines, "")
    if delimiter == "," and "," not in first:  # spreadsheets write these if the comma is the decimal separator
        delimiter = next((other for other in (";", "\t") if other in first), delimiter)
    plain = headerless and delimiter == "\t"  # such files have no quoting
    text = chain([first] if first else [], lines)
    reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
    header: list[str] | None = None
    line = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Unreadable(f"{name}:{line}", "bad_csv", str(error))
            continue
        yield from bad
        bad.clear()
        if cells is None:
            return
        if not cells:
            continue
        if headerless:
            yield RawRow({str(index): cell for index, cell in enumerate(cells)}, f"{name}:{line}")
        elif header is None:
            header = cells
        elif len(cells) != len(header):
            detail = f"the number of cells is {len(cells)}, expected {len(header)} as in the header"
            yield Unreadable(f"{name}:{line}", "bad_csv", detail, cells)
        else:
            yield RawRow(dict(zip(header, cells, strict=True)), f"{name}:{line}")
