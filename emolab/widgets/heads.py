"""A map of heads, layers to the right and heads upwards, to click through: the numbers of a head for every emotion."""

from __future__ import annotations

import base64
from html import escape

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.stats import LEVEL
from emolab.plot.heads import VALUES, head_scale
from emolab.widgets.page import LINE, View, hint, page, small

MAX_HEADS = 1100  # the cells of a larger map alone would outweigh the notebook
_MAX_DATA = 28_000  # characters of numbers; the whole view then stays below 60 kB
_STEPS = 41
_EXTRAS = ("lo", "hi", "q", "p", "random_direction", "other_heads", "chance", "probe_p", "n")


def head_view(table: pd.DataFrame, value: str | None = None, *, emotion: str | None = None) -> View:
    """A layer x head map of one quantity; click a head, or walk there with the arrow keys, to read its numbers.

    >>> head_view(effects)
    >>> head_view(head_maps(vectors, means, W_O=output_weights(model)), "split_half", emotion="joy")

    table: from `emolab.head_effects` or `emolab.heads.head_maps`, as `plot.head_map` takes it. value: the quantity in
    colour, default `share` or else `contribution`; signed ones are red above zero and blue below, on one scale for all
    emotions. A dot marks q < 0.05 where effects are shown with their q. emotion: shown first (default the table's
    first). Of models with many heads the smaller columns are left out of the details, never of `.table`. Raises
    EmolabError for a table without such a quantity, with several rows for a head and emotion, or of over 1,100 heads.
    """
    need_table(table, ("layer", "head", "emotion"), "emolab.heads.head_vectors.head_maps or emolab.head_effects")
    known = [v for v in VALUES if v in table]
    value = value or next((v for v in ("share", "contribution", *known) if v in table), None)
    if value not in known:
        raise EmolabError(f"cannot show {value!r} of this table; it holds {', '.join(known) or 'no quantity of heads'}")
    if table.duplicated(["layer", "head", "emotion"]).any():
        raise EmolabError("expected one row for each layer, head and emotion; choose one test of the table first")
    emotions = order(table["emotion"])
    emotion = emotions[0] if emotion is None else emotion
    if emotion not in emotions:
        raise EmolabError(f"unknown emotion {emotion!r}; this table has {', '.join(emotions)}")
    layers, heads = (sorted(map(int, table[c].unique())) for c in ("layer", "head"))
    if len(layers) * len(heads) > MAX_HEADS:
        raise EmolabError(
            f"{len(layers) * len(heads)} heads make a view too heavy for a notebook (at most {MAX_HEADS}); show some "
            'layers, table[table["layer"] >= ...], or use plot.head_map'
        )
    index = pd.MultiIndex.from_product([emotions, layers, heads], names=["emotion", "layer", "head"])
    full = table.set_index(["emotion", "layer", "head"]).reindex(index)
    dotted = value in ("effect", "share") and "q" in full
    named: list[str] = [value, *(["q"] if dotted else []), *known, *(c for c in _EXTRAS if c in full)]
    columns = list(dict.fromkeys(named))
    fit = max(2 if dotted else 1, _MAX_DATA // (len(full) * 8 // 3))  # two bytes a number, in base64
    numbers = {column: _rounded(full[column].to_numpy(float)) for column in columns[:fit]}
    (low, high), cmap = head_scale(table, value)
    palette = [to_hex(colour) for colour in mpl.colormaps[cmap](np.linspace(0, 1, _STEPS))]
    data = {"emotions": emotions, "emotion": emotions.index(emotion), "layers": layers, "heads": heads}
    data |= {"value": value, "low": low, "high": high, "palette": palette, "dots": dotted}
    shown = numbers[value][0].reshape(len(emotions), -1)[data["emotion"]]
    start = int(np.nanargmax(np.abs(shown))) if np.isfinite(shown).any() else 0
    data["start"] = [start // len(heads), start % len(heads)]
    data["numbers"] = {column: coded for column, (_, coded) in numbers.items()}
    body = _body(data, {column: x for column, (x, _) in numbers.items()}, table)
    return View(page("heads", body, data), table, f"head_view({value}: {len(layers)} layers, {len(heads)} heads)")


def _rounded(values: np.ndarray) -> tuple[np.ndarray, dict]:
    """Numbers to about three digits of the column's largest, and the same as 16-bit steps; NaN is the lowest step."""
    step = float(np.nanmax(np.abs(values), initial=0)) / 32_000 or 1.0
    steps = np.where(np.isfinite(values), np.rint(np.nan_to_num(values) / step), -32_768).astype("<i2")
    rounded = np.where(steps == -32_768, np.nan, steps * step)
    return rounded, {"step": step, "steps": base64.b64encode(steps.tobytes()).decode()}


def _body(data: dict, numbers: dict[str, np.ndarray], table: pd.DataFrame) -> str:
    layers, heads, e = data["layers"], data["heads"], data["emotion"]
    grids = {column: x.reshape(-1, len(layers), len(heads))[e] for column, x in numbers.items()}
    shown = grids[data["value"]]
    rows = []
    for j in reversed(range(len(heads))):  # heads upwards
        cells = []
        for i in range(len(layers)):
            frame = ' style="outline:2px solid"' if [i, j] == data["start"] else ""
            dot = "•" if data["dots"] and grids["q"][i, j] < LEVEL else ""
            cells.append(f"<td bgcolor={_colour(data, shown[i, j])}{frame}>{dot}")
        rows.append(f"<tr align=center><th height=20>{heads[j]}{''.join(cells)}")
    foot = "".join(f"<th width=20>{n if len(layers) <= 16 or n % 5 == 0 else ''}" for n in layers)
    grid = (
        f'<table class="emolab-map" style="border-collapse:collapse;font-size:0.8em;margin:0">{"".join(rows)}'
        f"<tr align=center><th>{foot}</table>"
    )
    about = table.attrs.get("about", {})
    model = (about.get("model") or {}).get("name")
    notes = [VALUES[data["value"]][0], f"model {model}" if model else "", f"n = {about['n']}" if about.get("n") else ""]
    notes += [f"{data['low']:.3g} to {data['high']:.3g}".replace("-", "−"), "dot: q < 0.05" if data["dots"] else ""]
    below = escape(" · ".join(["layers to the right, heads upwards", *filter(None, notes)]))
    beside = "display:inline-block;vertical-align:top"
    return (
        f'<div class="emolab-where" style="margin:0.2em 0"><b>{escape(data["emotions"][e])}</b></div>'
        f'<div style="{beside};margin-right:1.5em">{grid}</div><div style="{beside}">{_details(data, numbers)}</div>'
        f"{small(below)}{hint('emotion and head')}"
    )


def _details(data: dict, numbers: dict[str, np.ndarray]) -> str:
    """The numbers of one head; the script writes those of another head into the same cells."""
    i, j = data["start"]
    head = "".join(f'<th style="text-align:right;padding:1px 6px">{escape(c)}</th>' for c in numbers)
    rows = []
    for e, emotion in enumerate(data["emotions"]):
        at = (e * len(data["layers"]) + i) * len(data["heads"]) + j
        cells = (f"{x[at]:.3g}".replace("-", "−") if np.isfinite(x[at]) else "–" for x in numbers.values())
        line = "".join(f'<td style="text-align:right;padding:1px 6px">{c}</td>' for c in cells)
        weight = "bold" if e == data["emotion"] else "normal"
        rows.append(
            f'<tr style="font-weight:{weight}"><th style="text-align:left;padding:1px 6px;font-weight:inherit">'
            f"{escape(emotion)}</th>{line}</tr>"
        )
    name = f"layer {data['layers'][i]}, head {data['heads'][j]}"
    return (
        f'<div class="emolab-head" style="font-weight:bold">{name}</div>'
        f'<table class="emolab-details" style="border-collapse:collapse;font-size:0.85em;border-top:{LINE}">'
        f'<tr><th style="text-align:left;padding:1px 6px">emotion</th>{head}</tr>{"".join(rows)}</table>'
    )


def _colour(data: dict, x: float) -> str:
    if not np.isfinite(x):
        return "#8a8a8a"
    share = (x - data["low"]) / ((data["high"] - data["low"]) or 1.0)
    return data["palette"][int(round(min(1.0, max(0.0, share)) * (_STEPS - 1)))]
