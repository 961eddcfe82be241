"""A model as TransformerLens bridge and plain twin: loading, prompts, batches, sites and hooks."""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "Model": "models.model",
    "at_sites": "models.hooks",
    "encode": "models.prompts",
    "hf_modules": "models.sites",
    "load_model": "models.load",
    "output_weights": "models.sites",
    "render_conversation": "models.prompts",
    "render_prompts": "models.prompts",
    "site_hooks": "models.sites",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
