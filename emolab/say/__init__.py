"""What results say, in sentences: each takes what the figure of the same name takes, and names its controls.

>>> emolab.say.dose_response(scored, reference=instructed)
Steering brings 0.78 [0.63, 0.88] of the texts to the target at dose 1.75 (random direction 0.03 [0.01, 0.13], ...

Brackets hold 95 % intervals, over questions unless a sentence says otherwise. `.verdict` is the first sentence alone.
"""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "Sentences": "say.sentences",
    "ablation_curve": "say.heads",
    "affect_curve": "say.affect",
    "affect_shift": "say.affect",
    "agreement_curve": "say.vectors",
    "attention": "say.heads",
    "beyond_instruction": "say.steering",
    "choice_curve": "say.choices",
    "circumplex": "say.affect",
    "confound_curve": "say.vectors",
    "cosine_map": "say.vectors",
    "dose_response": "say.steering",
    "effect_forest": "say.steering",
    "head_forest": "say.heads",
    "head_map": "say.heads",
    "head_umap": "say.heads",
    "heads_or_neurons": "say.heads",
    "instruction_following": "say.steering",
    "judge_agreement": "say.steering",
    "layer_curve": "say.steering",
    "layer_map": "say.vectors",
    "mixture_map": "say.steering",
    "naming": "say.steering",
    "neighbours": "say.vectors",
    "neuron_map": "say.heads",
    "neuron_words": "say.heads",
    "norms": "say.vectors",
    "passages": "say.reading",
    "probe_curve": "say.vectors",
    "purity_dots": "say.steering",
    "rank_curve": "say.reading",
    "reliability_curve": "say.vectors",
    "response_map": "say.vectors",
    "screening": "say.heads",
    "shares": "say.steering",
    "shared_energy_curve": "say.vectors",
    "site_map": "say.steering",
    "sources": "say.steering",
    "sublayers": "say.heads",
    "tradeoff": "say.steering",
    "turning_curve": "say.reading",
    "two_models": "say.across",
    "without_confounds": "say.vectors",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
