"""Figures of the judges show what the tables hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from emolab.base.errors import EmolabError
from emolab.plot.judges import judge_agreement

AGREEMENT = pd.DataFrame(
    [("embedding", "lexicon", 0.91, 0.85, 0.96, 130), ("embedding", "nli", 0.42, 0.3, 0.55, 130),
     ("lexicon", "nli", np.nan, np.nan, np.nan, 130)],
    columns=["judge_a", "judge_b", "kappa", "lo", "hi", "n"],
)  # fmt: skip


def texts(fig, ax=0) -> list[str]:
    return [t.get_text() for t in fig.axes[ax].texts]


def test_agreement_prints_kappa_interval_and_n():
    fig = judge_agreement(AGREEMENT, model="mini", seed=0)
    assert texts(fig) == ["0.91\n[0.85, 0.96]", "0.42\n[0.30, 0.55]", "no kappa"]
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["embedding", "lexicon"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["lexicon", "nli"]
    matrix = np.ma.filled(ax.images[0].get_array().astype(float), np.nan)
    np.testing.assert_array_equal(matrix, [[0.91, np.nan], [0.42, np.nan]])
    assert ax.images[0].get_clim() == (0, 1) and ax.images[0].get_cmap().name == "cividis"
    assert fig.emolab_info["n"] == "130 texts" and fig.emolab_info["function"] == "judge_agreement"
    pd.testing.assert_frame_equal(fig.emolab_data, AGREEMENT)


def test_two_judges_are_one_cell():
    assert texts(judge_agreement(AGREEMENT.iloc[:1])) == ["0.91\n[0.85, 0.96]"]


@pytest.mark.parametrize("table", [pd.DataFrame({"x": [1]}), AGREEMENT.iloc[:0]])
def test_other_tables_are_refused(table):
    with pytest.raises(EmolabError, match="comes from calibration.agreement"):
        judge_agreement(table)
