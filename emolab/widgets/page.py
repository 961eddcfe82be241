"""What the views share: HTML with its numbers inside, that a notebook shows with or without running scripts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

# Lines and shades that can be seen on white and on black; text takes the colour of the page.
LINE = "1px solid rgba(128,128,128,0.4)"
FADED = "opacity:0.75"
# The deepest shades, as (red, green, blue) and opacity: text of either theme stays readable on them.
SHADES = {"above": "214,60,60", "below": "40,110,220", "deepest": 0.65}


@dataclass(frozen=True, eq=False)
class View:
    """HTML that a notebook shows, and the numbers that it shows, as `.table`."""

    html: str
    table: pd.DataFrame
    summary: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:  # a notebook stores it beside the HTML
        return self.summary


def page(kind: str, body: str, data: dict[str, Any]) -> str:
    """A root element with `body`, readable as it is, and `kind`.js, which brings it to life from `data`.

    Notebooks cut scripts (and style sheets, and controls) out of outputs that they do not trust: so the body alone must
    make sense, styles stand on the elements, and controls are added by the script. JupyterLab takes keys for its own
    shortcuts, unless an element says otherwise.
    """
    values = escape(json.dumps(data, separators=(",", ":"), allow_nan=False), quote=False).replace("'", "&#39;")
    root = f'<div class="emolab-{kind}" data-lm-suppress-shortcuts="true" data-emolab=\'{values}\'>'
    return f"{root}{body}</div><script>{_script(kind)}</script>"


@cache
def _script(kind: str) -> str:
    return Path(__file__).with_name(f"{kind}.js").read_text(encoding="utf-8")


def small(html: str, kind: str = "") -> str:
    """A line in small letters below a view; kind: the class by which its script finds it."""
    named = f' class="emolab-{kind}"' if kind else ""
    return f'<div{named} style="font-size:0.85em;{FADED}">{html}</div>'


def hint(what: str) -> str:
    """Where scripts are not run: how to choose something else."""
    return small(f"Run the notebook, or trust it, to choose {what}.", "hint")


def spaced(piece: str) -> tuple[str, str]:
    """A token's space before the word, which stays white, and its word, escaped, with line breaks that can be seen."""
    word = piece.lstrip(" ")
    return piece[: len(piece) - len(word)], escape(word.replace("\n", "⏎\n"))


def signed_shade(value: float, limit: float) -> str:
    """CSS colour of a signed number: see-through at 0, red above, blue below, deepest from `limit` on."""
    share = max(-1.0, min(1.0, value / limit))
    return _rgba(SHADES["above" if share > 0 else "below"], abs(share))


def shade(colour: str, share: float) -> str:
    """CSS colour of a hex colour: see-through at share 0, deepest at 1."""
    return _rgba(",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5)), share)


def _rgba(rgb: str, share: float) -> str:
    return f"rgba({rgb},{SHADES['deepest'] * share:.2f})"


def signed(value: float, digits: int) -> str:
    """A number with its sign, so many digits after the point, and a true minus."""
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else ("−" if value < 0 else "+") + text
