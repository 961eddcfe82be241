"""What the stages of a study share: the time that each takes, and that one which cannot be measured costs no other.

>>> seconds = {}
>>> with stage("load", seconds):
...     queries = emolab.load_queries()
>>> seconds
{'load': ...}
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from emolab.base.errors import EmolabError, FileError, MismatchError, ResourceError
from emolab.base.progress import say

T = TypeVar("T")


@contextlib.contextmanager
def stage(name: str, timings: dict[str, float]) -> Iterator[None]:
    """Says, and notes, how many seconds the block took."""
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 2)
    say(f"{name}: {timings[name]:.1f} s")


def attempt(measure: Callable[[], T], lost: str, *, otherwise: Callable[[str], T]) -> T:
    """What `measure` gives. Where it cannot be measured a line says so, and the study goes on with `otherwise(reason)`.

    >>> attempt(lambda: 1 / 2, "halves not measured", otherwise=lambda reason: 0.0)
    0.5

    Files, another model's things and the machine are no such reasons: their errors end the study.
    """
    try:
        return measure()
    except (FileError, MismatchError, ResourceError):
        raise
    except EmolabError as error:  # few texts, few doses, a model without emotion: the rest stands without it
        say(f"{lost}: {error}")
        return otherwise(str(error))
