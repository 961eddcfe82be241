"""A whole study from queries to a report, its command line, and the check of a model."""

from __future__ import annotations

from emolab.base.lazy import on_use

_PUBLIC = {
    "FULL": "studies.plan",
    "Plan": "studies.plan",
    "QUICK": "studies.plan",
    "check_model": "studies.selfcheck",
    "study": "studies.pipeline",
}
__all__ = sorted(_PUBLIC)
__getattr__ = on_use(__name__, _PUBLIC, __all__)


def __dir__() -> list[str]:
    return __all__
