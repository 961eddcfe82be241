"""Query sets: the questions and situations put to a model, bundled or the user's own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, FileError, is_text, need_number, need_table, need_texts
from emolab.base.labels import NEUTRAL, fold
from emolab.base.storage import read_json, user_path
from emolab.data import FOLDER

COLUMNS = ("query_id", "query", "emotion", "situation", "split")
_ID_LETTERS = {"general": "g", "everyday": "a"}  # how the ids of a bundled set begin
BUNDLED = {name: FOLDER / "queries" / f"{name}.json" for name in _ID_LETTERS}
_EXPECTED = 'expected {"joy": ["...", ...], ...} or ["...", ...]'


def load_queries(
    source: str | Path | list | dict = "general",
    *,
    split: str | None = None,
    n: int | None = None,
    against: pd.DataFrame | str | Path | list | dict | None = None,
) -> pd.DataFrame:
    """Load queries as a tidy table.

    >>> load_queries("general", split="train", n=12)["emotion"].value_counts().unique()
    array([2])
    >>> load_queries({"joy": ["How was the party?"], "neutral": ["What is a map?"]})[["query_id", "emotion"]]
      query_id  emotion
    0   u-0001      joy
    1   u-0002  neutral

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
    counts what was left out, and what also stands in the extraction set.

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
    """
    if n is not None:
        need_number("n", n, 1, whole=True)
    name, table = _named_rows(source)
    prefix = _ID_LETTERS.get(str(source), "u")
    folded = table["query"].map(fold)
    notes = []
    repeated = table.assign(query=folded).duplicated(["query", "emotion"])
    if repeated.any():
        notes.append(f"{repeated.sum()} repeated queries were left out (equal but for case and spaces)")
    if against is not None:
        known = against if isinstance(against, pd.DataFrame) else _named_rows(against)[1]
        need_table(known, ("query",), "emolab.load_queries")
        seen = folded.isin(set(known["query"].map(fold)))
        prefix = "e"
        table["split"] = np.where(seen, "train", "heldout")
        if seen.any():
            fate = "left out" if split == "heldout" else 'kept, with the split "train"'
            notes.append(f"{seen.sum()} of {len(table)} stand in the extraction set too ({fate})")
    if notes:
        warnings.warn(f"{name}: " + "; ".join(notes), stacklevel=2)
    table = table[~repeated].reset_index(drop=True)
    # Numbered before the split is taken, so that an id names one query whichever part is loaded.
    table.insert(0, "query_id", [f"{prefix}-{i:04d}" for i in range(1, len(table) + 1)])
    if split is not None:
        splits = sorted(table["split"].unique())
        if split not in splits:
            raise EmolabError(
                f"{name} have no split {split!r}; they have {', '.join(splits)}; use one of these or None"
            )
        table = table[table["split"] == split].reset_index(drop=True)
    if n is not None:
        if n > len(table):
            raise EmolabError(f"{name} are {len(table)}, n is {n}; take a smaller n or a larger set")
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
    need_table(queries, columns, "load_queries, or has one row and one query_id for each query")
    ids = queries["query_id"]
    if ids.duplicated().any() or ids.isna().any():
        odd = "a missing query_id" if ids.isna().any() else f"repeated query_id {ids[ids.duplicated()].iloc[0]!r}"
        raise EmolabError(f"the table of queries has {odd}; expected one row and one query_id for each query")
    need_texts("queries", queries["query"].tolist(), filled=True)
    return queries


def _named_rows(source: object) -> tuple[str, pd.DataFrame]:
    """What errors and warnings call it, and its queries as they are, without ids."""
    name = "these queries"
    if isinstance(source, str | Path):
        name = f"queries {str(source)!r}"
        path = BUNDLED.get(str(source), user_path(source))
        if not path.is_file():
            names = ", ".join(f'"{known}"' for known in BUNDLED)
            raise FileError(f"no queries at {str(source)!r}; give {names}, the path of a JSON file, or a list")
        source = read_json(path, _EXPECTED)
    return name, pd.DataFrame(_records(source, name), columns=list(COLUMNS[1:]))


def _records(source: object, name: str) -> list[dict]:
    """Rows from the three accepted shapes: bundled {"queries": [{...}]}, {emotion: [str]}, [str]."""
    bundled = source.get("queries") if isinstance(source, dict) else None
    if bundled and isinstance(bundled, list) and all(isinstance(row, dict) for row in bundled):
        source = bundled
    if isinstance(source, list | tuple):
        rows = [row if isinstance(row, dict) else {"query": row} for row in source]
    elif isinstance(source, dict):
        for label, queries in source.items():
            if not isinstance(queries, list | tuple):
                raise EmolabError(f"{name}: {label!r} holds no list of queries; {_EXPECTED}")
        rows = [{"query": query, "emotion": label} for label, queries in source.items() for query in queries]
    else:
        raise EmolabError(f"{name} are a {type(source).__name__}; {_EXPECTED}")
    if not rows:
        raise EmolabError(f"{name} are empty; {_EXPECTED}")
    rows = [{"emotion": NEUTRAL, "situation": "", "split": "train", **row} for row in rows]
    for number, row in enumerate(rows, 1):
        for key, kind in (("query", "a text"), ("emotion", "a name"), ("split", "a name")):
            if not is_text(row.get(key), filled=True):
                raise EmolabError(
                    f"{name}: the {key} of number {number} is {row.get(key)!r}, expected {kind}; {_EXPECTED}"
                )
        row["query"] = row["query"].strip()
    return rows
