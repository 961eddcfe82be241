"""Query sets: the questions and situations put to a model, bundled or the user's own.

>>> from emolab import load_queries
>>> load_queries({"joy": ["How was the party?"], "neutral": ["What is a map?"]})[["query_id", "emotion"]]
  query_id  emotion
0   u-0001      joy
1   u-0002  neutral
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, FileError, is_text, need_number, need_table, need_texts
from emolab.base.labels import NEUTRAL
from emolab.base.storage import read_json, user_path
from emolab.data import FOLDER

COLUMNS = ("query_id", "query", "emotion", "situation", "split")
_ID_LETTERS = {"general": "g", "everyday": "a"}  # how the ids of a bundled set begin
BUNDLED = {name: FOLDER / "queries" / f"{name}.json" for name in _ID_LETTERS}
_EXPECTED = 'expected {"joy": ["...", ...], ...} or ["...", ...]'
# What a generator wrote around the question and nobody took off: 38 of the paper's 500 queries.
_SCAFFOLD = re.compile(r"\bin the context of\b|\bthe (?:\w+ )?question (?:is|could be)\b", re.IGNORECASE)
# Beginnings of words that name an emotion outright; of other labels, the label itself.
_NAMES = {
    "anger": "anger angr furi fury rage raging outrag",
    "disgust": "disgust revolt repuls gross nause",
    "fear": "fear afraid scar(e|y|ing) fright terrif anxi",
    "joy": "joy happi happy delight cheer excit",
    "sadness": "sad(ly|ness|den|der)?$ sorrow grie[fv] heartbr unhapp",
}


def load_queries(
    source: str | Path | list | dict = "general",
    *,
    split: str | None = None,
    n: int | None = None,
    against: pd.DataFrame | str | Path | list | dict | None = None,
) -> pd.DataFrame:
    """Load queries as a tidy table.

    Args:
        source: `"general"` (situations that evoke an emotion, and plain questions) or `"everyday"` (open questions that
            evoke nothing and leave room for a tone); a path to a JSON file; or the same in memory:
            `{emotion: [query, ...]}`, or a plain list (all labelled neutral).
        split: `"train"` or `"heldout"` keeps that part only. A user's own queries are all `"train"`, but see against.
        n: that many of them, spread over emotions and situations: the emotions in turn, and no situation a second time
            before each had its first. The same n of them in every call, and a smaller n is the beginning of a larger.
        against: the extraction set (a table of this function, or what it takes), where `source` is an evaluation set.
            Items that stand in it too get the split "train", the others "heldout", so that split="heldout" leaves them
            out; without split they are kept and only marked. Their ids begin with e, so that both tables can be joined.

    Returns:
        One row a query, columns `query_id` (`g-0001` general, `a-0001` everyday, `u-0001` the user's), `query`,
        `emotion` (that the query naturally evokes, or neutral), `situation` (empty for a user's own), `split`.

    Queries that are equal but for case and spaces are one query: within an emotion the first is kept. One warning
    counts what was left out, what also stands in the extraction set, and what was kept though it may mislead: a
    generator's wording ("In the context of ..., the question is: ..."), and items that name their own emotion.

    The authors of arXiv 2502.04075 publish 500 queries, {emotion: [100 strings]}, and an evaluation list of 400 strings
    without labels, by content 50 for each emotion in alphabetical order, then 150 neutral ones:

    >>> train = load_queries("EmotionQuery.json")                                       # doctest: +SKIP
    >>> items = json.loads(Path("EmotionQuery+.json").read_text())                      # doctest: +SKIP
    >>> labelled = {e: items[50 * i : 50 * (i + 1)] for i, e in enumerate(EMOTIONS)}    # doctest: +SKIP
    >>> labelled["neutral"] = items[250:]                                               # doctest: +SKIP
    >>> unseen = load_queries(labelled, against=train, split="heldout")                 # doctest: +SKIP

    Raises:
        EmolabError: no such set or file, a format that is neither of the above, an empty query, an empty split, fewer
            than n queries.

    >>> load_queries("general", split="train", n=12)["emotion"].value_counts().unique()
    array([2])
    >>> len(load_queries(["What is a map?", "What is a boat?"]))
    2
    """
    prefix = _ID_LETTERS.get(str(source), "u") if isinstance(source, (str, Path)) else "u"
    if n is not None:
        need_number("n", n, 1, whole=True)
    where, table = _rows(source)
    folded, notes = table["query"].map(_fold), []
    doubled = table.assign(query=folded).duplicated(["query", "emotion"])
    if doubled.any():
        notes.append(f"{doubled.sum()} repeated queries were left out (equal but for case and spaces)")
    if against is not None:
        known = against if isinstance(against, pd.DataFrame) else _rows(against)[1]
        need_table(known, ("query",), "emolab.load_queries")
        seen = folded.isin(set(known["query"].map(_fold)))
        prefix, table["split"] = "e", np.where(seen, "train", "heldout")
        if seen.any():
            fate = "left out" if split == "heldout" else 'kept, with the split "train"'
            notes.append(f"{seen.sum()} of {len(table)} stand in the extraction set too ({fate})")
    notes += _doubts(table)
    if notes:
        warnings.warn(f"{where}: " + "; ".join(notes), stacklevel=2)
    table = table[~doubled].reset_index(drop=True)
    # Numbered before the split is taken, so that an id names one query whichever part is loaded.
    table.insert(0, "query_id", [f"{prefix}-{i:04d}" for i in range(1, len(table) + 1)])
    if split is not None:
        known = sorted(table["split"].unique())
        if split not in known:
            raise EmolabError(
                f"{where} have no split {split!r}; they have {', '.join(known)}; use one of these or None"
            )
        table = table[table["split"] == split].reset_index(drop=True)
    if n is not None:
        if n > len(table):
            raise EmolabError(f"{where} are {len(table)}, n is {n}; take a smaller n or a larger set")
        table = spread(table).head(n).reset_index(drop=True)
    return table


def spread(queries: pd.DataFrame) -> pd.DataFrame:
    """The queries in another order: first one of every situation, then the second ones, and in turn over the emotions.

    >>> spread(load_queries({"joy": ["Who won?", "Who came?"], "fear": ["Who fell?"]}))["emotion"].to_list()
    ['joy', 'fear', 'joy']
    """
    lone = queries["situation"] == ""  # a user's queries: each its own situation
    situation = queries["situation"].mask(lone, queries["query_id"])
    turn = situation.groupby(situation).cumcount()
    place = queries.assign(_t=turn).groupby(["emotion", "_t"]).cumcount()
    return queries.assign(_t=turn, _p=place).sort_values(["_t", "_p"], kind="stable").drop(columns=["_t", "_p"])


def query_table(queries: Any, columns: tuple[str, ...] = ("query_id", "query")) -> pd.DataFrame:
    """A table as it is, anything else through `load_queries`; EmolabError unless each row has its own id and a text."""
    if not isinstance(queries, pd.DataFrame):
        return load_queries(queries)
    missing = [c for c in columns if c not in queries]
    if missing or queries.empty:
        what = f"lack {', '.join(missing)}" if missing else "are empty; expected at least one query"
        raise EmolabError(f"queries {what}; use load_queries, or one row and one query_id for each query")
    ids = queries["query_id"]
    if ids.duplicated().any() or ids.isna().any():
        odd = "a missing query_id" if ids.isna().any() else f"repeated query_id {ids[ids.duplicated()].iloc[0]!r}"
        raise EmolabError(f"the table of queries has {odd}; expected one row and one query_id for each query")
    need_texts("queries", queries["query"].tolist(), filled=True)
    return queries


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _doubts(table: pd.DataFrame) -> list[str]:
    """Counts of items that are kept but may mislead."""
    notes = []
    scaffold = table["query"].str.contains(_SCAFFOLD).sum()
    if scaffold:
        notes.append(f'{scaffold} keep a generator\'s wording ("In the context of", "the question is")')
    named = {}
    for label, queries in table.groupby("emotion", sort=False)["query"]:
        emotion = str(label)
        if emotion != NEUTRAL:
            stems = _NAMES[emotion].split() if emotion in _NAMES else [re.escape(emotion.casefold())]
            pattern = re.compile("|".join(rf"\b{stem}".replace("$", r"\b") for stem in stems))
            named[emotion] = sum(bool(pattern.search(query.casefold())) for query in queries)
    if any(named.values()):
        counts = ", ".join(f"{emotion} {n}" for emotion, n in named.items() if n)
        notes.append(f"{sum(named.values())} name their own emotion ({counts})")
    return notes


def _rows(source: object) -> tuple[str, pd.DataFrame]:
    """What errors and warnings call it, and its queries as they are, without ids."""
    where = "these queries"
    if isinstance(source, (str, Path)):
        where, source = f"queries {str(source)!r}", _read(source)
    return where, pd.DataFrame(_records(source, where), columns=list(COLUMNS[1:]))


def _read(source: str | Path) -> object:
    """The JSON behind a bundled name or a path."""
    path = BUNDLED.get(str(source), user_path(source))
    if not path.is_file():
        names = ", ".join(f'"{name}"' for name in BUNDLED)
        raise FileError(f"no queries at {str(source)!r}; give {names}, the path of a JSON file, or a list of queries")
    return read_json(path, _EXPECTED)


def _records(source: object, where: str) -> list[dict]:
    """Rows from the three accepted shapes: bundled {"queries": [{...}]}, {emotion: [str]}, [str]."""
    bundled = source.get("queries") if isinstance(source, dict) else None
    if bundled and isinstance(bundled, list) and all(isinstance(row, dict) for row in bundled):
        source = bundled
    if isinstance(source, (list, tuple)):
        rows = [row if isinstance(row, dict) else {"query": row} for row in source]
    elif isinstance(source, dict):
        wrong = [label for label, queries in source.items() if not isinstance(queries, (list, tuple))]
        if wrong:
            raise EmolabError(f"{where}: {wrong[0]!r} holds no list of queries; {_EXPECTED}")
        rows = [{"query": query, "emotion": label} for label, queries in source.items() for query in queries]
    else:
        raise EmolabError(f"{where} are a {type(source).__name__}; {_EXPECTED}")
    if not rows:
        raise EmolabError(f"{where} are empty; {_EXPECTED}")
    defaults = {"emotion": NEUTRAL, "situation": "", "split": "train"}
    rows = [{**defaults, **row} for row in rows]
    for number, row in enumerate(rows, 1):
        if not is_text(row.get("query"), filled=True):
            raise EmolabError(f"{where}: number {number} is {row.get('query')!r}, not a text; {_EXPECTED}")
        row["query"] = row["query"].strip()
        for key in ("emotion", "split"):
            if not is_text(row[key], filled=True):
                raise EmolabError(f"{where}: number {number} has the {key} {row[key]!r}; expected a name")
    return rows
