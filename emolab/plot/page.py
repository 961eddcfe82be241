"""The page around the panels: title, note, legend and footer; and that no words run together or off the page.

Widths are measured in the font that is drawn, so that one figure fits a column, a page and a slide.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from emolab.plot.style import INK, look

CELL = 6.2  # points: the smallest number in a heat map
BAR = "colour bar of the page"
_PAD = 0.5  # em around the page
_JOINED = "\N{NO-BREAK SPACE}"


def dress(
    fig: Figure, title: str, note: str, footer: str, handles: Sequence[Any], missing: Callable[[], float]
) -> None:
    """Set title, note and legend above the panels, the footer below; the page grows, so that panels keep their heights.

    missing: tells by how many pixels the page is too low for its panels.
    """
    now, dpi, width = look(), fig.dpi, fig.bbox.width
    pad = _PAD * now.em * dpi
    room, above, below = width - 2 * pad, pad, pad
    placed: list[tuple[Any, float]] = []
    for text, weight, size in ((title, "bold", now.size), (note, "normal", now.small)):
        if text:
            words = fig.text(0, 0, "", va="top", color=INK, fontweight=weight, fontsize=size)
            words.set_text(wrapped(text, words, room))
            placed.append((words, above))
            above += words.get_window_extent().height + 0.6 * pad
    if handles:
        legend = _legend(fig, handles, room, len(handles))
        placed.append((legend, above))
        above += legend.get_window_extent().height + 0.6 * pad
    if footer:
        words = fig.text(0, 0, "", va="bottom", color="#6B6B6B", fontsize=now.small, gid="footer")
        parts = [part.replace(" ", _JOINED) for part in footer.split(" · ")]
        words.set_text(wrapped(f"{_JOINED}· ".join(parts), words, room).replace(_JOINED, " "))
        placed.append((words, -below))
        below += words.get_window_extent().height + 0.6 * pad
    for bar in [ax for ax in fig.axes if ax.get_label() == BAR]:
        bar.xaxis.label.set_text(wrapped(bar.get_xlabel(), bar.xaxis.label, room))
        deep = bar.get_window_extent().y0 - bar.get_tightbbox().y0  # pyright: ignore  # numbers and name under it
        placed.append((bar, -below - deep))
        below += deep + now.em * dpi
    height, engine = fig.bbox.height + above + below, fig.get_layout_engine()
    rounds, cramped = 4, 4
    while rounds and cramped:  # what is wrapped or turned changes the room that the panels have
        fig.set_figheight(round(height / dpi, 3))
        for thing, offset in placed:
            y = 1 - offset / height if offset > 0 else -offset / height
            if isinstance(thing, Text):
                thing.set_position((pad / width, y))
            elif isinstance(thing, Axes):
                thing.set_position((0.2, y, 0.6, 0.7 * now.em * dpi / height))
            else:
                thing.set_bbox_to_anchor((pad / width, y), transform=fig.transFigure)
        rect = (0.5 * pad / width, below / height, 1 - pad / width, 1 - (above + below) / height)
        engine.set(rect=rect, w_pad=0.4 * now.em, h_pad=0.25 * now.em, wspace=0.01, hspace=0.01)  # pyright: ignore
        with heard("constrained_layout not applied") as complaints:
            fig.draw_without_rendering()
        if complaints:  # beside long names nothing is left for the panels
            height, cramped = 1.5 * height, cramped - 1
            continue
        rounds -= 1
        tickers: set[int] = set()
        changed = [ax for ax in fig.axes if _fit(ax, tickers)]
        if not changed and abs(missing()) < 2:
            break
        height += missing()
    if not cramped:
        warnings.warn("names leave no room for the panels; give shorter ones, or a wider theme", stacklevel=2)
    for ax in fig.axes:
        _fit_cells(ax)
    fig.set_layout_engine("none")  # what was fitted stays
    for ax in fig.axes:  # the solver's last digits differ from run to run, and an SVG's ids hold all of them
        left, bottom, width, height = (round(x, 5) for x in ax.get_position(original=True).bounds)
        ax.set_position((left, bottom, width, height))


@contextmanager
def heard(pattern: str) -> Iterator[list[re.Match]]:
    """Warnings of what is done inside that begin with this pattern; all others are let through."""
    matches: list[re.Match] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield matches
    for warning in caught:
        match = re.match(pattern, str(warning.message))
        if match:
            matches.append(match)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _legend(fig: Figure, handles: Sequence[Any], room: float, columns: int):
    """A legend in so many columns, or in as many as fit."""
    legend = fig.legend(
        handles, [""] * len(handles), loc="upper left", bbox_to_anchor=(0, 1), ncols=columns,
        borderpad=0, borderaxespad=0, columnspacing=1.3, handlelength=1.6, handletextpad=0.5, labelspacing=0.35,
    )  # fmt: skip
    for words, handle in zip(legend.get_texts(), handles, strict=True):  # older versions drop a label like "_x"
        words.set_text(handle.get_label())
    if legend.get_window_extent().width <= 0.96 * room:
        return legend
    if columns == 1:
        for words in legend.get_texts():
            words.set_text(wrapped(words.get_text(), words, 0.9 * room))
        return legend
    legend.remove()
    return _legend(fig, handles, room, columns - 1)


def _text_width(text: str, like: Text) -> float:
    """Pixels that a line of text takes in the font of another."""
    renderer = like.figure.canvas.get_renderer()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    return renderer.get_text_width_height_descent(text, like.get_fontproperties(), False)[0]


def wrapped(text: str, like: Text, room: float) -> str:
    """The text in lines that are no longer than the room, in pixels."""
    lines = []
    for paragraph in text.split("\n"):
        current = ""
        words = filter(None, paragraph.split(" "))  # not at spaces that hold words together
        for word in chain.from_iterable(_pieces(word, like, room) for word in words):
            longer = f"{current} {word}".strip()
            if current and _text_width(longer, like) > 0.97 * room:  # other formats set text a little wider
                lines.append(current)
                longer = word
            current = longer
        lines.append(current)
    return "\n".join(lines)


def _pieces(word: str, like: Text, room: float) -> list[str]:
    """A word in pieces that fit the room: a label may be long, or of a script without spaces."""
    if _text_width(word, like) <= 0.97 * room or len(word) == 1:
        return [word]
    size = max(1, int(len(word) * 0.9 * room / _text_width(word, like)))
    return [word[:size], *_pieces(word[size:], like, room)] if len(word) > size else [word]


def _fit(ax: Axes, tickers: set[int]) -> bool:
    """Wrap titles and names of axes to their panel, thin out or turn what stands along the axes; whether any was.

    tickers: those seen before, which belong to several panels that share an axis.
    """
    box = ax.get_window_extent()
    below = 1.15 * box.width if ax.get_label() != BAR else float("inf")
    changed = False
    title = ax._left_title  # pyright: ignore[reportAttributeAccessIssue] (matplotlib has no public name for it)
    for words, room in ((title, 1.05 * box.width), (ax.xaxis.label, below), (ax.yaxis.label, 1.1 * box.height)):
        text = wrapped(words.get_text(), words, room)
        changed |= text != words.get_text()
        words.set_text(text)
    ticks = [t for t in ax.get_xticklabels() if t.get_text() and t.get_visible()]
    bare = not ticks or not ax.xaxis.get_tick_params().get("labelbottom", True)
    if id(ax.xaxis.major) in tickers or bare or ticks[0].get_rotation():
        return changed
    extents = [t.get_window_extent() for t in ticks]
    if not any(a.x1 + 2 > b.x0 for a, b in zip(extents, extents[1:], strict=False)):
        return changed
    tickers.add(id(ax.xaxis.major))
    if isinstance(ax.xaxis.get_major_locator(), MaxNLocator):
        ax.xaxis.set_major_locator(MaxNLocator(nbins=max(1, len(ticks) // 2), steps=[1, 2, 5, 10], min_n_ticks=1))
    elif all(_is_number(t.get_text()) for t in ticks):
        ax.set_xticks(ax.get_xticks()[::2], [t.get_text() for t in ax.get_xticklabels()][::2])
    else:
        ax.tick_params(axis="x", rotation=90)
    return True


def _fit_cells(ax: Axes) -> None:
    """Numbers in the cells of a heat map, smaller where they must be, or none where they would run together."""
    cells = [t for t in ax.texts if t.get_gid() != "free"]
    if not ax.collections or not cells:
        return
    box, (left, right), (low, high) = ax.get_window_extent(), ax.get_xlim(), ax.get_ylim()
    room = 0.94 * box.width / abs(right - left), 0.98 * box.height / abs(high - low)
    for size in (look().small, CELL):
        for cell in cells:
            cell.set_fontsize(size)
        extents = [cell.get_window_extent() for cell in cells]
        if all(e.width <= room[0] and e.height <= room[1] for e in extents):
            return
    for cell in cells:
        cell.remove()


def _is_number(text: str) -> bool:
    try:
        float(text.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return False
    return True
