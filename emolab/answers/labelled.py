"""Texts that somebody wrote, with their labels: from {label: [text]}, a table or a file, every row accounted for.

>>> labelled({"joy": ["What a day!"], "neutral": ["It is a day."]})
     label          text
0      joy   What a day!
1  neutral  It is a day.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emolab.base.errors import EmolabError, FileError, is_text, need_texts, shown
from emolab.base.labels import need_labels
from emolab.vectors.token_rule import whole_starts

COLUMNS = ("label", "text", "topic", "start")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# The labels of GoEmotions (Demszky et al. 2020, arXiv 2005.00547) by their ids; its columns that are no label.
GOEMOTIONS = (
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval "
    "disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief "
    "remorse sadness surprise neutral"
).split()
_ABOUT = "id author subreddit link_id parent_id created_utc rater_id example_very_unclear".split()
_YES, _NO = {"1", "1.0", "True"}, {"0", "0.0", "False"}
_IDS = re.compile(r"\[?\s*\d+(?:[\s,]+\d+)*\s*\]?|\[\s*\]")  # "27", "2,14", "[2 14]", "[]"


def labelled(texts: Mapping[str, Sequence[str]] | pd.DataFrame | str | Path) -> pd.DataFrame:
    """One row a text, label by label, columns label and text, and topic and start where they are given.

    Columns are found whatever the case of their names, in files with commas, semicolons, tabs or bars. Without a column
    label, one column of 0 and 1 for each label, or GoEmotions as it is published (tabs, no header, ids of labels).
    Texts with several labels, or none of these, are left out with one warning that counts them. Rows count from 0.
    Raises EmolabError, with row and label, for what is no text, labels that differ only by case or space, rows that a
    lost quotation mark has merged, and a `start` that is no number within its text.
    """
    if isinstance(texts, str | Path):
        table = _read(Path(texts).expanduser())
    else:
        table = texts.copy() if isinstance(texts, pd.DataFrame) else _of_groups(texts)
    table = _single(_named(table)).reset_index(drop=True)
    _check(table)
    first = {label: i for i, label in enumerate(table["label"].unique())}
    table = table[[column for column in COLUMNS if column in table]]
    table = table.sort_values("label", key=lambda labels: labels.map(first), kind="stable", ignore_index=True)
    return table.assign(label=table["label"].astype(str), text=table["text"].astype("str"))


def _of_groups(texts: Any) -> pd.DataFrame:
    groups = texts.values() if isinstance(texts, Mapping) else [""]
    if any(isinstance(group, str | Mapping | pd.DataFrame) or not hasattr(group, "__iter__") for group in groups):
        raise EmolabError(
            'responses_from_texts takes {"joy": ["text", ...], "neutral": ["text", ...]}; got something else'
        )
    need_texts("conditions", texts, filled=True)
    if {"label", "text"} <= {*texts} <= {*COLUMNS}:
        raise EmolabError("these texts are labelled 'label' and 'text'; give a table: pandas.DataFrame(texts)")
    rows = [(label, text) for label, group in texts.items() for text in group]
    empty = sorted({*texts} - {label for label, _ in rows})
    if rows and empty:
        raise EmolabError(f"there is no text under {', '.join(map(repr, empty))}; give one at least, or leave it out")
    return pd.DataFrame(rows, columns=["label", "text"], dtype=object)


def _read(path: Path) -> pd.DataFrame:
    """The rows of a file as strings; every record must have as many fields as there are columns."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {path} as CSV ({error}); expected columns label and text, in UTF-8") from error
    top = content.splitlines()[0] if content.strip() else ""
    widths: dict[str, int] = {}
    for separator in _SEPARATORS:
        with contextlib.suppress(csv.Error):  # a field of more than 128 kB
            header = [_fold(name) for name in next(csv.reader([top], delimiter=separator), [])]
            if "text" in header:
                widths[separator] = len(header)
    if not widths:
        return _goemotions(content, path, top)
    separator = max(widths, key=lambda separator: widths[separator])
    try:
        return _records(content, path, separator)
    except FileError:
        if separator != "\t":
            raise
    return _records(content, path, separator, quoted=False)  # tabs are often written without any quoting


def _records(content: str, path: Path, separator: str, *, quoted: bool = True) -> pd.DataFrame:
    reader = csv.reader(
        io.StringIO(content, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        skipinitialspace=separator + " " in content.splitlines()[0],
        strict=True,
    )
    advice = f"quote texts that hold {_SEPARATORS[separator]} or line breaks, and close each quotation mark"
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
    rows = [line.split("\t") for line in content.splitlines() if line]
    if not rows or any(len(row) != 3 or not _IDS.fullmatch(row[1]) for row in rows):
        raise FileError(
            f"cannot read {path} as CSV (its first line is {shown(top)}, without a column 'text'); expected a first "
            "line that names the columns label and text, or GoEmotions as published"
        )
    return pd.DataFrame(rows, columns=["text", "labels", "id"])


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its own columns under their names, found whatever their case; a column label in any case."""
    folded = [_fold(name) for name in table.columns]
    given = ["label" if name == "labels" and "label" not in folded else name for name in folded]
    twice = [name for name in COLUMNS if given.count(name) > 1]
    if twice:
        raise EmolabError(f"the table has the column {twice[0]!r} {given.count(twice[0])} times; keep one")
    ids = "labels" in folded and "id" in folded  # of GoEmotions, not of somebody else's labels
    table.columns = [name if name in COLUMNS else old for name, old in zip(given, table.columns, strict=True)]
    if "text" not in table:
        raise EmolabError(_lacks(table, "text"))
    if "label" not in table:
        return _of_columns(table)
    lists = [isinstance(x, list | tuple) or hasattr(x, "tolist") for x in table["label"]]
    if any(lists) or (ids and all(_IDS.fullmatch(str(x)) for x in table["label"])):
        table["label"] = [_listed(x, ids) for x in table["label"]]
    return table


def _listed(value: Any, goemotions: bool) -> list[str]:
    """The labels of one text, given as a list of them or as "2,14"."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str) and _IDS.fullmatch(value):
        value = re.findall(r"\d+", value)
    labels = [str(x) for x in (value if isinstance(value, list | tuple) else [value])]
    if goemotions and all(label.isdecimal() and int(label) < len(GOEMOTIONS) for label in labels):
        return [GOEMOTIONS[int(label)] for label in labels]
    return labels


def _of_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Labels from columns of 0 and 1."""
    carried: list[tuple[str, pd.Series]] = []  # a label, and which texts carry it
    for number, name in enumerate(table.columns):
        values = table.iloc[:, number]
        if name not in (*COLUMNS, *_ABOUT) and values.notna().any() and {*values.dropna().map(str)} <= _YES | _NO:
            gap = values.isna().to_numpy()
            if gap.any():
                raise EmolabError(f"column {name!r} has no value in row {gap.argmax()}; expected 0 or 1")
            carried.append((str(name), values.map(str).isin(_YES)))
    if len(carried) < 2:
        raise EmolabError(_lacks(table, "label"))
    labels = [[label for label, by in carried if by.iloc[row]] for row in range(len(table))]
    return table.assign(label=pd.Series(labels, index=table.index, dtype=object))


def _single(table: pd.DataFrame) -> pd.DataFrame:
    """The texts with one label, where labels came as lists."""
    if not any(isinstance(x, list) for x in table["label"]):
        return table
    single = table["label"].map(len) == 1
    if not single.all():
        left = (~single).sum()
        warnings.warn(f"{left} of {len(table)} texts carry several labels or none and were left out", stacklevel=4)
    return table[single].assign(label=table["label"][single].str[0])


def _check(table: pd.DataFrame) -> None:
    labels = [None if pd.isna(x) else str(x) for x in table["label"]]
    for row, (label, text) in enumerate(zip(labels, table["text"], strict=True)):
        if not is_text(label, filled=True):
            raise EmolabError(
                f"the table has rows without a label (row {row}, {shown(text)}); expected a label and a text in each"
            )
        if not is_text(text):
            raise EmolabError(
                f"responses_from_texts needs texts (str), found {shown(text)} in row {row} ({label}); "
                "give {'joy': ['text'], 'neutral': ['text']}"
            )
    if not labels:
        raise EmolabError(
            "responses_from_texts needs texts (str), there is none; give {'joy': ['text'], 'neutral': ['text']}"
        )
    need_labels([str(x) for x in labels], "the column 'label'")
    names = "|".join(re.escape(str(x)) for x in dict.fromkeys(labels))
    merged = re.compile(rf'^"?(?:{names})"?[,;\t|](?=\S)|(?<=[,;\t|])"?(?:{names})"?$', re.MULTILINE)
    for row, (label, text) in enumerate(zip(labels, table["text"], strict=True)):
        seam = merged.search(text) if "\n" in text else None
        if seam:
            raise EmolabError(
                f"the text of row {row} ({label}) holds a line with {shown(seam[0])}, as if a lost quotation mark had "
                f"merged rows: {shown(text)}; close it, or write that line otherwise"
            )
    for row, topic in enumerate(table["topic"] if "topic" in table else ()):
        if pd.isna(topic) or not str(topic).strip():
            raise EmolabError(f"row {row} ({labels[row]}) has no topic; expected one in each row, or no column 'topic'")
    if "start" in table:
        table["start"] = whole_starts(table, labels)


def _fold(name: Any) -> str:
    return " ".join(str(name).split()).casefold()


def _lacks(table: pd.DataFrame, column: str) -> str:
    names = ", ".join(map(repr, table.columns))
    return f"the table has no column {column!r}, but {names or 'none'}; expected a label and a text in each row"
