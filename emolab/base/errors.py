"""The errors that emolab raises for bad input, and the checks that many places share.

All are `EmolabError`. Three kinds have a name of their own, because a program can do something about them:

    FileError       a file is missing, damaged or not what was expected: make it again
    MismatchError   each part is sound, but they belong to different models or runs: take the others, or allow it
    ResourceError   no memory, no room on the disk, no permission, a folder in use: make room and run the same again

>>> try:
...     vectors = emolab.EmotionVectors.load("ev.safetensors")
... except emolab.base.errors.FileError:
...     vectors = emolab.extract_vectors(model, responses)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class EmolabError(ValueError):
    """Bad input or a broken promise: the message says what was wrong, what was expected and what to do."""


class FileError(EmolabError):
    """A file or folder is missing, damaged or something else than expected."""


class MismatchError(EmolabError):
    """Two things that are sound by themselves do not belong together: of other models, responses or settings."""


class NumberError(EmolabError):
    """A number that was computed is infinite, or none."""


class ResourceError(EmolabError):
    """The machine has too little memory or disk, or keeps a folder shut: what was asked for may be sound."""


def shown(value: Any) -> str:
    """A value as messages show it: on one line, and not all of a long one.

    >>> shown("a" * 100)[-5:], shown([1, 2])
    ('aa...', '[1, 2]')
    """
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value  # not np.float64(7.0)
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its kind where it says nothing.

    >>> first_line(ValueError("no such file\\nCall somebody.")), first_line(MemoryError())
    ('no such file', 'MemoryError')
    """
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_text(value: Any, *, filled: bool = False) -> bool:
    """Whether a value is a str that tokenizers and files take (no lone surrogate); filled: with more than white space.

    >>> is_text("joy"), is_text("\\ud800"), is_text(" ", filled=True)
    (True, False, False)
    """
    if not isinstance(value, str) or (filled and not value.strip()):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def need_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> None:
    """Raise EmolabError unless `value` is a finite number (True and False are none) within these bounds.

    >>> need_number("max_new_tokens", 0, 1, whole=True)
    Traceback (most recent call last):
    ...
    emolab.base.errors.EmolabError: max_new_tokens is 0; expected a whole number of at least 1
    """
    sound = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    between = sound and low <= value <= high  # pyright: ignore[reportOperatorIssue] (a Real has an order)
    if between and (isinstance(value, Integral) or math.isfinite(value)):
        return
    bounds = f" from {low:g} to {high:g}" if math.isfinite(high) else f" of at least {low:g}" if low > -math.inf else ""
    raise EmolabError(f"{name} is {shown(value)}; expected a {'whole' if whole else 'finite'} number{bounds}")


def need_numbers(name: str, values: Any) -> list[float]:
    """The values as a list of finite numbers; EmolabError for anything else, or none.

    >>> need_numbers("alphas", (0, 2))
    [0.0, 2.0]
    """
    if isinstance(values, str) or not hasattr(values, "__len__") or not len(values):
        raise EmolabError(f"{name} are {shown(values)}; expected a list of at least one number")
    for value in values:
        need_number(f"one of {name}", value)
    return [float(value) for value in values]


def need_model(model: Any) -> None:
    """Raise EmolabError unless `model` came from `load_model`; a name alone is the usual mistake."""
    if not hasattr(model, "bridge") or not hasattr(model, "fingerprint"):
        raise EmolabError(f"the model is {type(model).__name__} {shown(model)}; expected one from emolab.load_model")


def need_vectors(vectors: Any) -> None:
    """Raise EmolabError unless these are EmotionVectors; a path alone is the usual mistake."""
    if not hasattr(vectors, "resid_norm") or not hasattr(vectors, "emotions"):
        raise EmolabError(
            f"vectors are {type(vectors).__name__} {shown(vectors)}; expected EmotionVectors (EmotionVectors.load)"
        )


def need_texts(name: str, values: Any, *, filled: bool = False) -> list[str]:
    """The values as a list; EmolabError unless all are str, and where `filled`, more than white space.

    >>> need_texts("prompts", ["Tell me.", 3])
    Traceback (most recent call last):
    ...
    emolab.base.errors.EmolabError: prompts hold 3 at place 1; expected texts
    """
    if isinstance(values, str) or not hasattr(values, "__iter__") or hasattr(values, "columns"):
        raise EmolabError(f"{name} are {shown(values)}; expected a list of texts")
    texts = list(values)
    for i, text in enumerate(texts):
        if not is_text(text, filled=filled):
            raise EmolabError(f"{name} hold {shown(text)} at place {i}; expected texts{' with words' * filled}")
    return texts


def need_table(table: Any, columns: Iterable[str], source: str) -> None:
    """Raise EmolabError unless `table` is a DataFrame with these columns and a row; source: what makes such tables.

    >>> need_table([1, 2], ["text"], "emolab.sweep")
    Traceback (most recent call last):
    ...
    emolab.base.errors.EmolabError: the table is list [1, 2]; it comes from emolab.sweep
    """
    if not hasattr(table, "columns") or not hasattr(table, "iloc"):
        raise EmolabError(f"the table is {type(table).__name__} {shown(table)}; it comes from {source}")
    missing = [column for column in columns if column not in table]
    if missing:
        raise EmolabError(f"the table lacks {', '.join(missing)}; it comes from {source}")
    if not len(table):
        raise EmolabError(f"the table is empty; it comes from {source}")
