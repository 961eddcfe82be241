"""Steered answers by dose and setting, with their controls: sweeps, breaking alphas, dose-response, parts, choices."""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "affect_shifts": "experiments.affect",
    "circle": "experiments.affect",
    "write_stories": "experiments.stories",
    "Round": "experiments.selection",
    "Search": "experiments.selection",
    "WordingChoice": "experiments.wordings",
    "choice_shifts": "experiments.options",
    "choices": "experiments.options",
    "choose_wording": "experiments.wordings",
    "collapse": "experiments.dose_response",
    "compare": "experiments.dose_response",
    "dose_summary": "experiments.shares",
    "dose_table": "experiments.dose_response",
    "equal_effect": "experiments.sources",
    "find_breaking": "experiments.breaking",
    "instruction_shares": "experiments.shares",
    "is_hit": "experiments.headline",
    "last_projections": "experiments.amounts",
    "layer_shares": "experiments.shares",
    "load_choices": "experiments.options",
    "mixture_shares": "experiments.shares",
    "model_doses": "experiments.across",
    "number_questions": "experiments.amounts",
    "number_trends": "experiments.amounts",
    "pair_questions": "experiments.pairs",
    "part_purity": "experiments.parts",
    "preferences": "experiments.pairs",
    "purity": "experiments.parts",
    "rank_curve": "experiments.scenarios",
    "scenario_ranks": "experiments.scenarios",
    "setting_differences": "experiments.shares",
    "sweep": "experiments.sweeps",
    "templates_of": "experiments.wordings",
    "token_scores": "experiments.passages",
    "top_passages": "experiments.passages",
    "trend": "experiments.dose_response",
    "turning_curve": "experiments.passages",
    "turning_texts": "experiments.passages",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
