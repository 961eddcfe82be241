"""Vectors beside other methods at equal damage, and the claims of the paper."""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "Comparison": "comparisons.comparison",
    "check_claims": "comparisons.claim_runs",
    "compare_methods": "comparisons.compare",
    "judge_logits": "comparisons.claims",
    "monotone": "comparisons.claims",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
