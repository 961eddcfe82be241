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

from emolab.base.lazy import offer

_PUBLIC = {
    "ablation_curve": "plot.neurons",
    "affect_curve": "plot.affect",
    "affect_shift": "plot.affect",
    "agreement_curve": "plot.vectors",
    "attention_html": "plot.text",
    "check_figures": "plot.save",
    "choice_curve": "plot.choices",
    "circumplex": "plot.affect",
    "claim_additive": "plot.comparisons",
    "claim_linear": "plot.comparisons",
    "claim_monotone": "plot.comparisons",
    "claim_preservation": "plot.comparisons",
    "confound_curve": "plot.responses",
    "cosine_by_layer": "plot.vectors",
    "cosine_grid": "plot.vectors",
    "cosine_map": "plot.vectors",
    "dose_response": "plot.steering",
    "effect_forest": "plot.steering",
    "head_forest": "plot.heads",
    "head_map": "plot.heads",
    "head_umap": "plot.heads",
    "heads_or_neurons": "plot.neurons",
    "instruction_following": "plot.responses",
    "judge_agreement": "plot.responses",
    "layer_curve": "plot.steering",
    "layer_map": "plot.vectors",
    "mixture_map": "plot.steering",
    "norms": "plot.vectors",
    "probe_curve": "plot.responses",
    "purity_dots": "plot.steering",
    "rank_curve": "plot.reading",
    "reliability_curve": "plot.vectors",
    "response_map": "plot.responses",
    "save_figure": "plot.save",
    "shared_energy_curve": "plot.vectors",
    "signature": "plot.overview",
    "site_map": "plot.steering",
    "sublayers": "plot.neurons",
    "text_table": "plot.side_by_side",
    "theme": "plot.style",
    "token_trace": "plot.reading",
    "tradeoff": "plot.comparisons",
    "turning_curve": "plot.reading",
    "two_models": "plot.across",
    "words_table": "plot.text",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
