"""Tables of words, and a text shaded by attention."""

from __future__ import annotations

from html import escape

import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import head_name, order, styles
from emolab.plot.side_by_side import Html


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

    table: from `emolab.heads.top_words` or `neuron_words`. Returns a pandas Styler; tokens are escaped.
    """
    need_table(table, ("emotion", "layer", "direction", "rank", "token"), "emolab.heads.top_words")
    top = table[table["rank"] <= n].sort_values("rank", kind="stable")
    top = top.assign(token=top["token"].str.strip().where(top["token"].str.strip() != "", top["token"].map(repr)))
    keys = [x for x in ("part", "layer", "head", "neuron") if x in top and (x != "head" or (top[x] >= 0).any())]
    keys += ["emotion"]
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
