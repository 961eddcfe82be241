"""A study of the toy model with the real judge: in a file of its own, where no fixture puts a lighter one there."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from emolab.base.labels import EMOTIONS
from emolab.experiments import selection
from emolab.judges import judges
from emolab.studies.pipeline import study
from emolab.studies.plan import Plan
from tests.mini import WEIGHTS, mini_lexicon, mini_queries


@pytest.mark.slow
def test_study_of_the_toy_model(tmp_path):
    methods = ("instruction", "emotion vector", "random")  # the others take minutes
    sizes, search = (24, 8, 8), selection.QUICK
    plan = Plan(sizes, n_evoking=0, max_new_tokens=40, search=search, wordings=False, n_claims=0, methods=methods)
    both = [judges.default_judge(EMOTIONS), mini_lexicon()]
    summary = study(WEIGHTS, out=tmp_path, queries=mini_queries(), judges=both, plan=plan)
    steering = pd.DataFrame(summary["steering"]).T
    assert np.mean(list(summary["instruction_following"].values())) >= 0.85, summary["instruction_following"]
    # The judge reads some plain answers of this model as emotional: random directions are held against unsteered text.
    excess = (steering["random_share"] - steering["unsteered_share"]).mean()
    assert steering["target_share"].mean() >= 0.7 and excess <= 0.15, steering.to_string()
    assert steering["perplexity_ratio"].notna().all() and "lexicon" in summary
