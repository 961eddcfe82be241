"""A whole study from queries to a report, its command line, and the check of a model."""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "FULL": "studies.plan",
    "Plan": "studies.plan",
    "QUICK": "studies.plan",
    "check_model": "studies.selfcheck",
    "compare_runs": "studies.two_runs",
    "study": "studies.pipeline",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
