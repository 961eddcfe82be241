"""Heads, neurons and sublayers: their share of a vector, where heads look, the words they raise, what they cause."""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "HeadTest": "heads.patching",
    "ablation_curve": "heads.curves",
    "attention_pattern": "heads.attention",
    "embed_heads": "heads.head_vectors",
    "emotion_tokens": "heads.attribution",
    "head_cosines": "heads.head_vectors",
    "head_effects": "heads.effects",
    "head_maps": "heads.head_vectors",
    "head_summary": "heads.head_vectors",
    "neuron_effects": "heads.neurons",
    "neuron_map": "heads.neurons",
    "neuron_words": "heads.neurons",
    "sublayer_effects": "heads.sublayers",
    "top_words": "heads.attribution",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
