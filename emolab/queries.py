"""Query sets: the questions and situations put to a model, bundled or the user's own.

>>> from emolab import load_queries
>>> load_queries({"joy": ["How was the party?"], "neutral": ["What is a map?"]})[["query_id", "emotion"]]
  query_id  emotion
0   u-0001      joy
1   u-0002  neutral
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pandas as pd

from emolab.emotions import NEUTRAL
from emolab.errors import EmolabError

COLUMNS = ("query_id", "query", "emotion", "situation", "split")
BUNDLED = {name: Path(__file__).parent / "data" / "queries" / f"{name}.json" for name in ("general", "mini")}
_EXPECTED = 'expected {"joy": ["...", ...], ...} or ["...", ...]'


def load_queries(source: str | Path | list | dict, *, split: str | None = None) -> pd.DataFrame:
    """Load queries as a tidy table.

    Args:
        source: `"general"` (chat models) or `"mini"` (the bundled model); a path to a JSON file; or the same in memory:
            `{emotion: [query, ...]}`, or a plain list (all labelled neutral).
        split: `"train"` or `"heldout"` keeps that part only. A user's own queries are all `"train"`.

    Returns:
        One row a query, columns `query_id` (`g-0001` general, `m-0001` mini, `u-0001` the user's), `query`,
        `emotion` (that the query naturally evokes, or neutral), `situation` (empty for a user's own) and `split`.

    Raises:
        EmolabError: no such set or file, a format that is neither of the above, an empty query, an empty split.

    >>> len(load_queries(["What is a map?", "What is a boat?"]))
    2
    """
    prefix, where = "u", "these queries"
    if isinstance(source, (str, Path)):
        prefix = str(source)[0] if str(source) in BUNDLED else "u"
        where = f"queries {str(source)!r}"
        source = _read(source)
    table = pd.DataFrame(_records(source, where), columns=list(COLUMNS[1:]))
    doubled = table.duplicated(["query", "emotion"])
    if doubled.any():
        warnings.warn(f"{where}: {doubled.sum()} repeated queries were left out", stacklevel=2)
        table = table[~doubled]
    table = table.reset_index(drop=True)
    # Numbered before the split is taken, so that an id names one query whichever part is loaded.
    table.insert(0, "query_id", [f"{prefix}-{i:04d}" for i in range(1, len(table) + 1)])
    if split is not None:
        known = sorted(table["split"].unique())
        if split not in known:
            raise EmolabError(
                f"{where} have no split {split!r}; they have {', '.join(known)}; use one of these or None"
            )
        table = table[table["split"] == split].reset_index(drop=True)
    return table


def _read(source: str | Path) -> object:
    """The JSON behind a bundled name or a path."""
    path = BUNDLED.get(str(source), Path(source))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(f'"{name}"' for name in BUNDLED)
        raise EmolabError(
            f"no queries at {str(source)!r}; give {names}, the path of a JSON file, or a list of queries"
        ) from error
    except ValueError as error:  # JSON and encoding errors
        raise EmolabError(f"{path} is not valid JSON ({error}); {_EXPECTED}") from error


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
        if not isinstance(row.get("query"), str) or not row["query"].strip():
            raise EmolabError(f"{where}: number {number} is {row.get('query')!r}, not a text; {_EXPECTED}")
        row["query"] = row["query"].strip()
    return rows
