"""One process at a time writes into a run's folder; what a killed one left half written there is cleared away."""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from filelock import AcquireReturnProxy, FileLock, SoftFileLock, Timeout

from emolab.base.errors import EmolabError, ResourceError
from emolab.base.storage import unwritable, user_path

P = ParamSpec("P")
R = TypeVar("R")
LOCK = ".lock"  # locked by the kernel, which lets go of it when its process ends, however it ends
WAIT = "EMOLAB_WAIT"
_UNFINISHED = re.compile(r"\..+\.(\d+)\.tmp")  # as `storage.atomic` names a file, with the number of its process
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # as some network folders answer
_HELD = ".held"
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
        lock = locked(path / LOCK, _patience())
    except Timeout as error:
        file = error.lock_file
        stale = f" (if none writes, one was killed: remove {file})" if file.endswith(_HELD) else ""
        raise ResourceError(
            f"{folder} is being written by another process{stale}; wait until it has ended, or choose another out "
            "folder"
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


def locked(file: Path, seconds: float = -1) -> AcquireReturnProxy:
    """A lock that is held until the `with` block ends; -1 waits for as long as another process holds it.

    Some network folders know no locks: there a second file, as long as it exists, is the lock. Raises Timeout (of
    filelock) where another process holds it for so many seconds, and OSError where nothing can be written.

    >>> with locked(Path("runs/smollm2/.lock"), seconds=0): ...                   # doctest: +SKIP
    """
    try:
        return FileLock(file, timeout=seconds, thread_local=False).acquire()
    except NotImplementedError:  # of older versions of filelock
        pass
    except OSError as error:  # Timeout, too
        if error.errno not in _NO_LOCKS:
            raise
    return SoftFileLock(file.with_name(f"{file.name}{_HELD}"), timeout=seconds, thread_local=False).acquire()


def _patience() -> float:
    """Seconds to wait for a folder that another process holds."""
    wanted = os.environ.get(WAIT) or "0"
    try:
        return float(wanted)
    except ValueError:
        raise EmolabError(f"the variable {WAIT} is {wanted!r}; expected a number of seconds") from None


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
