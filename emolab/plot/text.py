"""Texts as one reads them: tables of texts and of words, and a text shaded by attention."""

from __future__ import annotations

from html import escape

import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import head_name, order, styles


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


class Html(str):
    """HTML that a notebook shows."""

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:  # a notebook stores it beside the HTML
        return f"Html({len(self)} characters)"


def attention_html(pattern: pd.DataFrame, *, position: int | None = None) -> Html:
    """The text, each token shaded by the attention that it gets, as a small piece of HTML without scripts.

    >>> attention_html(attention_pattern(model, prompt, text, layer=3, head=4))

    pattern: from `emolab.heads.attention_pattern`. position: one `from_position`; default the mean over all.
    Tokens are escaped, whatever the model wrote. Raises EmolabError for a position that is not there.
    """
    need_table(pattern, ("from_position", "position", "token", "weight"), "emolab.heads.attention.attention_pattern")
    own = pattern if position is None else pattern[pattern["from_position"] == position]
    if own.empty:
        have = f"{pattern['from_position'].min()} to {pattern['from_position'].max()}"
        raise EmolabError(f"no position {position}; this pattern has {have}")
    count = own["from_position"].nunique()
    weight = own.groupby("position")["weight"].sum() / count
    names = pattern.attrs.get("tokens") or list(own.drop_duplicates("position").sort_values("position")["token"])
    top = max(float(weight.max()), 1e-9)
    start = int(pattern["from_position"].min()) + 1
    spans = []
    for i, name in enumerate(names):
        if i == start:
            spans.append('<span style="color:#6B6B6B"> &#9656; </span>')
        share = float(weight.get(i, 0.0))
        frame = "outline:1px solid #333333;" if position is not None and i == position + 1 else ""
        style = f"background:rgba(131,45,182,{0.75 * share / top:.2f});{frame}padding:1px 2px;border-radius:2px"
        spans.append(f'<span style="{style}" title="{share:.3f}">{escape(name) or "&nbsp;"}</span>')
    name = head_name(pattern.attrs["layer"], pattern.attrs["head"]) if "layer" in pattern.attrs else ""
    of = "mean over the answer" if position is None else f"as token {position + 1} is written (framed)"
    title = name and f"{name}: attention, {of}; darkest = {top:.2f}"
    body = " ".join(spans)
    frame = "font-family:monospace;line-height:1.9;max-width:60em"
    return Html(f'<div style="{frame}"><div style="color:#6B6B6B">{title}</div>{body}</div>')


def words_table(table: pd.DataFrame, *, n: int = 8):
    """The words that vectors raise and lower, one line a vector, for display in a notebook.

    >>> words_table(top_words(model, vectors))

    table: from `emolab.heads.top_words`. Returns a pandas Styler; tokens are escaped.
    """
    columns = ("part", "emotion", "layer", "head", "direction", "rank", "token")
    need_table(table, columns, "emolab.heads.attribution.top_words")
    top = table[table["rank"] <= n].sort_values("rank", kind="stable")
    top = top.assign(token=top["token"].str.strip().where(top["token"].str.strip() != "", top["token"].map(repr)))
    keys = ["part", "layer", *(["head"] if (top["head"] >= 0).any() else []), "emotion"]
    wide = top.groupby([*keys, "direction"])["token"].agg(" · ".join).unstack("direction")
    wide = wide[[c for c in ("raised", "lowered") if c in wide]]
    rank = {e: i for i, e in enumerate(order(top["emotion"]))}
    parts = {p: i for i, p in enumerate(("whole", "shared", "specific"))}
    wide = wide.reset_index().sort_values(
        keys,
        key=lambda c: c.map(rank) if c.name == "emotion" else c.map(parts) if c.name == "part" else c,
        kind="stable",
    )
    style = wide.style.hide(axis="index").format(escape="html")
    style.set_properties(subset=None, **{"text-align": "left", "vertical-align": "top"})
    look = styles(e for e in wide["emotion"] if e != "shared")
    marks = [f"border-left: 4px solid {look[e][0]}" if e != "shared" else "" for e in wide["emotion"]]
    style.apply(lambda _: marks, subset=["emotion"])
    return style
