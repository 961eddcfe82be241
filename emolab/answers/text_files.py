"""Files of texts as people have them: commas, semicolons, tabs or bars, JSON, parquet, GoEmotions as published.

What is a label and what a text is for `answers.labelled` to say.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from pathlib import Path
from typing import Any

import pandas as pd

from emolab.base.errors import FileError, shown
from emolab.base.labels import fold
from emolab.base.storage import parse_json

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LINES = re.compile(r"\r\n|\r|\n")  # what ends a line of a file; str.splitlines knows more, which stand in texts
_JSON, _PARQUET = (".json", ".jsonl", ".ndjson"), (".parquet", ".pq")
IDS = re.compile(r"\[?\s*\d+(?:[\s,]+\d+)*\s*\]?|\[\s*\]")  # "27", "2,14", "[2 14]", "[]"


def read_file(path: Path) -> Any:
    """What a file holds: a table, of a file with separators as strings, each row with as many fields as there are
    columns; of JSON {label: [text]} or a list of records. FileError, with the line, for what cannot be read.

    >>> read_file(Path("texts.csv")).columns.to_list()                                     # doctest: +SKIP
    ['label', 'text']
    """
    if path.suffix.lower() in _PARQUET:
        try:
            return pd.read_parquet(path)
        except Exception as error:  # pyarrow raises many kinds
            raise FileError(f"{path} is missing, damaged or no parquet file ({shown(str(error))})") from error
    content = _content(path)
    if path.suffix.lower() in _JSON:
        return _json(content, path)
    content = content.lstrip("\r\n")
    named = re.match(r"sep=(.)(?:\r\n|\r|\n)", content)  # as Excel writes it
    content = content[named.end() :] if named else content
    top = LINES.split(content, maxsplit=1)[0]
    widths: dict[str, int] = {}
    for separator in named[1] if named else _SEPARATORS:
        with contextlib.suppress(csv.Error):  # a field of more than 128 kB
            header = [fold(name) for name in next(csv.reader([top], delimiter=separator), [])]
            if "text" in header:
                widths[separator] = len(header)
    if not widths:
        return _goemotions(content, path, top)
    separator = max(widths, key=lambda separator: widths[separator])
    if separator != "\t":
        return _records(content, path, separator)
    # Tabs are often written without any quoting: so they are where quotation marks span lines, or fit no row.
    try:
        table = _records(content, path, separator)
    except FileError:
        return _records(content, path, separator, quoted=False)
    if table.map(LINES.search).any(axis=None):
        with contextlib.suppress(FileError):
            return _records(content, path, separator, quoted=False)
    return table


def _content(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FileError(
            f"cannot read {path} ({error.strerror}); expected a table with columns label and text"
        ) from error
    wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        content = raw.decode("utf-16" if wide else "utf-8-sig")
    except ValueError as error:
        line = raw[: getattr(error, "start", 0)].count(b"\n") + 1
        raise FileError(
            f"line {line} of {path} is not in {'UTF-16' if wide else 'UTF-8'} ({error}); save it in UTF-8, or "
            "give pandas.read_csv(path, encoding='latin-1') where that is what it is in"
        ) from error
    if "\0" in content:
        line = content[: content.index("\0")].count("\n") + 1
        raise FileError(f"line {line} of {path} holds a NUL byte: it is damaged, or no text in UTF-8; save it anew")
    return content


def _json(content: str, path: Path) -> Any:
    """{label: [text]} or a list of records, of a file of either, of columns as pandas writes it, or a record a line."""
    lines = [(number, line) for number, line in enumerate(LINES.split(content), start=1) if line.strip()]
    by_line = path.suffix.lower() != ".json" or (len(lines) > 1 and re.fullmatch(r"\s*\{.*\}\s*", lines[0][1]))
    values = []
    for number, part in lines if by_line else [(1, content)]:
        try:
            values.append(parse_json(part))
        except (ValueError, RecursionError) as error:
            raise FileError(
                f"cannot read {path} as JSON (from line {number} on: {error}); expected {{label: [text, ...]}}, or "
                "records with label and text, in a list or one a line"
            ) from error
    value = values if by_line else values[0]
    if isinstance(value, dict) and "text" in map(fold, value):
        try:
            return pd.DataFrame(value, dtype=object).to_dict("records")
        except ValueError as error:
            raise FileError(f"the columns in {path} do not fit each other ({error}); get the file again") from error
    return value


def _records(content: str, path: Path, separator: str, *, quoted: bool = True) -> pd.DataFrame:
    reader = csv.reader(
        io.StringIO(content, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        skipinitialspace=separator + " " in LINES.split(content, maxsplit=1)[0],
        strict=True,
    )
    advice = (
        f"quote texts that hold {_SEPARATORS.get(separator, separator)} or line breaks, and close each quotation mark"
    )
    rows: list[list[str]] = []
    line = 1  # on which the row begins
    try:
        for row in reader:
            if rows and len(row) not in (0, len(rows[0])):
                raise FileError(f"line {line} of {path} has {len(row)} fields, its header {len(rows[0])}; {advice}")
            if row:
                rows.append(row)
            line = reader.line_num + 1
    except csv.Error as error:
        raise FileError(f"cannot read {path} as CSV (in the row of line {line}: {error}); {advice}") from error
    return pd.DataFrame(rows[1:], columns=rows[0], dtype=object)


def _goemotions(content: str, path: Path, top: str) -> pd.DataFrame:
    """Text, ids of labels and id of the comment, in lines without a header."""
    rows = [line.split("\t") for line in LINES.split(content) if line]
    if not rows or any(len(row) != 3 or not IDS.fullmatch(row[1]) for row in rows):
        raise FileError(
            f"cannot read {path} as CSV (its first line is {shown(top)}, without a column 'text'); expected a first "
            "line that names the columns label and text, or GoEmotions as published"
        )
    return pd.DataFrame(rows, columns=["text", "labels", "id"])
