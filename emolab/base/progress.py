"""Progress bars: tqdm's, which one switch turns off for a whole notebook, and which move with every batch of texts.

>>> import emolab
>>> emolab.set_progress(False)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm as _tqdm

_shown = os.environ.get("EMOLAB_PROGRESS", "1") != "0"
_waiting: ContextVar[Callable[[int], Any] | None] = ContextVar("waiting", default=None)


def set_progress(shown: bool) -> None:
    """Show progress bars from here on, or none at all, whatever single calls say.

    >>> set_progress(False)

    EMOLAB_PROGRESS=0 in the environment does the same from the start.
    """
    global _shown
    _shown = bool(shown)


def tqdm(*args: Any, disable: bool = False, **options: Any) -> Any:
    """tqdm's bar, off where the call or `set_progress` says so."""
    return _tqdm(*args, disable=disable or not _shown, **options)


class _Texts:
    """A bar of texts that are written in chunks, each of several batches."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def reach(self, n: int) -> None:
        """n texts are there by now, some of which the bar may have counted batch by batch."""
        self._bar.update(n - self._bar.n)


@contextlib.contextmanager
def written_bar(desc: str, total: int, initial: int, shown: bool) -> Iterator[_Texts]:
    """A bar over `total` texts that moves with every batch which `generate` writes inside, in this process."""
    with tqdm(total=total, initial=initial, desc=desc, unit="text", disable=not shown) as bar:
        before = _waiting.set(bar.update)
        try:
            yield _Texts(bar)
        finally:
            _waiting.reset(before)


def written(n: int) -> None:
    """Tell the bar that waits for them, if any, of n texts more."""
    update = _waiting.get()
    if update is not None:
        update(n)
