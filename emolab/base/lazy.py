"""Names that a module offers and others hold, which are imported when first asked for: to import it stays cheap."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def on_use(module: str, holders: Mapping[str, str], told: Iterable[str] = ()) -> Callable[[str], Any]:
    """A room's `__getattr__`. holders: {name: module below emolab}, itself where both are one; told: with the error.

    >>> on_use("emolab.base", {"shown": "base.errors"})("shown").__name__
    'shown'
    """

    def get(name: str) -> Any:
        if name not in holders:
            if not name.startswith("_") and importlib.util.find_spec(f"{module}.{name}"):
                return importlib.import_module(f"{module}.{name}")  # a file of this room
            known = f"; it has {', '.join(told)}" if told else ""
            raise AttributeError(f"module {module!r} has no attribute {name!r}{known}")
        found = importlib.import_module(f"emolab.{holders[name]}")
        return found if holders[name] == name else getattr(found, name)

    return get


def offer(module: str, holders: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__, __dir__, __all__` of a room that offers these names, {name: module below emolab}.

    >>> offer("emolab.base", {"shown": "base.errors"})[2]
    ['shown']
    """
    names = sorted(holders)
    return on_use(module, holders, names), lambda: names, names
