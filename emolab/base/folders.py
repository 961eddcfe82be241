"""One process at a time writes into a run's folder; what a killed one left half written there is cleared away.

>>> from emolab.base.folders import writing
>>> with writing("runs/smollm2"):                                                 # doctest: +SKIP
...     ...
"""

from __future__ import annotations

import functools
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from filelock import FileLock, Timeout

from emolab.base.errors import EmolabError, ResourceError
from emolab.base.storage import atomic, unwritable, user_path

P = ParamSpec("P")
R = TypeVar("R")
# `.lock` is locked by the kernel, which lets go of it when its process ends, however it ends; the owner is told beside.
LOCK, OWNER = ".lock", ".lock.owner"
WAIT = "EMOLAB_WAIT"
_LEFT = re.compile(r"\..+\.(\d+)\.tmp")  # what `storage.atomic` names a file that is not finished
_held: set[tuple[int, Path]] = set()  # with the process, since a forked one holds nothing


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
    place = None if folder is None else user_path(folder).resolve()
    if place is None or any((os.getpid(), held) in _held for held in (place, *place.parents)):
        yield
        return
    lock = FileLock(place / LOCK, thread_local=False)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=float(os.environ.get(WAIT) or 0))
    except Timeout:
        raise ResourceError(
            f"{folder} is being written by {_owner(place)}; wait until it has ended, or choose another out folder"
        ) from None
    except OSError as error:
        raise unwritable(Path(str(folder)), error) from error
    _held.add((os.getpid(), place))
    try:
        _clear(place)
        with atomic(place / OWNER) as temporary:
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            temporary.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(f"What was finished is saved in {folder}; the same call goes on from there.")
        raise
    finally:
        _held.discard((os.getpid(), place))
        with suppress(OSError):
            (place / OWNER).unlink(missing_ok=True)
        lock.release()


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """The function, holding the folder that it is given as `out` while it runs."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        out: Any = kwargs.get("out")
        with writing(out):
            return function(*args, **kwargs)

    return run


def _owner(place: Path) -> str:
    try:
        told = json.loads((place / OWNER).read_text(encoding="utf-8"))
        return f"process {told['pid']} on {told['host']} since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it holds the folder since this very moment
        return "another process"


def _clear(place: Path) -> None:
    """Remove unfinished files of processes that are gone; a run's folder is three levels deep."""
    for depth in ("", "*/", "*/*/"):
        for path in place.glob(f"{depth}.*.tmp"):
            left = _LEFT.fullmatch(path.name)
            if left and not _runs(int(left[1])):
                with suppress(OSError):
                    path.unlink()


def _runs(pid: int) -> bool:
    """Whether another process of that number runs here."""
    if pid == os.getpid():
        return False
    import psutil

    return psutil.pid_exists(pid)
