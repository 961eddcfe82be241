"""Calibration finds what was planted and says what it gains on texts it has not seen; agreement is sklearn's kappa."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import cohen_kappa_score

from emolab.base.errors import EmolabError
from emolab.judges.calibration import agreement, calibrated
from emolab.judges.judges import FunctionJudge, LexiconJudge
from emolab.judges.scoring import score

LABELS = ("joy", "fear", "neutral")
SCALE, BIAS = 2.5, np.array([1.0, -0.5, -0.5])


def planted(n=3000, seed=0):
    """Texts are numbers; the judge knows their true log odds but is too shy by SCALE and slanted by BIAS."""
    rng = np.random.default_rng(seed)
    truth = log_softmax(rng.normal(size=(n, 3)) * 2, axis=1)
    said = log_softmax((truth - BIAS) / SCALE, axis=1)
    labels = [LABELS[rng.choice(3, p=row)] for row in np.exp(truth)]
    judge = FunctionJudge(lambda texts: np.exp(said[[int(t) for t in texts]]), LABELS, name="shy")
    return judge, [str(i) for i in range(n)], labels, np.exp(truth)


def test_scale_and_bias_are_found_and_probabilities_become_the_true_ones():
    judge, texts, labels, truth = planted()
    found = calibrated(judge, texts, labels)
    assert found.scale == pytest.approx(SCALE, rel=0.1) and found.labels == LABELS and found.name == "calibrated_shy"
    np.testing.assert_allclose(found.bias, BIAS - BIAS.mean(), atol=0.15)
    assert abs(found(texts) - truth).mean() < 0.02 < abs(judge(texts) - truth).mean()
    np.testing.assert_allclose(found(texts[:7]).sum(1), 1)
    before, after = found.report.set_index("stage").loc[["before", "after"]].to_dict("records")
    assert after["log_loss"] < before["log_loss"] - 0.05 and after["ece"] < 0.03 < 0.1 < before["ece"]
    assert before["n"] == after["n"] == 3000 and calibrated(judge, texts, labels, name="mine").name == "mine"


def test_the_report_is_of_texts_that_were_not_fitted():
    """Labels without relation to what the judge says: fitted texts would look better than chance, held-out ones not."""
    rng = np.random.default_rng(1)
    said = softmax(rng.normal(size=(24, 3)), axis=1)
    judge = FunctionJudge(lambda texts: said[[int(t) for t in texts]], LABELS)
    texts, truth = [str(i) for i in range(24)], rng.permutation(np.repeat([0, 1, 2], [12, 7, 5]))
    labels = [LABELS[i] for i in truth]
    found = calibrated(judge, texts, labels)
    fitted = -np.log(found(texts)[range(24), truth]).mean()
    assert found.report.set_index("stage")["log_loss"]["after"] > fitted + 0.02
    assert list(found.heldout["stage"].value_counts()) == [24, 24]
    own = found.heldout[found.heldout["stage"] == "before"]
    assert list(own["correct"]) == list(said.argmax(1) == truth) and list(own["label"]) == labels
    np.testing.assert_allclose(own["confidence"], said.max(1))
    pd.testing.assert_frame_equal(found.heldout, calibrated(judge, texts, labels).heldout)
    assert not found.heldout.equals(calibrated(judge, texts, labels, seed=1).heldout)


def test_calibration_error_by_hand():
    """Always sure by .8 and right in half of the texts: off by .3."""
    judge = FunctionJudge(lambda texts: [[0.8, 0.2] if t[0] == "a" else [0.2, 0.8] for t in texts], ("a", "b"))
    texts = ["a", "b"] * 10
    labels = ["a", "a", "b", "b"] * 5
    report = calibrated(judge, texts, labels).report.set_index("stage")
    assert report.loc["before", "ece"] == pytest.approx(0.3) and report.loc["before", "accuracy"] == 0.5
    assert report.loc["before", "log_loss"] == pytest.approx(-(np.log(0.8) + np.log(0.2)) / 2)
    assert report.loc["after", "ece"] < 0.15


def test_a_perfect_or_a_certain_judge_gives_finite_numbers():
    judge = FunctionJudge(lambda texts: np.eye(3)[[LABELS.index(t) for t in texts]], LABELS)
    texts = list(LABELS) * 6
    found = calibrated(judge, texts, texts)
    assert np.isfinite(found.scale) and np.isfinite(found.report[["log_loss", "ece"]]).all(axis=None)
    assert (found(texts).argmax(1) == judge(texts).argmax(1)).all() and found([]).shape == (0, 3)


def test_a_judge_that_reads_queries_still_does():
    def same(texts, queries):
        return [[0.7, 0.3] if t == q else [0.3, 0.7] for t, q in zip(texts, queries, strict=True)]

    judge = FunctionJudge(same, ("same", "other"), with_queries=True)
    texts, queries = ["a"] * 12, ["a", "b"] * 6
    found = calibrated(judge, texts, ["same", "other"] * 6, queries=queries)
    assert found.with_queries
    np.testing.assert_array_equal(found(texts, queries)[:, 0] > 0.75, [True, False] * 6)
    with pytest.raises(EmolabError, match="with its query"):
        calibrated(judge, texts, ["same", "other"] * 6)


def test_calibration_refuses_what_it_cannot_use():
    judge, texts, labels, _ = planted(60)
    with pytest.raises(EmolabError, match="label 'disgust' is none of judge 'shy'; expected one of joy, fear, neutral"):
        calibrated(judge, texts, [*labels[:-1], "disgust"])
    with pytest.raises(EmolabError, match="60 texts and 59 labels"):
        calibrated(judge, texts, labels[:-1])
    with pytest.raises(EmolabError, match=r"too few labelled texts \(fear 0, neutral 4\)"):
        calibrated(judge, texts[:24], ["joy"] * 20 + ["neutral"] * 4)


# Agreement


def judged(n=120, seed=0) -> pd.DataFrame:
    """Three judges of n texts: the second errs in a third of them, the third guesses."""
    rng = np.random.default_rng(seed)
    first = rng.choice(LABELS, n)
    second = np.where(rng.random(n) < 1 / 3, rng.choice(LABELS, n), first)
    return pd.DataFrame({"top": first, "other_top": second, "a_b_top": rng.choice(LABELS, n), "query_id": np.arange(n)})


def test_kappa_is_sklearns_for_every_pair_and_its_interval_holds_it():
    table = judged()
    table.attrs["judges"] = ["mine", "other", "a_b"]
    found = agreement(table)
    assert list(found.columns) == ["judge_a", "judge_b", "kappa", "lo", "hi", "n"]
    assert list(zip(found["judge_a"], found["judge_b"], strict=True)) == [
        ("mine", "other"), ("mine", "a_b"), ("other", "a_b"),
    ]  # fmt: skip
    names = {"mine": "top", "other": "other_top", "a_b": "a_b_top"}
    for row in found.itertuples():
        assert row.kappa == pytest.approx(cohen_kappa_score(table[names[row.judge_a]], table[names[row.judge_b]]))
        assert row.lo < row.kappa < row.hi and row.n == 120
    assert found["lo"][0] > 0.5 and found["lo"][1] < 0 < found["hi"][1]
    pd.testing.assert_frame_equal(found, agreement(table))
    assert agreement(judged()).loc[0, "judge_a"] == "first judge"  # a table that no longer knows its judges' names


def test_rows_of_one_query_or_situation_are_drawn_together():
    table = judged(40)
    many = pd.concat([table] * 9, ignore_index=True)
    alone, together = agreement(many.drop(columns="query_id")), agreement(many)
    width = (together["hi"] - together["lo"]) / (alone["hi"] - alone["lo"])
    assert (width > 2).all() and (together["kappa"] == alone["kappa"]).all()
    few = agreement(many.assign(situation=[f"s{i % 5}" for i in many["query_id"]]))
    assert few["lo"][0] != together["lo"][0]


def test_agreement_of_scored_texts_and_of_judges_that_say_one_thing():
    joy = LexiconJudge({"joy": {"glad", "happy"}})
    more = LexiconJudge({"joy": {"glad"}}, name="more")
    table = pd.DataFrame({"text": ["so glad", "happy", "a road", "glad , glad"]})
    found = agreement(score(table, judges=[joy, more]))
    assert found.loc[0, ["judge_a", "judge_b"]].tolist() == ["lexicon", "more"]
    # joy by the first in 3 of 4, by the second in 2 of 4, by both in 2: agreement 3/4, by chance 1/2
    assert found["kappa"][0] == pytest.approx(0.5)
    same = agreement(score(table.iloc[[0, 3]], judges=[joy, more]))
    assert same[["kappa", "lo", "hi"]].isna().all(axis=None)
    with pytest.raises(EmolabError, match="1 judges in 4 rows"):
        agreement(score(table, judges=joy))
