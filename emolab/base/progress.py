"""Progress bars: tqdm's, one at a time, which one switch turns off, and which move with every batch of texts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm.auto import tqdm

from emolab.base.calls import held

T = TypeVar("T")
_DELAY = 2.0  # seconds: what is done sooner shows no bar
_shown = os.environ.get("EMOLAB_PROGRESS", "1") != "0"
_open: ContextVar[bool] = ContextVar("open", default=False)  # a bar stands already: what runs inside shows none
_waiting: ContextVar[Callable[[int], Any] | None] = ContextVar("waiting", default=None)


def set_progress(shown: bool) -> None:
    """Show progress bars and the lines of a study from here on, or none at all.

    >>> emolab.set_progress(False)

    EMOLAB_PROGRESS=0 in the environment does the same from the start.
    """
    global _shown
    _shown = bool(shown)


def say(text: str) -> None:
    """Print a line about what goes on, unless `set_progress` turned that off."""
    if _shown:
        print(text, flush=True)


@contextlib.contextmanager
def no_progress() -> Iterator[None]:
    """Inside, no bar is shown."""
    with held(_open, True):
        yield


@contextlib.contextmanager
def progress_bar(desc: str, total: int, *, unit: str = "text", initial: int = 0) -> Iterator[tqdm]:
    """A bar, the only one while it stands: what runs inside shows none of its own."""
    hidden = _open.get() or not _shown
    with tqdm(total=total, initial=initial, desc=desc, unit=unit, disable=hidden, delay=_DELAY) as bar, no_progress():
        yield bar


def tracked(items: Iterable[T], desc: str, unit: str) -> Iterator[T]:
    """The items one by one, under a bar."""
    items = items if isinstance(items, Sized) else list(items)
    with progress_bar(desc, len(items), unit=unit) as bar:
        for item in items:
            yield item
            bar.update(1)


@contextlib.contextmanager
def written_bar(desc: str, total: int, initial: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar over `total` texts that moves with every batch which `generate` writes inside, in this process.

    It yields what to call with the number of texts that are there by now, some of which the bar may have counted.
    """
    counted = initial

    def add(n: int) -> None:
        nonlocal counted
        bar.update(n)
        counted += n

    with progress_bar(desc, total, initial=initial) as bar, held(_waiting, add):
        yield lambda n: add(n - counted)


@contextlib.contextmanager
def steps(bar: tqdm, n_texts: int, n_steps: int) -> Iterator[Callable[[int], None]]:
    """Inside, a batch of texts is written step by step; yields what to call with the number of steps that are done.

    The bar, and one that waits for texts (`written_bar`), move as if the texts came one by one: by all of them in the
    end, and by none where the batch fails.
    """
    updates = [update for update in (bar.update, _waiting.get()) if update is not None]
    counted = 0

    def reach(step: int) -> None:
        nonlocal counted
        texts = n_texts * min(step, n_steps) // n_steps
        for update in updates if texts != counted else ():
            update(texts - counted)
        counted = texts

    try:
        yield reach
    except BaseException:
        reach(0)
        raise
    reach(n_steps)
