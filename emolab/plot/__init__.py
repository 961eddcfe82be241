"""Figures: one function a figure. They take results, return a matplotlib Figure, and never show or write.

>>> from emolab import plot
>>> fig = plot.cosine_by_layer(vectors)                        # doctest: +SKIP
>>> with plot.theme("print"):                                  # 8 pt, column widths; also "slides"
...     fig = plot.cosine_map(vectors, layer=3)                # doctest: +SKIP
>>> plot.save_figure(fig, "cosine_map", caption="...", alt="...")  # doctest: +SKIP

`save_figure` alone writes: SVG, PNG, the numbers as CSV, and an entry in figures/manifest.json.
"""

from __future__ import annotations

from .attention import attention_bars, attention_html, words_table
from .causal import ablation_curve, head_forest
from .curves import convergence_curve, denoise_curve, probe_curve, reliability_curve, shared_energy_curve
from .geometry import cosine_by_layer, cosine_map, norms
from .heads import head_cosine_map, head_map, head_umap
from .maps import cka_map, clustered_map, cosine_grid, layer_map
from .points import affect_plane, response_map, trajectory_map
from .purity import confusion_map, purity_dots
from .save import check_figures, save_figure
from .scores import dose_response, instruction_following
from .style import theme
from .tables import text_table

__all__ = [
    "ablation_curve",
    "affect_plane",
    "attention_bars",
    "attention_html",
    "check_figures",
    "cka_map",
    "clustered_map",
    "confusion_map",
    "convergence_curve",
    "cosine_by_layer",
    "cosine_grid",
    "cosine_map",
    "denoise_curve",
    "dose_response",
    "head_cosine_map",
    "head_forest",
    "head_map",
    "head_umap",
    "instruction_following",
    "layer_map",
    "norms",
    "probe_curve",
    "purity_dots",
    "reliability_curve",
    "response_map",
    "save_figure",
    "shared_energy_curve",
    "text_table",
    "theme",
    "trajectory_map",
    "words_table",
]
