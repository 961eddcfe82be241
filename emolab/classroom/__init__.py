"""The classroom: checks for the exercises of notebook 07.

>>> from emolab import classroom
>>> classroom.check_emotion_vector(lambda emotional, neutral: (emotional - neutral).mean(0))
emotion_vector: right. A mean of differences between answers to the same questions, one vector a layer.

A check takes the student's function, tries it on toy tensors in less than a second, and prints one line when it is
right. Otherwise it raises `Wrong`, which says what was expected and which common mistake the answer looks like, or
`Unfinished` where nothing is written yet; a notebook shows these words alone, without a stack trace.
"""

from __future__ import annotations

from emolab.base.lazy import offer

# Loaded on first use, as emolab itself.
_PUBLIC = {
    "Unfinished": "classroom.attempt",
    "Wrong": "classroom.attempt",
    "check_choose_layer": "classroom.experiment_checks",
    "check_cosine": "classroom.vector_checks",
    "check_emotion_vector": "classroom.vector_checks",
    "check_random_like": "classroom.vector_checks",
    "check_share": "classroom.experiment_checks",
    "check_shuffle_labels": "classroom.experiment_checks",
    "check_split": "classroom.vector_checks",
    "check_steered_cache": "classroom.experiment_checks",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
