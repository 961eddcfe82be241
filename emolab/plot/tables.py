"""Tables of texts: what a model wrote, as one reads it."""

from __future__ import annotations

import pandas as pd

from emolab.base.errors import EmolabError
from emolab.base.labels import order, styles


def text_table(table: pd.DataFrame, *, rows: str = "emotion", columns: str = "alpha", highlight: str | None = "top"):
    """Texts in a grid of two columns of the table, the first text of each cell, for display in a notebook.

    >>> text_table(scored[scored["query_id"] == "m-0141"])            # doctest: +SKIP

    highlight: a column with an emotion of each text (`top`, what the judge read): the text is underlined in its colour.
    Returns a pandas Styler; text is escaped, whatever the model wrote. Raises EmolabError for a missing column.
    """
    missing = [c for c in (rows, columns, "text") if c not in table]
    if missing:
        raise EmolabError(f"the table lacks {', '.join(missing)}; it has {', '.join(table.columns)}")
    shown = table.pivot_table(index=rows, columns=columns, values="text", aggfunc="first", sort=True)
    shown = shown.reindex(order(shown.index)) if rows in ("emotion", "condition") else shown
    style = shown.style.format(escape="html")
    for axis in (0, 1):  # 0.5, not 0.500000; labels and queries are others' words, too
        style.format_index(lambda x: f"{x:g}" if isinstance(x, float) else str(x), escape="html", axis=axis)
    style.set_table_styles([{"selector": "th", "props": "vertical-align: top"}])
    css = {"text-align": "left", "vertical-align": "top", "white-space": "normal", "min-width": "9em"}
    style.set_properties(subset=None, **css)
    if highlight and highlight in table:
        read = table.pivot_table(index=rows, columns=columns, values=highlight, aggfunc="first").reindex_like(shown)
        look = styles(x for x in (*table.get("emotion", ()), *table[highlight]) if isinstance(x, str))
        marks = read.map(lambda x: f"border-bottom: 3px solid {look[x][0]}" if isinstance(x, str) else "")
        style.apply(lambda _: marks, axis=None)
    return style
