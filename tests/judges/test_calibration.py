"""Calibration finds what was planted and says what it gains on texts it has not seen; agreement is sklearn's kappa."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import cohen_kappa_score

from emolab.base.errors import EmolabError
from emolab.judges.calibration import agreement, calibrated
from emolab.judges.judges import FunctionJudge, LexiconJudge
from emolab.judges.scoring import score

LABELS = ("joy", "fear", "neutral")


def planted(n=2000, temperature=0.4):
    """Texts are numbers; the judge knows their true log odds, and is too shy or too sure of them by a temperature."""
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=(n, 3)) * 2
    truth, said = softmax(log_odds, axis=1), softmax(log_odds * temperature, axis=1)
    labels = [LABELS[rng.choice(3, p=row)] for row in truth]
    judge = FunctionJudge(lambda texts: said[[int(t) for t in texts]], LABELS, name="shy")
    return judge, [str(i) for i in range(n)], labels, truth


class Known(ClassifierMixin, BaseEstimator):
    """What a judge said, to scikit-learn: nothing is fitted."""

    def fit(self, said, labels):
        self.classes_ = np.arange(3)
        return self

    def predict(self, said):
        return said.argmax(1)

    def predict_proba(self, said):
        return said


@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_the_temperature_is_found_and_is_that_of_scikit_learn(temperature):
    judge, texts, labels, truth = planted(temperature=temperature)
    trusted = calibrated(judge, texts, labels)
    assert trusted.temperature == pytest.approx(temperature, rel=0.1)
    assert (trusted.labels, trusted.name) == (LABELS, "calibrated_shy")
    assert abs(trusted(texts) - truth).mean() < 0.02 < abs(judge(texts) - truth).mean()
    said, codes = judge(texts), [LABELS.index(label) for label in labels]
    theirs = CalibratedClassifierCV(Known(), method="temperature", ensemble=False).fit(said, codes)
    np.testing.assert_allclose(trusted(texts), theirs.predict_proba(said), atol=0.01)  # but for the floor
    before, after = trusted.report.set_index("stage").loc[["before", "after"]].to_dict("records")
    assert after["log_loss"] < before["log_loss"] - 0.03 and after["ece"] < 0.03 < 0.08 < before["ece"]
    assert before["n"] == after["n"] == 2000 and before["accuracy"] == after["accuracy"]


def test_the_report_is_of_texts_that_were_not_fitted():
    """Labels without relation to what the judge says: fitted texts look no worse than the judge, held-out ones do."""
    rng = np.random.default_rng(1)
    said = softmax(rng.normal(size=(24, 3)), axis=1)
    judge = FunctionJudge(lambda texts: said[[int(t) for t in texts]], LABELS)
    truth = rng.permutation(np.repeat([0, 1, 2], [12, 7, 5]))
    texts, labels = [str(i) for i in range(24)], [LABELS[i] for i in truth]
    trusted = calibrated(judge, texts, labels, name="mine")
    fitted = -np.log(trusted(texts)[range(24), truth]).mean()
    assert trusted.report.set_index("stage")["log_loss"]["after"] > fitted and trusted.name == "mine"
    pd.testing.assert_frame_equal(trusted.report, calibrated(judge, texts, labels).report)
    assert not trusted.report.equals(calibrated(judge, texts, labels, seed=1).report)


def test_calibration_error_by_hand():
    """Always sure by .8 and right in half of the texts: off by .3."""
    judge = FunctionJudge(lambda texts: [[0.8, 0.2] if t[0] == "a" else [0.2, 0.8] for t in texts], ("a", "b"))
    report = calibrated(judge, ["a", "b"] * 10, ["a", "a", "b", "b"] * 5).report.set_index("stage")
    assert report.loc["before", "ece"] == pytest.approx(0.3) and report.loc["before", "accuracy"] == 0.5
    assert report.loc["before", "log_loss"] == pytest.approx(-(np.log(0.8) + np.log(0.2)) / 2)
    assert report.loc["after", "ece"] < 0.15


def test_a_certain_judge_gives_finite_numbers_and_what_it_cannot_read_stays_unread():
    p = {"": [np.nan] * 3} | dict(zip(LABELS, np.eye(3), strict=True))
    judge = FunctionJudge(lambda texts: np.array([p[t] for t in texts]).reshape(-1, 3), LABELS)
    texts = list(LABELS) * 6
    trusted = calibrated(judge, texts, texts)
    assert np.isfinite([trusted.temperature, *trusted.report[["log_loss", "ece"]].to_numpy().ravel()]).all()
    assert (trusted(texts).argmax(1) == judge(texts).argmax(1)).all() and trusted([]).shape == (0, 3)
    assert np.isnan(trusted(["", "joy"])).all(axis=1).tolist() == [True, False]
    with pytest.raises(EmolabError, match="cannot read 1 texts, such as ''; leave them out"):
        calibrated(judge, [*texts, ""], [*texts, "joy"])


def test_a_judge_that_reads_queries_still_does():
    def same(texts, queries):
        return [[0.7, 0.3] if t == q else [0.3, 0.7] for t, q in zip(texts, queries, strict=True)]

    judge = FunctionJudge(same, ("same", "other"), with_queries=True)
    texts, queries = ["a"] * 12, ["a", "b"] * 6
    trusted = calibrated(judge, texts, ["same", "other"] * 6, queries=queries)
    assert trusted.with_queries
    np.testing.assert_array_equal(trusted(texts, queries)[:, 0] > 0.75, [True, False] * 6)
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


def judged(n=120) -> pd.DataFrame:
    """Three judges of n texts: the second errs in a third of them, the third guesses."""
    rng = np.random.default_rng(0)
    first = rng.choice(LABELS, n)
    second = np.where(rng.random(n) < 1 / 3, rng.choice(LABELS, n), first)
    return pd.DataFrame({"top": first, "other_top": second, "a_b_top": rng.choice(LABELS, n), "query_id": np.arange(n)})


def test_kappa_is_sklearns_for_every_pair_and_its_interval_holds_it():
    table = judged()
    table.attrs["judges"] = ["mine", "other", "a_b"]
    kappas = agreement(table, n=200)
    assert list(kappas.columns) == ["judge_a", "judge_b", "kappa", "lo", "hi", "n"]
    pairs = list(zip(kappas["judge_a"], kappas["judge_b"], strict=True))
    assert pairs == [("mine", "other"), ("mine", "a_b"), ("other", "a_b")]
    tops = {"mine": "top", "other": "other_top", "a_b": "a_b_top"}
    for row in kappas.itertuples():
        assert row.kappa == pytest.approx(cohen_kappa_score(table[tops[row.judge_a]], table[tops[row.judge_b]]))
        assert row.lo < row.kappa < row.hi and row.n == 120
    assert kappas["lo"][0] > 0.5 and kappas["lo"][1] < 0 < kappas["hi"][1]
    pd.testing.assert_frame_equal(kappas, agreement(table, n=200))
    assert agreement(judged(), n=9).loc[0, "judge_a"] == "first judge"  # a table that lost its judges' names


def test_rows_of_one_query_or_situation_are_drawn_together():
    many = pd.concat([judged(40)] * 9, ignore_index=True)
    alone, together = agreement(many.drop(columns="query_id"), n=100), agreement(many, n=100)
    width = (together["hi"] - together["lo"]) / (alone["hi"] - alone["lo"])
    assert (width > 2).all() and (together["kappa"] == alone["kappa"]).all()
    by_situation = agreement(many.assign(situation=[f"s{i % 5}" for i in many["query_id"]]), n=100)
    assert by_situation["lo"][0] != together["lo"][0]


def test_agreement_of_scored_texts_and_of_judges_that_say_one_thing():
    joy = LexiconJudge({"joy": {"glad", "happy"}})
    more = LexiconJudge({"joy": {"glad"}}, name="more")
    table = pd.DataFrame({"text": ["so glad", "happy", "a road", "glad , glad"]})
    kappas = agreement(score(table, judges=[joy, more]), n=50)
    assert kappas.loc[0, ["judge_a", "judge_b"]].tolist() == ["lexicon", "more"]
    # joy by the first in 3 of 4, by the second in 2 of 4, by both in 2: agreement 3/4, by chance 1/2
    assert kappas["kappa"][0] == pytest.approx(0.5)
    same = agreement(score(table.iloc[[0, 3]], judges=[joy, more]), n=50)
    assert same[["kappa", "lo", "hi"]].isna().all(axis=None)
    with pytest.raises(EmolabError, match="1 judges in 4 rows"):
        agreement(score(table, judges=joy))
