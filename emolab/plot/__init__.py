"""Figures: one function per figure. They take tables, return a matplotlib Figure, and never show or write.

>>> from emolab import plot
>>> fig = plot.cosine_by_layer(vectors)
>>> with plot.theme("paper", width=3.3, panel_letters=True):         # 7 pt, one column; also "slides"
...     fig = plot.cosine_map(vectors, layer=3)
>>> plot.save_figure(fig, "cosine_map")

The title says the result, the footer who made it. `save_figure` alone writes: SVG, PDF, PNG, the numbers as CSV, and an
entry in figures/manifest.json.
"""

from __future__ import annotations

from emolab.plot.across import two_models
from emolab.plot.affect import affect_curve, affect_shift, circumplex
from emolab.plot.choices import choice_curve
from emolab.plot.comparisons import claim_additive, claim_linear, claim_monotone, claim_preservation, tradeoff
from emolab.plot.heads import ablation_curve, head_forest, head_map, head_umap
from emolab.plot.neurons import heads_or_neurons, sublayers
from emolab.plot.overview import signature
from emolab.plot.reading import rank_curve, token_trace, turning_curve
from emolab.plot.responses import confound_curve, instruction_following, judge_agreement, probe_curve, response_map
from emolab.plot.save import check_figures, save_figure
from emolab.plot.side_by_side import text_table
from emolab.plot.steering import (
    confusion_map,
    dose_response,
    effect_forest,
    layer_curve,
    mixture_map,
    purity_dots,
    site_map,
)
from emolab.plot.style import theme
from emolab.plot.text import attention_html, words_table
from emolab.plot.vectors import (
    agreement_curve,
    cosine_by_layer,
    cosine_grid,
    cosine_map,
    layer_map,
    norms,
    reliability_curve,
    shared_energy_curve,
)

__all__ = [
    "affect_curve",
    "affect_shift",
    "ablation_curve",
    "agreement_curve",
    "attention_html",
    "check_figures",
    "choice_curve",
    "claim_additive",
    "claim_linear",
    "claim_monotone",
    "claim_preservation",
    "circumplex",
    "confound_curve",
    "confusion_map",
    "cosine_by_layer",
    "cosine_grid",
    "cosine_map",
    "dose_response",
    "effect_forest",
    "head_forest",
    "head_map",
    "head_umap",
    "heads_or_neurons",
    "instruction_following",
    "judge_agreement",
    "layer_curve",
    "layer_map",
    "mixture_map",
    "norms",
    "probe_curve",
    "purity_dots",
    "rank_curve",
    "reliability_curve",
    "response_map",
    "save_figure",
    "shared_energy_curve",
    "signature",
    "site_map",
    "sublayers",
    "text_table",
    "theme",
    "token_trace",
    "tradeoff",
    "turning_curve",
    "two_models",
    "words_table",
]
