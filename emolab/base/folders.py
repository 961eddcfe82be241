"""One process at a time writes into a run's folder; what a killed one left half written there is cleared away.

>>> from emolab.base.folders import writing
>>> with writing("runs/smollm2"):                                                 # doctest: +SKIP
...     ...
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from filelock import FileLock, Timeout

from emolab.base.errors import EmolabError, ResourceError
from emolab.base.storage import unwritable, user_path

P = ParamSpec("P")
R = TypeVar("R")
LOCK = ".lock"  # locked by the kernel, which lets go of it when its process ends, however it ends
WAIT = "EMOLAB_WAIT"
_UNFINISHED = re.compile(r"\..+\.(\d+)\.tmp")  # as `storage.atomic` names a file, with the number of its process
_held: set[Path] = set()


@contextmanager
def writing(folder: str | Path | None) -> Iterator[None]:
    """Hold a run's folder, made if it does not exist, for this process. None holds nothing.

    Calls nest: inside, this process may hold the folder again, and folders in it. Raises EmolabError at once where
    another process holds it (after EMOLAB_WAIT seconds, where that is set: notebooks that run side by side do what
    they share once), and where nothing can be written there.

    >>> with writing("runs/smollm2"): ...                                         # doctest: +SKIP
    """
    if not isinstance(folder, str | Path | None):
        raise EmolabError(f"out is {folder!r}; expected the path of a folder")
    path = None if folder is None else user_path(folder).resolve()
    if path is None or not _held.isdisjoint((path, *path.parents)):
        yield
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK, timeout=float(os.environ.get(WAIT) or 0), thread_local=False).acquire()
    except Timeout:
        raise ResourceError(
            f"{folder} is being written by another process; wait until it has ended, or choose another out folder"
        ) from None
    except OSError as error:
        raise unwritable(path, error) from error
    with lock:
        _held.add(path)
        try:
            _clear(path)
            yield
        except KeyboardInterrupt as stop:
            stop.add_note(f"What was finished is saved in {folder}; the same call goes on from there.")
            raise
        finally:
            _held.discard(path)


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """The function, holding the folder that it is given as `out` while it runs."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        out: Any = kwargs.get("out")
        with writing(out):
            return function(*args, **kwargs)

    return run


def _clear(folder: Path) -> None:
    """Remove unfinished files of processes that are gone: others may just now save a file of their own here."""
    import psutil

    for path in folder.rglob(".*.tmp"):
        process = _UNFINISHED.fullmatch(path.name)
        if process and (int(process[1]) == os.getpid() or not psutil.pid_exists(int(process[1]))):
            with suppress(OSError):
                path.unlink()
