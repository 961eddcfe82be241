"""Texts that somebody wrote, with their labels: from {label: [text]}, a table or a file, every row accounted for.

>>> labelled({"joy": ["What a day!"], "neutral": ["It is a day."]})
     label          text
0      joy   What a day!
1  neutral  It is a day.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emolab.answers.text_files import IDS, LINES, read_file
from emolab.base.errors import EmolabError, is_text, need_texts, shown
from emolab.base.labels import EMOTIONS, fold, need_labels
from emolab.base.storage import user_path
from emolab.vectors.token_rule import whole_starts

COLUMNS = ("label", "text", "topic", "start")
# The labels of GoEmotions (Demszky et al. 2020, arXiv 2005.00547) by their ids; its columns that are no label.
GOEMOTIONS = (
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval "
    "disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief "
    "remorse sadness surprise neutral"
).split()
_ABOUT = "id author subreddit link_id parent_id created_utc rater_id example_very_unclear".split()
_YES, _NO = {"1", "1.0", "true"}, {"0", "0.0", "false"}
_WHOLE = re.compile(r"(-?\d+)(?:\.0+)?")


def labelled(texts: Mapping[str, Sequence[str]] | Sequence[Mapping] | pd.DataFrame | str | Path) -> pd.DataFrame:
    """One row a text, label by label, columns label and text, and topic and start where they are given.

    A file holds commas, semicolons, tabs or bars (UTF-8, or UTF-16 with its mark), JSON ({label: [text]}, a list of
    records, one record a line) or parquet. Columns are found whatever the case of their names, in the index, too.
    Without a column label, one column of 0 and 1 for each label, or GoEmotions as published (tabs, no header, ids).
    White space around labels is taken off, and ".0" behind labels that are numbers. Texts with several labels, or none
    of these, are left out with one warning that counts them; others tell of texts that stand there twice, and of labels
    that differ by one letter. Rows count from 0. Raises EmolabError, with row and label, for what is no text, labels
    that look alike but for case, rows that a lost quotation mark has merged, a header in the midst, and a `start` that
    is no number within its text.
    """
    given: Any = read_file(user_path(texts)) if isinstance(texts, str | Path) else texts
    if isinstance(given, pd.DataFrame):
        table = given.copy()
    else:  # tables of pyarrow, polars and datasets become one of pandas
        table = given.to_pandas() if hasattr(given, "to_pandas") else _of_values(given)
    table = _single(_named(table)).reset_index(drop=True)
    table["label"] = _trimmed(list(table["label"]))
    _check(table)
    _warn_of_doubles(table, repeated=not isinstance(texts, Mapping))  # who writes lists repeats on purpose
    first = {label: i for i, label in enumerate(table["label"].unique())}
    table = table[[column for column in COLUMNS if column in table]]
    table = table.sort_values("label", key=lambda labels: labels.map(first), kind="stable", ignore_index=True)
    return table.assign(label=table["label"].astype(str), text=table["text"].astype("str"))


def _of_values(texts: Any) -> pd.DataFrame:
    """From {label: [text]}, or a list of records."""
    if isinstance(texts, list) and all(isinstance(record, Mapping) for record in texts):
        return pd.DataFrame(list(texts), columns=None if texts else ["label", "text"], dtype=object)
    groups = texts.values() if isinstance(texts, Mapping) else [""]
    if any(isinstance(group, str | Mapping | pd.DataFrame) or not hasattr(group, "__iter__") for group in groups):
        raise EmolabError(
            'responses_from_texts takes {"joy": ["text", ...], "neutral": ["text", ...]}; got something else'
        )
    need_texts("conditions", texts, filled=True)
    if {"label", "text"} <= {*texts} <= {*COLUMNS}:
        raise EmolabError("these texts are labelled 'label' and 'text'; give a table: pandas.DataFrame(texts)")
    rows = [(label, text) for label, group in zip(texts, groups, strict=True) for text in group]
    empty = sorted({*texts} - {label for label, _ in rows})
    if rows and empty:
        raise EmolabError(f"there is no text under {', '.join(map(repr, empty))}; give one at least, or leave it out")
    return pd.DataFrame(rows, columns=["label", "text"], dtype=object)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its own columns under their names, found whatever their case; a column label in any case."""
    if {fold(name) for name in table.index.names} & {*COLUMNS}:
        table = table.reset_index()
    folded = [fold(name) for name in table.columns]
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
    if any(lists) or (ids and all(IDS.fullmatch(str(x)) for x in table["label"])):
        table["label"] = pd.Series([_listed(x, ids) for x in table["label"]], index=table.index, dtype=object)
    return table


def _listed(value: Any, goemotions: bool) -> list[str]:
    """The labels of one text, given as a list of them or as "2,14"."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str) and IDS.fullmatch(value):
        value = re.findall(r"\d+", value)
    labels = [str(x) for x in (value if isinstance(value, list | tuple) else [value])]
    if goemotions and all(map(str.isdecimal, labels)):
        unknown = [label for label in labels if int(label) >= len(GOEMOTIONS)]
        if unknown:
            raise EmolabError(f"label {unknown[0]} is none of GoEmotions, which has 0 to {len(GOEMOTIONS) - 1}")
        return [GOEMOTIONS[int(label)] for label in labels]
    return labels


def _of_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Labels from columns of 0 and 1."""
    carried: list[tuple[str, np.ndarray]] = []  # a label, and which texts carry it
    known = {*EMOTIONS, *GOEMOTIONS}
    for number, name in enumerate(table.columns):
        if name in (*COLUMNS, *_ABOUT) or re.fullmatch(r"(unnamed: \d+)?", fold(name)):
            continue
        values = table.iloc[:, number]
        flags = values.map(lambda x: str(x).lower(), na_action="ignore")
        odd = ~flags.isin(_YES | _NO).to_numpy()
        if values.notna().any() and not odd[values.notna()].any() or fold(name) in known:
            if odd.any():
                row = odd.argmax()
                what = "no value" if pd.isna(values.iloc[row]) else shown(values.iloc[row])
                raise EmolabError(f"column {name!r} has {what} in row {row}; expected 0 or 1")
            carried.append((str(name), flags.isin(_YES).to_numpy()))
    if len(carried) < 2:
        raise EmolabError(_lacks(table, "label"))
    by_text = np.stack([by for _, by in carried], axis=1)
    labels = [[carried[i][0] for i in np.flatnonzero(row)] for row in by_text]
    return table.assign(label=pd.Series(labels, index=table.index, dtype=object))


def _single(table: pd.DataFrame) -> pd.DataFrame:
    """The texts with one label, where labels came as lists."""
    if not any(isinstance(x, list) for x in table["label"]):
        return table
    single = (table["label"].map(len) == 1).to_numpy()
    if not single.all():
        names = ", ".join(dict.fromkeys(name for labels in table["label"] for name in labels))
        warnings.warn(
            f"{(~single).sum()} of {len(table)} texts carry several labels or none and were left out (labels: {names})",
            stacklevel=4,
        )
    return table[single].assign(label=table["label"][single].str[0])


def _trimmed(labels: list[Any]) -> list[str | None]:
    """Labels as texts, without white space and unseen characters around them; 1.0 is the label "1"."""
    texts = [None if pd.isna(label) else str(label) for label in labels]
    if all(label is not None and _WHOLE.fullmatch(label) for label in texts):
        return [_WHOLE.sub(r"\1", label) for label in texts if label is not None]
    unseen = "".join({c for label in texts for c in label or "" if c.isspace() or unicodedata.category(c) == "Cf"})
    return [label and label.strip(unseen) for label in texts]


def _check(table: pd.DataFrame) -> None:
    labels = list(table["label"])
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
        if "\0" in text:
            raise EmolabError(f"the text of row {row} ({label}) holds a NUL character: {shown(text)}; take it out")
        if (fold(label), fold(text)) == ("label", "text") or label.startswith("# "):
            what = "a header" if fold(text) == "text" else "a comment"
            raise EmolabError(f"row {row} reads {shown(label)}, {shown(text)}, which looks like {what}; take it out")
    if not labels:
        raise EmolabError(
            "responses_from_texts needs texts (str), there is none; give {'joy': ['text'], 'neutral': ['text']}"
        )
    need_labels(labels, "the column 'label'")
    names = "|".join(re.escape(name) for name in dict.fromkeys((*labels, *EMOTIONS, *GOEMOTIONS)))
    name, ends = rf'"?(?:{names})"?', "[,;\t|]"
    ends += r"(?=\S| [^\W_a-z])"  # "joy, and peace" is prose
    merged = re.compile(rf"^{name}{ends}|(?<=[,;\t|]){name}(?:{ends}|$)", re.MULTILINE)
    for row, (label, text) in enumerate(zip(labels, table["text"], strict=True)):
        seam = merged.search(text) if LINES.search(text) else None
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


def _warn_of_doubles(table: pd.DataFrame, *, repeated: bool) -> None:
    """One warning of texts under several labels (repeated: also twice under one), others of labels of a letter more."""
    first: dict[tuple, int] = {}
    label_of: dict[str, int] = {}
    again, torn = [], []
    labels, texts = table["label"].tolist(), table["text"].map(fold)
    topics = table["topic"] if "topic" in table else [""] * len(table)
    for row, (label, text, topic) in enumerate(zip(labels, texts, topics, strict=True)):
        if not text:  # has no token, and is told of where texts are read
            continue
        if first.setdefault((label, text, topic), row) < row and repeated:
            again.append(f"row {row} ({label}) repeats row {first[label, text, topic]}")
        other = label_of.setdefault(text, row)
        if labels[other] != label:
            torn.append(f"row {other} ({labels[other]}) is row {row} ({label}): {shown(table['text'].iloc[row])}")
    if again or torn:
        doubles = {"stand there more than once": again, "stand under several labels": torn}
        told = "; ".join(f"{len(rows)} texts {what} ({rows[0]})" for what, rows in doubles.items() if rows)
        warnings.warn(f"{told}; each row counts, so leave out those that should not", stacklevel=4)
    for longer in dict.fromkeys(labels):
        inner = {longer[:i] + longer[i + 1 :] for i in range(1, len(longer))} if longer.isalpha() else set()
        for shorter in sorted(inner.intersection(labels)):
            warnings.warn(
                f"the labels {shorter!r} and {longer!r} differ by one letter; write them alike if they are one",
                stacklevel=4,
            )


def _lacks(table: pd.DataFrame, column: str) -> str:
    names = ", ".join(map(repr, table.columns))
    return f"the table has no column {column!r}, but {names or 'none'}; expected a label and a text in each row"
