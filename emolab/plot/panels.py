"""The panels of all figures: a grid of them, the tables behind, and what stands around; `marks` draws into them.

A figure function takes a table, draws into `grid(...)` with the functions of `marks`, and returns `panels.finish(...)`.
Sizes are in em, the size of the text, so that one function serves a notebook, a column of 3.3 inches and slides: as
many panels stand side by side as fit, and `page` wraps, turns or thins out what would run into something else.

>>> panels = grid(emotions, height=9)
>>> for emotion, ax, rows in panels.each(table, "emotion"):
...     line(ax, rows, "layer", "cosine", looks[emotion], bounds="band")
>>> return panels.finish(table, "What the table says")
"""

from __future__ import annotations

import functools
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from emolab.base.errors import EmolabError, need_table, shown
from emolab.base.tables import about, span
from emolab.plot.page import dress, heard
from emolab.plot.style import SITES, UNITS, look, rc_settings, theme
from emolab.say.sentences import UNMEASURED, Unmeasured, readable

_UNNAMED = re.compile(r"_(child|container)\d+|_nolegend_")  # as matplotlib calls what has no name
_NO_GLYPH = r"Glyph (\d+) .*missing from"
_TOLD: set[tuple[str, tuple[str, ...]]] = set()
P = ParamSpec("P")


class EmolabFigure(Figure):
    """A matplotlib Figure outside pyplot's registry (so nothing is shown twice) that a notebook can still display.

    emolab_data: DataFrame, the plotted numbers. emolab_info: dict with function, title, model, n, seed, params,
    control and interval.
    """

    emolab_data: pd.DataFrame
    emolab_info: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.look = rc_settings(look())

    def draw(self, renderer) -> None:
        # As when room was made for the words, wherever it is drawn; of boxes in place of letters `finish` has warned.
        with mpl.rc_context(self.look), heard(_NO_GLYPH):
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, facecolor="white")
        return buffer.getvalue()


def figure(function: Callable[P, EmolabFigure]) -> Callable[P, EmolabFigure]:
    """A figure function, drawn in the theme that holds when it is called; its name stands in `emolab_info`.

    Where no value is known that its title could tell, the title says so: a report goes on.
    """

    @functools.wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> EmolabFigure:
        with theme():
            try:
                fig = function(*args, **kwargs)
            except Unmeasured:
                kwargs["title"] = UNMEASURED
                fig = function(*args, **kwargs)
        fig.emolab_info["function"] = function.__name__
        return fig

    return drawn


class Grid:
    """A figure and its panels, one per (row, column); columns that do not fit side by side go on in blocks below."""

    def __init__(self, fig: EmolabFigure, axes: Any, columns: list[str], rows: list[str], heights: list[float]):
        self.fig, self.names, self.rows = fig, columns, rows
        self.heights = heights  # of the panels of each row, in em
        self.beside = beside = axes.shape[1]
        self.axes: dict[tuple[str, str], Axes] = {
            (row, column): axes[j // beside * len(rows) + i, j % beside]
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
        }
        for ax in set(axes.flat) - set(self.axes.values()):
            ax.remove()

    def columns(self) -> Iterator[tuple[str, Axes]]:
        """(name, panel) of the first row."""
        for name in self.names:
            yield name, self.axes[self.rows[0], name]

    def each(self, table: pd.DataFrame, by: str) -> Iterator[tuple[str, Axes, pd.DataFrame]]:
        """(name, panel, rows of the table whose column `by` holds that name) of the first row of panels."""
        for name, ax in self.columns():
            yield name, ax, table[table[by] == name]

    def missing(self) -> float:
        """Pixels by which the page is too low for panels of the wanted heights."""
        stacked = [ax for (_, column), ax in self.axes.items() if self.names.index(column) % self.beside == 0]
        wanted = sum(self.heights) * len(stacked) / len(self.rows) * look().em * self.fig.dpi
        return wanted - sum(ax.get_window_extent().height for ax in stacked)

    def label(self, x: str | None = None, y: Mapping[str, str] | str | None = None) -> None:
        """Names of the axes, once: x under the lowest panel of each column, y beside the first panel of each row."""
        for (row, column), ax in self.axes.items():
            j = self.names.index(column)
            if x is not None and row == self.rows[-1] and j + self.beside >= len(self.names):
                ax.set_xlabel(x)
            if y is not None and j % self.beside == 0:
                ax.set_ylabel(y if isinstance(y, str) else y[row])
            if ax.get_shared_x_axes().joined(ax, next(iter(self.axes.values()))):
                ax.tick_params(labelbottom=row == self.rows[-1] and j + self.beside >= len(self.names))
            if j % self.beside and ax.get_shared_y_axes().joined(ax, self.axes[row, self.names[0]]):
                ax.tick_params(labelleft=False)

    def finish(
        self,
        data: pd.DataFrame,
        title: str,
        *,
        source: Any = None,
        legend: Sequence[Any] | None = None,
        control: str = "",
        interval: str = "",
        note: str = "",
        params: Mapping[str, Any] | None = None,
    ) -> EmolabFigure:
        """Attach numbers and origin, set title, legend and footer around the panels, and keep words off each other.

        source: the table that says who made the numbers, where data does not. legend: handles; default all labels of
        the panels, each once. note: a line under the title. params: beyond those of the source.
        """
        fig, origin, title = self.fig, about(data if source is None else source), readable(title)
        params = {**origin["params"], **(params or {})}
        fig.emolab_data = data.reset_index(drop=True)
        fig.emolab_info = {"title": title, **origin, "params": params, "control": control, "interval": interval}
        if look().panel_letters:
            for letter, ax in zip("abcdefghijklmnopqrstuvwxyz", self.axes.values(), strict=False):
                ax.set_title(f"{letter} {ax.get_title(loc='left')}".rstrip())
        footer = provenance(fig.emolab_info) if look().footer else ""
        with heard(_NO_GLYPH) as boxes:
            dress(fig, title, note, footer, _labelled(fig) if legend is None else legend, self.missing)
        _warn_of_boxes(fig, {chr(int(box[1])) for box in boxes})
        return fig


def grid(
    columns: Sequence[Any],
    rows: Sequence[Any] = ("",),
    *,
    height: float = 10,
    need: float = 12.3,
    want: float = 22,
    share: str = "xy",
    ratios: Sequence[float] | None = None,
) -> Grid:
    """A grid of panels, its columns titled.

    height: of a panel, in em. need, want: the least width of a panel and what it takes where there is room. share:
    "x" for one x axis, "y" for one y axis in each row, "Y" for one in all panels. ratios: heights of the rows.
    """
    now = look()
    columns, rows = [str(c) for c in columns], [str(r) for r in rows]
    room = now.width / now.em
    beside = max(1, min(len(columns), int(room // need)))
    blocks = math.ceil(len(columns) / beside)
    beside = math.ceil(len(columns) / blocks)  # blocks as equal as can be
    width = min(room, max(33, beside * want))
    heights = [height * r for r in (ratios or [1] * len(rows))]
    total = blocks * (
        sum(heights) + 9 * len(rows)
    )  # more than titles and names take: the page shrinks to what it needs
    fig = EmolabFigure(figsize=(width * now.em, total * now.em), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(blocks * len(rows), beside, squeeze=False, height_ratios=heights * blocks)
    made = Grid(fig, axes, columns, rows, heights)
    first = made.axes[rows[0], columns[0]]
    for (row, _), ax in made.axes.items():
        if "x" in share and ax is not first:
            ax.sharex(first)
        lead = first if "Y" in share else made.axes[row, columns[0]]
        if "y" in share.lower() and ax is not lead:
            ax.sharey(lead)
    if any(columns):
        for name, ax in made.columns():
            ax.set_title(name)
    return made


def tables_of(tables: Any, columns: Sequence[str], source: str) -> dict[str, pd.DataFrame]:
    """{panel title: table}, whether one table or several were given; EmolabError where one is not of `source`."""
    named: dict[str, Any] = tables if isinstance(tables, dict) and tables else {"": tables}
    for table in named.values():
        need_table(table, columns, source)
        if "head" in table and table["head"].notna().any():
            raise EmolabError("this table has one row per head; a curve over layers needs a site such as resid or attn")
    return named


def need_single(table: pd.DataFrame, *columns: str) -> None:
    """EmolabError where a column holds several values, of which a figure shows one."""
    for column in columns:
        if table[column].nunique() != 1:
            raise EmolabError(f"this table mixes {column} = {', '.join(table[column].unique())}; filter it to one")


def joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All panels' numbers in one table, with what the first one says of its origin."""
    table = pd.concat([t.assign(panel=title) if title else t for title, t in tables.items()], ignore_index=True)
    table.attrs = dict(next(iter(tables.values())).attrs)
    return table


def provenance(info: Mapping[str, Any]) -> str:
    """One line: model, site and layers, dose, n, seed, control and kind of interval, as far as they are known."""
    model, params, n = info.get("model") or {}, info.get("params") or {}, info.get("n")
    if isinstance(n, Mapping):  # answers per condition: one number where all agree
        counts = sorted(set(n.values()))
        n = (f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}") + " answers per condition"
    parts = [f"model {model['name']}" if model.get("name") else ""]
    site, layers = params.get("site"), params.get("layers", params.get("layer"))
    parts.append(SITES.get(site, f"site {site}") if isinstance(site, str) else "")
    if isinstance(layers, str | list | tuple | int):
        told = f"{layers}" if isinstance(layers, int) else span(layers)
        one = isinstance(layers, int) or (isinstance(layers, list | tuple) and len(layers) == 1)
        parts.append("all layers" if told == "all" else f"{'layer' if one else 'layers'} {told}")
    if params.get("part") in ("specific", "shared"):
        parts.append(f"{params['part']} part")
    alpha = params.get("alpha")
    parts.append(f"dose {float(alpha):g}" if isinstance(alpha, int | float | str) else "")
    parts.append(f"dose: {UNITS[params['unit']]}" if params.get("unit") in UNITS else "")
    parts.append("" if n is None else f"n = {n}")
    parts.append("" if info.get("seed") is None else f"seed {info['seed']}")
    parts.append(f"control: {info['control']}" if info.get("control") else "")
    parts.append(f"{info['interval']}" if info.get("interval") else "")
    return " · ".join(part for part in parts if part)


def _labelled(fig: Figure) -> list[Any]:
    """One handle per label of all panels, in the order in which they were drawn."""
    handles: dict[str, Any] = {}
    for ax in fig.axes:
        for handle in [*ax.get_children(), *ax.containers]:
            label = handle.get_label() if isinstance(handle, Line2D | Patch | Collection | Container) else ""
            if label and not _UNNAMED.fullmatch(str(label)):  # a user's own label may begin with "_"
                handles.setdefault(str(label), handle)
    return list(handles.values())


def _warn_of_boxes(fig: Figure, letters: set[str]) -> None:
    """One warning of the labels that hold these letters, once for each label and choice of fonts."""
    words = sorted((text.get_text() for text in fig.findobj(Text)), key=len)  # a label before sentences with it
    labels = dict.fromkeys(next(text for text in words if letter in text) for letter in sorted(letters))
    fonts = tuple(mpl.rcParams["font.family"])
    new = [label for label in labels if (label, fonts) not in _TOLD]
    _TOLD.update((label, fonts) for label in new)
    if new:
        warnings.warn(
            f"no font among {', '.join(fonts)} has the letters of {', '.join(map(shown, new))}, which become boxes: "
            'install one for that script and name it, matplotlib.rcParams["font.family"] = ["Noto Sans CJK JP"]',
            stacklevel=5,
        )
