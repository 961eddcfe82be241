"""A model as TransformerLens bridge and plain twin: loading, prompts, batches, sites and hooks."""

from __future__ import annotations

from emolab.base.lazy import on_use

_PUBLIC = {
    "Model": "models.model",
    "at_sites": "models.hooks",
    "encode": "models.prompts",
    "hf_modules": "models.sites",
    "load_model": "models.load",
    "output_weights": "models.sites",
    "render_prompts": "models.prompts",
    "site_hooks": "models.sites",
}
__all__ = sorted(_PUBLIC)
__getattr__ = on_use(__name__, _PUBLIC, __all__)


def __dir__() -> list[str]:
    return __all__
