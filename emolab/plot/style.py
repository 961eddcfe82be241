"""How figures look: themes and their width, one look per emotion and per control, one name per measure.

>>> with theme("paper", width=3.3):                # one column of a journal: 7 pt
...     fig = plot.norms(vectors)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import seaborn as sns

from emolab.base.calls import held
from emolab.base.errors import EmolabError, need_number
from emolab.base.labels import CONTROL_NAMES, styles

GREY = "#8A8A8A"
INK = "#333333"
PALE = "#DADADA"  # no colour of a scale: what was not measured is not read as zero

# Equal bytes on every machine: the font that ships with matplotlib, a fixed salt for ids, text kept as text.
FIXED: dict[Any, Any] = {
    "svg.hashsalt": "emolab",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "axes.unicode_minus": True,
    "text.hinting": "none",  # else words are a tenth wider at one resolution than at another
    "text.parse_math": False,  # a label may hold a dollar sign
}

# One look per control and one name, in all figures.
CONTROLS: dict[str, dict[str, Any]] = {
    "random": {"color": GREY, "marker": ".", "linestyle": "-", "label": CONTROL_NAMES["random"]},
    "shuffled": {"color": "#4F6D7A", "marker": "x", "linestyle": "--", "label": CONTROL_NAMES["shuffled"]},
    "other": {"color": "#7A6A4F", "marker": "+", "linestyle": ":", "label": CONTROL_NAMES["other"]},
    "prompt": {"color": "#5B4A8A", "marker": "*", "linestyle": (0, (6, 2)), "label": "instructed, not steered"},
    "unsteered": {"color": INK, "marker": "_", "linestyle": ":", "label": "unsteered"},
    "shared": {"color": "#882255", "marker": "2", "linestyle": "-.", "label": "shared part"},
}
# One name per measure.
MEASURES = {
    "target": "texts read as the target",
    "hit": "texts read as the target",
    "p_target": "judge's probability of the target",
    "emotion": "judge's probability of the target",
    "leak": "texts read as another emotion",
    "emotional": "texts read as any emotion",
    "adherence": "topic kept (adherence)",
    "perplexity_ratio": "perplexity ratio",
    "distinct2": "distinct word pairs",
    "overall": "headline score",
    "judge": "judge's logit of the target",
    "log-odds": "log-odds of the target, nats per token",
}
PARTS = {"whole": "whole vector", "specific": "specific part", "shared": "shared part", "random": "random direction"}
SITES = {"resid": "residual stream", "attn": "attention output", "mlp": "MLP output", "head": "single heads"}
SITES |= {"neuron": "single neurons"}
UNITS = {"vector": "multiples of the vector", "residual": "in residual norms", "breaking": "1 breaks the text"}


@dataclass(frozen=True)
class Look:
    """Width in inches, sizes in points, and whether a footer and panel letters are drawn."""

    width: float
    size: float
    footer: bool = True
    panel_letters: bool = False

    @property
    def small(self) -> float:
        return max(6.2, 0.82 * self.size)

    @property
    def em(self) -> float:
        """The size of the text in inches."""
        return self.size / 72


LOOKS = {"notebook": Look(9.6, 10.0), "paper": Look(7.0, 8.0), "slides": Look(13.0, 13.0)}
_current: ContextVar[Look] = ContextVar("emolab_look", default=LOOKS["notebook"])


def look() -> Look:
    """The look that figures are drawn in now."""
    return _current.get()


@contextmanager
def theme(
    style: str | None = None,
    *,
    width: float | None = None,
    footer: bool | None = None,
    panel_letters: bool | None = None,
) -> Iterator[None]:
    """Draw the figures made inside for a notebook (the default), a paper or slides.

    >>> with theme("paper", width=3.3, footer=False, panel_letters=True):
    ...     fig = plot.norms(vectors)

    width: of the figure in inches; default 9.6, 7 or 13. Text has 10, 8 or 13 points, in columns under 5 inches 7 at
    least; nothing is smaller than 6. footer: the line that says model, site, n, seed, control and interval.
    Fonts that the user set (`matplotlib.rcParams["font.family"]`) serve the scripts that DejaVu Sans lacks.
    matplotlib's settings are as before on leaving. Raises EmolabError for a style that does not exist.
    """
    if style is not None and style not in LOOKS:
        raise EmolabError(f"unknown style {style!r}; there are {', '.join(LOOKS)}")
    new = look() if style is None else LOOKS[style]
    if width is not None:
        need_number("width", width, 2.5, 30)
        new = replace(new, width=float(width), size=new.size if width >= 5 else max(7.0, 0.875 * new.size))
    if footer is not None:
        new = replace(new, footer=footer)
    if panel_letters is not None:
        new = replace(new, panel_letters=panel_letters)
    with held(_current, new), mpl.rc_context(rc_settings(new)):
        yield


def rc_settings(new: Look) -> dict[Any, Any]:
    """matplotlib's settings for a look."""
    size, ticks = new.size, max(7.0, 0.9 * new.size)
    return {
        **{key: value for key, value in sns.axes_style("whitegrid").items() if not key.startswith("font")},
        **FIXED,
        "font.family": _fonts(),
        "font.size": size,
        "axes.titlesize": size,
        "axes.labelsize": size,
        "xtick.labelsize": ticks,
        "ytick.labelsize": ticks,
        "legend.fontsize": ticks,
        "figure.titlesize": size,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "grid.linewidth": 0.06 * size,
        "grid.color": "#E3E3E3",
        "lines.linewidth": 0.14 * size,
        "lines.markersize": 0.45 * size,
        "legend.frameon": False,
        "image.cmap": "cividis",
    }


def _fonts() -> list[str]:
    """DejaVu Sans first, then what the user set: matplotlib takes from these what the first one lacks."""
    own = [f for f in mpl.rcParams["font.family"] if f not in ("sans-serif", "DejaVu Sans")]
    usual = mpl.rcParamsDefault["font.sans-serif"]
    own += [f for f in mpl.rcParams["font.sans-serif"] if f not in usual]
    return ["DejaVu Sans", *own]


def emotion_looks(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Line settings per label; a thin dark outline keeps the light colours readable on white."""
    return {
        label: {"color": color, "marker": marker, "markeredgecolor": INK, "markeredgewidth": 0.4}
        for label, (color, marker) in styles(labels).items()
    }
