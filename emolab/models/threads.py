"""Threads: as many as this process may use cores, set once; and a word where other processes use these, too.

>>> from emolab.models.threads import sharing_cores
>>> with sharing_cores():                                                              # doctest: +SKIP
...     ...                                                                            # some seconds of work
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator

import torch

_CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # whoever sets one of these has chosen
_SPARE = 0.5  # cores: what an idle desktop takes
_AT_LEAST = 1.0  # seconds, over which what others use can be told
_done = False


def usable_cores() -> int:
    """Cores that this process may use: fewer than there are where it is pinned to some, or a container allows less."""
    import joblib

    return joblib.cpu_count()


@contextlib.contextmanager
def sharing_cores() -> Iterator[None]:
    """Once in a process: torch takes no more threads than cores, and a warning says if others use these meanwhile.

    Two processes with two threads each on two cores slow each other down three- to fivefold: every product of matrices
    waits for its last thread. Nothing is set where OMP_NUM_THREADS or MKL_NUM_THREADS says how many there shall be.
    """
    global _done
    if _done or any(os.environ.get(name) for name in _CHOSEN):
        yield
        return
    _done, cores = True, usable_cores()
    torch.set_num_threads(min(torch.get_num_threads(), cores))
    start, before = time.monotonic(), _busy_elsewhere()
    yield
    seconds, threads = time.monotonic() - start, torch.get_num_threads()
    elsewhere = (_busy_elsewhere() - before) / seconds if seconds >= _AT_LEAST else 0.0
    if threads > 1 and elsewhere + threads > cores + _SPARE:
        warnings.warn(
            f"other processes keep {elsewhere:.1f} of {cores} cores busy, and {threads} threads here would wait for "
            f"them at every step; start both with OMP_NUM_THREADS={max(1, cores // 2)}, or one after the other",
            stacklevel=4,  # of `load_model`'s caller
        )


def _busy_elsewhere() -> float:
    """Seconds of all cores that went into other processes so far."""
    import psutil

    whole, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return whole.user + whole.system - own.user - own.system
