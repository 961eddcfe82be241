"""From responses to emotion vectors: which tokens count, the reading pass, means, vectors, controls, exchange."""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "EmotionVectors": "vectors.vectors",
    "ResponseMeans": "vectors.activations",
    "extract_vectors": "vectors.vectors",
    "from_published": "vectors.exchange",
    "from_tensors": "vectors.exchange",
    "load_vectors": "vectors.vectors",
    "other_like": "vectors.controls",
    "random_like": "vectors.controls",
    "response_means": "vectors.activations",
    "shuffled_like": "vectors.controls",
    "vectors_from_means": "vectors.vectors",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
