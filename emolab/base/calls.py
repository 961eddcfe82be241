"""How functions are called: equal things once, and with a context variable that holds something for a while."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def once(items: Sequence[K], run: Callable[[list[K]], Sequence[T]]) -> list[T]:
    """What `run` gives for each item, in their order; it gets those that differ, each once.

    >>> once(["a", "b", "a"], lambda different: [text.upper() for text in different])
    ['A', 'B', 'A']
    """
    different = list(dict.fromkeys(items))
    values = dict(zip(different, run(different), strict=True))
    return [values[item] for item in items]


@contextmanager
def held(variable: ContextVar[T], value: Any) -> Iterator[None]:
    """Inside, the variable holds this value; then what it held before, in whatever context the block is left.

    >>> depth = ContextVar("depth", default=0)
    >>> with held(depth, 1):
    ...     depth.get()
    1
    """
    before = variable.get()
    variable.set(value)
    try:
        yield
    finally:
        variable.set(before)
