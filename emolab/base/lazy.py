"""Names that a module offers and others hold, which are imported when first asked for: to import it stays cheap."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Nothing looks for garbage meanwhile.

    What imports and models make by the hundred thousand stays: to go through it again and again took a quarter of the
    time of `load_model`.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def on_use(module: str, holders: Mapping[str, str], listed: Iterable[str] = ()) -> Callable[[str], Any]:
    """A room's `__getattr__`. holders: {name: module below emolab}, itself where both are one; listed: with the error.

    >>> on_use("emolab.base", {"shown": "base.errors"})("shown").__name__
    'shown'
    """

    def get(name: str) -> Any:
        if name not in holders:
            if not name.startswith("_") and importlib.util.find_spec(f"{module}.{name}"):
                return importlib.import_module(f"{module}.{name}")  # a file of this room
            has = f"; it has {', '.join(listed)}" if listed else ""
            raise AttributeError(f"module {module!r} has no attribute {name!r}{has}")
        with uncollected():
            holder = importlib.import_module(f"emolab.{holders[name]}")
        return holder if holders[name] == name else getattr(holder, name)

    return get


def offer(module: str, holders: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__, __dir__, __all__` of a room that offers these names, {name: module below emolab}.

    >>> offer("emolab.base", {"shown": "base.errors"})[2]
    ['shown']
    """
    names = sorted(holders)
    return on_use(module, holders, names), lambda: names, names
