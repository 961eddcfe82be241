"""Figures: one function a figure. They take results, return a matplotlib Figure, and never show or write.

>>> from emolab import plot
>>> fig = plot.cosine_by_layer(vectors)                        # doctest: +SKIP
>>> with plot.theme("print"):                                  # 8 pt, column widths; also "slides"
...     fig = plot.cosine_map(vectors, layer=3)                # doctest: +SKIP
>>> plot.save_figure(fig, "cosine_map", caption="...", alt="...")  # doctest: +SKIP

`save_figure` alone writes: SVG, PNG, the numbers as CSV, and an entry in figures/manifest.json.
"""

from __future__ import annotations

from .geometry import cosine_by_layer, cosine_map, norms
from .save import check_figures, save_figure
from .scores import dose_response, instruction_following
from .style import theme
from .tables import text_table

__all__ = [
    "check_figures",
    "cosine_by_layer",
    "cosine_map",
    "dose_response",
    "instruction_following",
    "norms",
    "save_figure",
    "text_table",
    "theme",
]
