"""What is done to a model while it writes: steering, edits at sites and heads, settings, GGUF control vectors."""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "Setting": "steering.settings",
    "Steering": "steering.steering",
    "When": "steering.conditions",
    "ablated": "steering.head_edits",
    "at": "steering.steering",
    "each_head": "steering.settings",
    "each_layer": "steering.settings",
    "each_third": "steering.settings",
    "from_gguf": "steering.gguf",
    "steered": "steering.steering",
    "to_gguf": "steering.gguf",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
