"""How far a judge's probabilities can be trusted: calibration on labelled texts, agreement with another judge.

>>> judge = calibrated(EmbeddingJudge(), texts, labels)
>>> judge.report                                        # log loss and calibration error before and after, held out
>>> agreement(emolab.score(table, judges=[judge, LexiconJudge(words)]))
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import cohen_kappa_score, log_loss
from sklearn.model_selection import StratifiedKFold

from emolab.base.errors import EmolabError, need_table, need_texts, shown
from emolab.base.stats import bootstrap_ci, clusters_of
from emolab.base.tables import about
from emolab.judges.judges import UNREAD, AroundJudge, ask, judges_of

AT_LEAST = 5  # texts of each label; also the number of folds
FLOOR = 1e-6  # probabilities below it count as it: a zero would be infinitely wrong
BINS = 10


@dataclass(frozen=True, eq=False)
class CalibratedJudge(AroundJudge):
    """A judge whose log-probabilities are divided by a temperature; made by `calibrated`.

    report: `stage` ("before", "after"), `log_loss, ece, accuracy, n` of the labelled texts, judged by folds that have
    not seen them.
    """

    judge: Any
    temperature: float
    name: str
    report: pd.DataFrame = field(repr=False)

    def __call__(self, texts: Sequence[str], queries: Sequence[str] | None = None) -> Float[np.ndarray, "text label"]:
        return _scaled(ask(self.judge, texts, queries), self.temperature)


def calibrated(
    judge: Any,
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    queries: Sequence[str] | None = None,
    name: str | None = None,
    seed: int = 0,
) -> CalibratedJudge:
    """The same judge with probabilities that fit labelled texts: as sure as it is right.

    >>> judge = calibrated(EmbeddingJudge(), responses["text"], responses["condition"])
    >>> judge.temperature, judge.report

    softmax(log p / temperature), the temperature of least log loss (Guo et al. 2017; as scikit-learn's
    `CalibratedClassifierCV(method="temperature")`): above 1 where the judge is too sure. A single number, so that some
    dozens of texts will do; the most probable label stays what it is. Take texts that are not reported on. The judge's
    report says what it gains on held-out texts (five folds): log loss, expected calibration error (10 bins of equal
    width), accuracy.

    Args:
        labels: one of the judge's labels for each text, at least five texts of each.
        queries: for a judge that reads them.
        name: default "calibrated_" and the judge's.

    Raises:
        EmolabError: unknown labels, too few texts, lists of different length, texts that the judge cannot read.
    """
    texts, labels, known = need_texts("texts", texts), list(labels), list(judges_of(judge)[0].labels)
    unknown = sorted({str(label) for label in labels} - set(known))
    if len(texts) != len(labels) or unknown:
        what = f"label {unknown[0]!r} is none of" if unknown else f"{len(texts)} texts and {len(labels)} labels for"
        raise EmolabError(f"{what} judge {judge.name!r}; expected one of {', '.join(known)} for each text")
    few = [f"{label} {labels.count(label)}" for label in known if labels.count(label) < AT_LEAST]
    if few:
        raise EmolabError(f"too few labelled texts ({', '.join(few)}); expected at least {AT_LEAST} of every label")
    before = _scaled(ask(judge, texts, queries), 1.0)
    unread = np.isnan(before).any(1)
    if unread.any():
        first = shown(texts[int(unread.argmax())])
        raise EmolabError(f"judge {judge.name!r} cannot read {unread.sum()} texts, such as {first}; leave them out")
    truth = np.array([known.index(label) for label in labels])
    after = np.zeros_like(before)
    for train, test in StratifiedKFold(AT_LEAST, shuffle=True, random_state=seed).split(before, truth):
        after[test] = _scaled(before[test], _temperature(before[train], truth[train]))
    rows = [(stage, *_quality(p, truth), len(truth)) for stage, p in (("before", before), ("after", after))]
    report = pd.DataFrame(rows, columns=["stage", "log_loss", "ece", "accuracy", "n"])
    return CalibratedJudge(judge, _temperature(before, truth), name or f"calibrated_{judge.name}", report)


def _scaled(p: Float[np.ndarray, "text label"], temperature: float) -> Float[np.ndarray, "text label"]:
    return softmax(np.log(np.clip(p, FLOOR, None)) / temperature, axis=1)


def _temperature(p: Float[np.ndarray, "text label"], truth: Int[np.ndarray, " text"]) -> float:
    """The temperature of least log loss, from exp(-10) to exp(10): a judge that is never wrong gets a finite one."""

    def loss(log_temperature: float) -> float:
        return log_loss(truth, _scaled(p, np.exp(log_temperature)), labels=range(p.shape[1]))

    best: Any = minimize_scalar(loss, bounds=(-10, 10))
    return float(np.exp(best.x))


def _quality(p: Float[np.ndarray, "text label"], truth: Int[np.ndarray, " text"]) -> tuple[float, float, float]:
    """Log loss, expected calibration error and accuracy."""
    correct, confidence = p.argmax(1) == truth, p.max(1)
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(number, correct - confidence)  # of each bin, summed over its texts
    return log_loss(truth, p, labels=range(p.shape[1])), np.abs(gaps).sum() / len(truth), correct.mean()


def agreement(scored: pd.DataFrame, *, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Cohen's kappa between the top labels of every two judges of a scored table: 1 the same, 0 as by chance.

    >>> agreement(emolab.score(table, judges=[EmbeddingJudge(), lexicon]))
         judge_a  judge_b  kappa     lo     hi     n
    0  embedding  lexicon  ...

    Intervals (95 %) over queries, with their situation where the table has it: these are drawn whole (`bootstrap_ci`,
    n draws), else over texts. Texts that one of the judges cannot read are left out. Kappa depends on how varied the
    texts are: compare it on the same table only. NaN where both judges say one and the same label throughout. Raises
    EmolabError for a table scored by fewer than two judges.
    """
    need_table(scored, (), "emolab.score")
    columns = ["top"] * ("top" in scored) + [c for c in scored.columns if c.endswith("_top")]
    scored = scored[(scored[columns] != UNREAD).all(axis=1)]
    if len(columns) < 2 or not len(scored):
        raise EmolabError(f"{len(columns)} judges in {len(scored)} rows; agreement needs a table that two have scored")
    first = scored.attrs.get("judges") or ["first judge"]
    names = [first[0] if c == "top" else c.removesuffix("_top") for c in columns]
    labels = sorted({label for c in columns for label in scored[c]})
    codes = np.stack([pd.Categorical(scored[c], labels).codes for c in columns], axis=1)
    pairs = list(combinations(range(len(columns)), 2))
    clusters = scored["query_id"].map(clusters_of(scored)) if "query_id" in scored else None
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of one label alone, which is a NaN
        kappa, low, high = bootstrap_ci(
            codes,
            lambda rows: [cohen_kappa_score(*rows[:, pair].T) for pair in pairs],
            clusters=clusters,
            n=n,
            seed=seed,
        )
    table = pd.DataFrame([(names[a], names[b]) for a, b in pairs], columns=["judge_a", "judge_b"])
    table.attrs["about"] = {**about(scored), "n": f"{len(scored)} texts"}
    return table.assign(kappa=kappa, lo=low, hi=high, n=len(scored))
