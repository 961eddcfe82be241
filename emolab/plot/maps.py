"""Heat maps of cosines and of CKA: emotions by emotions, layers by layers, everything by everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_table, need_vectors
from emolab.base.labels import order
from emolab.plot.geometry import _finish, _title
from emolab.plot.style import finish, name_ticks, new_figure, text_on, theme

_COSINE = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
_TICKS = [-1, -0.5, 0, 0.5, 1]


def cosine_grid(
    vectors,
    *,
    site: str = "resid",
    part: str = "whole",
    layers: Sequence[int] | None = None,
    model=None,
    seed: int | None = None,
):
    """Cosine between all emotions, one heat map a layer, fixed limits -1 and 1.

    >>> fig = cosine_grid(vectors, part="specific", layers=[0, 2, 5])

    layers: default at most six, evenly spread. Values are printed for up to six emotions.
    """
    from emolab.base.tables import some_layers
    from emolab.geometry.similarity import cosines

    need_vectors(vectors)
    layers = some_layers(vectors.n_layers, layers)
    labels = order(vectors.emotions)
    index = [list(vectors.emotions).index(label) for label in labels]
    found = cosines(vectors, site=site, part=part)[np.ix_(layers, index, index)]
    k = len(labels)
    with theme():
        fig, axes = _panels(len(layers), aspect=1.0, most=3 if k <= 8 else 2)
        for ax, layer, matrix in zip(axes, layers, found, strict=False):
            _heat(ax, matrix, labels, labels, f"layer {layer}", show=k <= 6, **_COSINE)
        fig.colorbar(axes[0].images[0], ax=list(axes), shrink=0.6, label="cosine", ticks=_TICKS)
        fig.suptitle(f"Cosine of the {_title(vectors, part)} ({site})", fontweight="bold")
        shape = (len(layers), k, k)
        grid = [np.broadcast_to(x, shape).ravel() for x in np.meshgrid(layers, labels, labels, indexing="ij")]
        data = pd.DataFrame({"layer": grid[0], "emotion": grid[1], "other": grid[2], "cosine": found.ravel()})
        return _finish(fig, data, vectors, "cosine_grid", {"site": site, "part": part, "layers": layers}, model, seed)


def layer_map(vectors, *, site: str = "resid", part: str = "whole", model=None, seed: int | None = None):
    """Cosine of each emotion's vector between layers, one heat map an emotion, fixed limits -1 and 1.

    >>> fig = layer_map(vectors, site="attn")
    """
    from emolab.geometry.similarity import layer_cosines

    need_vectors(vectors)
    labels, n = order(vectors.emotions), vectors.n_layers
    found = layer_cosines(vectors, site=site, part=part)
    with theme():
        fig, axes = _panels(len(labels), aspect=1.0)
        for ax, label in zip(axes, labels, strict=False):
            matrix = found[list(vectors.emotions).index(label)]
            _heat(ax, matrix, range(n), range(n), label, show=n <= 6, **_COSINE)
            ax.set_ylabel("layer" if ax.get_subplotspec().is_first_col() else "")
        for ax in axes[-min(len(axes), 3) :]:  # the lowest of each column
            ax.set_xlabel("layer")
        fig.colorbar(axes[0].images[0], ax=list(axes), shrink=0.6, label="cosine", ticks=_TICKS)
        fig.suptitle(f"Between layers: cosine of the {_title(vectors, part)} ({site})", fontweight="bold")
        rows = [
            (label, i, j, found[list(vectors.emotions).index(label), i, j])
            for label in labels
            for i in range(n)
            for j in range(n)
        ]
        data = pd.DataFrame(rows, columns=["emotion", "layer", "other", "cosine"])
        return _finish(fig, data, vectors, "layer_map", {"site": site, "part": part}, model, seed)


def cka_map(table: pd.DataFrame, *, model=None, seed: int | None = None):
    """How alike the layers see the responses: linear CKA, from `geometry.cka`.

    >>> fig = cka_map(geometry.cka(means))
    """
    need_table(table, (), "geometry.cka")
    n = len(table)
    if table.shape != (n, n):
        raise EmolabError(f"the table is of shape {table.shape}; expected layers by layers, from geometry.cka")
    matrix = table.to_numpy(dtype=float)
    with theme():
        fig, axes = new_figure(1, 1, width=0.55, height=4.4)
        ax = axes[0, 0]
        image = _heat(ax, matrix, range(n), range(n), "", show=n <= 8, cmap="cividis", vmin=0, vmax=1)
        site = about(table)["params"].get("site", "")
        ax.set_title(f"CKA between layers ({site})" if site else "CKA between layers", loc="center", pad=10)
        ax.set(xlabel="layer", ylabel="layer")
        fig.colorbar(image, ax=ax, shrink=0.85, label="linear CKA (unbiased)", ticks=[0, 0.5, 1])
        data = pd.DataFrame(
            {"layer": np.repeat(range(n), n), "other": np.tile(range(n), n), "cka": matrix.ravel()},
        )
        return finish_about(fig, data, table, "cka_map", model=model, seed=seed)


def about(table: pd.DataFrame) -> dict:
    """What the table's maker noted of it: model, n, seed, params."""
    return {"model": None, "n": None, "seed": None, "params": {}} | table.attrs.get("about", {})


def finish_about(fig, data, table, function: str, *, model=None, seed=None, params: dict | None = None):
    """`finish` with the model, n, seed and parameters that came with a table, where none are given."""
    note = about(table)
    return finish(
        fig,
        data,
        function=function,
        model=note["model"] if model is None else model,
        n=note["n"],
        seed=note["seed"] if seed is None else seed,
        params={**note["params"], **(params or {})},
    )


def tables_of(tables, columns: Sequence[str], source: str) -> dict[str, pd.DataFrame]:
    """{panel title: table}, whether one table or several were given; EmolabError where one is not of `source`."""
    found: dict[str, Any] = tables if isinstance(tables, dict) and tables else {"": tables}
    for table in found.values():
        need_table(table, columns, source)
    return found


def no_heads(table: pd.DataFrame) -> None:
    if "head" in table and table["head"].notna().any():
        raise EmolabError("this table has one row a head; a curve over layers needs a site such as resid or attn")


def _panels(n: int, *, aspect: float, most: int = 3):
    """Figure and n axes in rows of three; what is left over is hidden."""
    columns = min(n, most)
    rows = -(-n // columns)
    width = {1: 0.55, 2: 0.85}.get(columns, 1.0)
    side = 9.6 * width / columns * 0.86
    fig, axes = new_figure(rows, columns, width=width, height=0.9 + rows * side * aspect)
    axes = axes.ravel()
    for ax in axes[n:]:
        ax.set_visible(False)
    return fig, axes[:n]


def _heat(ax, matrix, rows, columns, title: str, *, show: bool, cmap: str, vmin: float, vmax: float):
    image = ax.imshow(matrix, cmap=cmap, vmin=vmin, vmax=vmax)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    rows, columns = [str(r) for r in rows], [str(c) for c in columns]
    if max(len(c) for c in columns) > 2:
        name_ticks(ax, rows, columns, rotation=40)
    else:
        step = max(1, -(-len(columns) // 9))  # at most nine numbers on an axis
        ax.set_xticks(range(0, len(columns), step), columns[::step])
        ax.set_yticks(range(0, len(rows), step), rows[::step])
    if show:
        text_on(ax, matrix, dark=(-0.6, 0.6) if vmin < 0 else (0.6, 1.0), fmt="{:.2f}")
    if title:
        ax.set_title(title, loc="center")
    return image
