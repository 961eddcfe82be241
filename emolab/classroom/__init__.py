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

from .attempt import Unfinished, Wrong
from .experiment_checks import check_choose_layer, check_share, check_shuffle_labels, check_steered_cache
from .vector_checks import check_cosine, check_emotion_vector, check_random_like, check_split

__all__ = [
    "Unfinished",
    "Wrong",
    "check_choose_layer",
    "check_cosine",
    "check_emotion_vector",
    "check_random_like",
    "check_share",
    "check_shuffle_labels",
    "check_split",
    "check_steered_cache",
]
