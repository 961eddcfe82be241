"""The classroom: checks for the exercises of notebook 07, and the builder of its student edition.

>>> from emolab import classroom
>>> classroom.check_emotion_vector(lambda emotional, neutral: (emotional - neutral).mean(0))
emotion_vector: right. A mean of differences between answers to the same questions, one vector a layer.

A check takes the student's function, tries it on toy tensors in less than a second, and prints one line when it is
right. Otherwise it raises `Wrong`, which says what was expected and which common mistake the answer looks like, or
`Unfinished` where nothing is written yet; a notebook shows these words alone, without a stack trace.

`python -m emolab.classroom` writes the student edition from the solution edition.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Unfinished": "attempt",
    "Wrong": "attempt",
    "check_choose_layer": "experiment_checks",
    "check_cosine": "vector_checks",
    "check_emotion_vector": "vector_checks",
    "check_random_like": "vector_checks",
    "check_share": "experiment_checks",
    "check_shuffle_labels": "experiment_checks",
    "check_split": "vector_checks",
    "check_steered_cache": "experiment_checks",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:  # as in emolab itself: the builder of the editions needs no torch
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
