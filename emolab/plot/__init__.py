"""Figures: one function a figure. They take results, return a matplotlib Figure, and never show or write.

>>> from emolab import plot
>>> fig = plot.cosine_by_layer(vectors)
>>> with plot.theme("print"):                                  # 8 pt, column widths; also "slides"
...     fig = plot.cosine_map(vectors, layer=3)
>>> plot.save_figure(fig, "cosine_map", caption="...", alt="...")

`save_figure` alone writes: SVG, PNG, the numbers as CSV, and an entry in figures/manifest.json.
"""

from __future__ import annotations

from emolab.plot.attention import attention_bars, attention_html, words_table
from emolab.plot.baselines import method_table, tradeoff
from emolab.plot.causal import ablation_curve, head_forest
from emolab.plot.claims import claim_additive, claim_linear, claim_monotone, claim_preservation
from emolab.plot.curves import (
    agreement_curve,
    convergence_curve,
    denoise_curve,
    probe_curve,
    reliability_curve,
    shared_energy_curve,
)
from emolab.plot.effects import effect_forest, wrong_way
from emolab.plot.geometry import cosine_by_layer, cosine_map, norms
from emolab.plot.heads import head_cosine_map, head_map, head_umap
from emolab.plot.judges import judge_agreement
from emolab.plot.maps import cka_map, cosine_grid, layer_map
from emolab.plot.points import affect_plane, response_map, trajectory_map
from emolab.plot.purity import confusion_map, purity_dots
from emolab.plot.save import check_figures, save_figure
from emolab.plot.scores import dose_response, instruction_following
from emolab.plot.style import theme
from emolab.plot.sweeps import fade_curve, layer_curve, mixture_map, site_map
from emolab.plot.tables import text_table

__all__ = [
    "ablation_curve",
    "affect_plane",
    "agreement_curve",
    "attention_bars",
    "attention_html",
    "check_figures",
    "cka_map",
    "claim_additive",
    "claim_linear",
    "claim_monotone",
    "claim_preservation",
    "confusion_map",
    "convergence_curve",
    "cosine_by_layer",
    "cosine_grid",
    "cosine_map",
    "denoise_curve",
    "dose_response",
    "effect_forest",
    "fade_curve",
    "head_cosine_map",
    "head_forest",
    "head_map",
    "head_umap",
    "instruction_following",
    "judge_agreement",
    "layer_curve",
    "layer_map",
    "method_table",
    "mixture_map",
    "norms",
    "probe_curve",
    "purity_dots",
    "reliability_curve",
    "response_map",
    "save_figure",
    "shared_energy_curve",
    "site_map",
    "text_table",
    "theme",
    "tradeoff",
    "trajectory_map",
    "words_table",
    "wrong_way",
]
