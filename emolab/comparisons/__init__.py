"""Vectors beside other methods at equal damage, and the claims of the paper."""

from __future__ import annotations

from emolab.base.lazy import on_use

_PUBLIC = {
    "check_claims": "comparisons.claim_runs",
    "compare_methods": "comparisons.comparison",
    "judge_logits": "comparisons.claims",
    "monotone": "comparisons.claims",
}
__all__ = sorted(_PUBLIC)
__getattr__ = on_use(__name__, _PUBLIC, __all__)


def __dir__() -> list[str]:
    return __all__
