"""What scores texts without knowing the vector: judges, their calibration, fluency, adherence, named emotions."""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "affect_measures": "judges.affect",
    "affect_validity": "judges.affect",
    "BlindJudge": "judges.judges",
    "ClassifierJudge": "judges.model_judges",
    "EmbeddingJudge": "judges.judges",
    "FunctionJudge": "judges.judges",
    "LexiconJudge": "judges.judges",
    "NLIJudge": "judges.model_judges",
    "SelfReportJudge": "judges.model_judges",
    "agreement": "judges.calibration",
    "calibrated": "judges.calibration",
    "default_judge": "judges.judges",
    "perplexity": "judges.scoring",
    "score": "judges.scoring",
    "target_share": "judges.scoring",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
