"""What is done to a model while it writes: steering, edits at sites and heads, settings, GGUF control vectors."""

from __future__ import annotations

from emolab.base.lazy import on_use

_PUBLIC = {
    "Steering": "steering.steering",
    "ablated": "steering.head_edits",
    "from_gguf": "steering.gguf",
    "steered": "steering.steering",
    "to_gguf": "steering.gguf",
}
__all__ = sorted(_PUBLIC)
__getattr__ = on_use(__name__, _PUBLIC, __all__)


def __dir__() -> list[str]:
    return __all__
