"""Where words stand in a figure, as matplotlib draws it."""

from __future__ import annotations

from itertools import combinations

import matplotlib as mpl
from matplotlib.text import Text


def words_of(fig) -> list[Text]:
    """Every text that is drawn: titles, names of axes, numbers along them, cells, legends, footer."""
    fig.draw_without_rendering()
    hidden = {text for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for text in _outside(axis)}
    found = [t for t in fig.findobj(Text) if t.get_text().strip() and t.get_visible() and t not in hidden]
    return list(dict.fromkeys(found))


def _outside(axis) -> set[Text]:
    """Numbers that are not drawn: beyond the ends of the axis, or switched off."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 + 1e-6 * (high - low)
    ticks = axis.get_major_ticks() + axis.get_minor_ticks()
    drawn = [
        t for t in axis.get_major_ticks()[: len(axis.get_majorticklocs())] if low - slack <= t.get_loc() <= high + slack
    ]
    return {label for t in ticks for label in (t.label1, t.label2)} - {
        t.label1 for t in drawn if t.label1.get_visible()
    }


def faults(fig) -> list[str]:
    """What a reader would trip over: words that overlap, leave the page, or are too small."""
    words = words_of(fig)
    with mpl.rc_context(fig.look):
        boxes = [(t.get_text().replace("\n", " / "), Text.get_window_extent(t)) for t in words]  # without arrows
    page = fig.bbox
    found = [f"{t.get_text()!r} has {t.get_fontsize():.1f} pt" for t in words if t.get_fontsize() < 6]
    for text, box in boxes:
        if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > page.x1 + 0.5 or box.y1 > page.y1 + 0.5:
            found.append(f"{text!r} is cut by the edge")
    for (text, a), (other, b) in combinations(boxes, 2):
        over = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        if min(over) > 1:
            found.append(f"{text!r} runs into {other!r}")
    return found
