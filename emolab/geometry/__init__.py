"""How vectors lie to one another, by layer: cosines, shared part, reliability, maps in two dimensions."""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "affect_axes": "geometry.affect",
    "affect_fit": "geometry.affect",
    "affect_points": "geometry.affect",
    "word_embeddings": "geometry.affect",
    "cka": "geometry.similarity",
    "confounds": "geometry.confounding",
    "cosine_matrix": "geometry.similarity",
    "cosines": "geometry.similarity",
    "denoise": "geometry.similarity",
    "embed": "geometry.projections",
    "embed_scores": "geometry.projections",
    "emotion_cosines": "geometry.tables",
    "layer_by_layer": "geometry.tables",
    "map_agreement": "geometry.across",
    "neighbour_purity": "geometry.tables",
    "pair_cosines": "geometry.tables",
    "vector_norms": "geometry.tables",
    "probe_accuracy": "geometry.reliability",
    "shared_energy": "geometry.similarity",
    "split_half": "geometry.reliability",
    "text_features": "geometry.confounding",
    "vector_agreement": "geometry.similarity",
    "without_confounds": "geometry.confounding",
    "word_accuracy": "geometry.reliability",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
