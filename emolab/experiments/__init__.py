"""Steered answers by dose and setting, with their controls: sweeps, breaking alphas, dose-response, parts, choices."""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "Round": "experiments.selection",
    "Search": "experiments.selection",
    "WordingChoice": "experiments.wordings",
    "choose_wording": "experiments.wordings",
    "collapse": "experiments.dose_response",
    "compare": "experiments.dose_response",
    "confusion": "experiments.parts",
    "dose_table": "experiments.dose_response",
    "find_breaking": "experiments.breaking",
    "is_hit": "experiments.headline",
    "part_purity": "experiments.parts",
    "purity": "experiments.parts",
    "sweep": "experiments.sweeps",
    "templates_of": "experiments.wordings",
    "trend": "experiments.dose_response",
    "wrong_way": "experiments.dose_response",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
