"""What heads read and what vectors say: attention as bars and as shaded text, words as a table."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order, styles
from emolab.plot.heads import _finish
from emolab.plot.style import INK, new_figure, theme, top_legend

_COLORS = {
    "bos": "#E4E4E4",
    "template": "#B5B5B5",
    "instruction": "#92dadd",
    "emotion word": "#832db6",
    "query": "#b9ac70",
    "answer: emotion words": "#bd1f01",
    "answer: rest": "#717581",
}


def attention_bars(table: pd.DataFrame, *, emotion: str | None = None, model=None, seed=None):
    """Where each head's attention goes while the model answers, as stacked shares, and even attention beside them.

    >>> fig = attention_bars(attention_summary(model, responses, heads=[(3, 4)], tokens=emotion_tokens(model, others)))

    table: from `emolab.heads.attention_summary`. emotion: one of its emotions; default their mean.
    """
    columns = ("layer", "head", "emotion", "region", "share", "lo", "hi", "uniform")
    need_table(table, columns, "emolab.heads.attention.attention_summary")
    own = table if emotion is None else table[table["emotion"] == emotion]
    if own.empty:
        raise EmolabError(f"no emotion {emotion!r} in this table; it has {', '.join(order(table['emotion']))}")
    regions = [r for r in _COLORS if (own["region"] == r).any()]
    data = own.groupby(["layer", "head", "region"], sort=True)[["share", "lo", "hi", "uniform"]].mean().reset_index()
    wide = data.pivot(index=["layer", "head"], columns="region", values="share")[regions]
    even = data.groupby("region")["uniform"].mean()[regions]
    bars = pd.concat([wide, pd.DataFrame([even.to_numpy()], columns=regions, index=[("", "even")])])
    with theme():
        fig, axes = new_figure(1, 1, width=0.85, height=1.7 + 0.36 * len(bars))
        ax, left = axes[0, 0], np.zeros(len(bars))
        y = np.arange(len(bars)) + (np.arange(len(bars)) == len(bars) - 1) * 0.3  # the reference stands apart
        for region in regions:
            values = bars[region].to_numpy()
            ax.barh(y, values, left=left, color=_COLORS[region], edgecolor="white", linewidth=0.6, label=region)
            for at, value, start in zip(y, values, left, strict=True):
                if value >= 0.08:
                    dark = region in ("emotion word", "answer: emotion words", "answer: rest")
                    ink = "white" if dark else INK
                    ax.text(
                        start + value / 2, at, f"{value:.2f}", ha="center", va="center", color=ink, fontsize="small"
                    )
            left = left + values
        ax.set_yticks(y, ["even attention" if b == "even" else f"{a}.{b}" for a, b in bars.index])
        ax.invert_yaxis()
        ax.set(xlim=(0, 1), xlabel="share of attention from the answer's positions", ylabel="layer.head")
        ax.grid(axis="y", visible=False)
        of = "mean over emotions" if emotion is None else emotion
        ax.set_title(f"What the heads look at ({of})")
        handles, labels = ax.get_legend_handles_labels()
        top_legend(fig, handles, labels, 4)
        return _finish(fig, data, table, "attention_bars", {"emotion": emotion}, model, seed)


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
    layer, head = pattern.attrs.get("layer"), pattern.attrs.get("head")
    of = "mean over the answer" if position is None else f"as token {position + 1} is written (framed)"
    title = "" if layer is None else f"Head {layer}.{head}: attention, {of}; darkest = {top:.2f}"
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
