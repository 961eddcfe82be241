"""How far a judge's probabilities can be trusted: calibration on labelled texts, agreement with another judge.

>>> judge = calibrated(EmbeddingJudge(), texts, labels)
>>> judge.report                                        # log loss and calibration error before and after, held out
>>> agreement(emolab.score(table, judges=[judge, LexiconJudge(words)]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from emolab.base.errors import EmolabError, need_table, need_texts, shown
from emolab.base.stats import bootstrap_ci, clusters_of
from emolab.judges.judges import UNREAD, AroundJudge, ask, judges_of

AT_LEAST = 5  # texts of each label; also the number of folds
FLOOR = 1e-6  # probabilities below it count as it: a zero would be infinitely wrong
BINS = 10


@dataclass(frozen=True, eq=False)
class CalibratedJudge(AroundJudge):
    """A judge whose log-probabilities are scaled and shifted label by label; made by `calibrated`.

    heldout: one row a labelled text and stage ("before", "after"), judged by folds that have not seen it: `stage,
    label, top, confidence, correct`. report: `stage, log_loss, ece, accuracy, n` of these.
    """

    judge: Any
    scale: float
    bias: Float[np.ndarray, " label"]
    name: str
    heldout: pd.DataFrame = field(repr=False)
    report: pd.DataFrame = field(repr=False)

    def __call__(self, texts: Sequence[str], queries: Sequence[str] | None = None) -> Float[np.ndarray, "text label"]:
        return _apply(_log(ask(self.judge, texts, queries)), self.scale, self.bias)


def calibrated(
    judge: Any,
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    queries: Sequence[str] | None = None,
    name: str | None = None,
    seed: int = 0,
) -> CalibratedJudge:
    """The same judge with probabilities that fit labelled texts: one temperature, and one bias a label.

    >>> judge = calibrated(EmbeddingJudge(), responses["text"], responses["condition"])
    >>> judge.report

    softmax(scale * log p + bias), fitted by log loss ("bias-corrected temperature scaling", Guo et al. 2017, Alexandari
    et al. 2020), so few numbers that some dozens of texts will do. The probabilities then hold for texts like these, in
    which labels are as frequent as here. Take texts that are not reported on. The judge's report says what it gains on
    held-out texts (five folds): log loss, expected calibration error (10 bins of equal width), accuracy.

    Args:
        labels: one of the judge's labels for each text, at least five texts of each.
        queries: for a judge that reads them.
        name: default "calibrated_" and the judge's.

    Raises:
        EmolabError: unknown labels, too few texts, lists of different length.
    """
    texts, labels, known = need_texts("texts", texts), list(labels), list(judges_of(judge)[0].labels)
    unknown = sorted({str(label) for label in labels} - set(known))
    counts = {label: labels.count(label) for label in known}
    if len(texts) != len(labels) or unknown:
        what = f"label {unknown[0]!r} is none of" if unknown else f"{len(texts)} texts and {len(labels)} labels for"
        raise EmolabError(f"{what} judge {judge.name!r}; expected one of {', '.join(known)} for each text")
    few = [f"{label} {n}" for label, n in counts.items() if n < AT_LEAST]
    if few:
        raise EmolabError(f"too few labelled texts ({', '.join(few)}); expected at least {AT_LEAST} of every label")
    logp = _log(ask(judge, texts, queries))
    unread = np.isnan(logp).any(1)
    if unread.any():
        first = shown(texts[int(unread.argmax())])
        raise EmolabError(f"judge {judge.name!r} cannot read {unread.sum()} texts, such as {first}; leave them out")
    truth = np.array([known.index(label) for label in labels])
    after = np.zeros_like(logp)
    for train, test in StratifiedKFold(AT_LEAST, shuffle=True, random_state=seed).split(logp, truth):
        after[test] = _apply(logp[test], *_fit(logp[train], truth[train]))
    stages = {"before": np.exp(logp), "after": after}
    heldout = pd.concat([_judged(stage, p, truth, known) for stage, p in stages.items()], ignore_index=True)
    rows = [(stage, *_quality(p, truth), len(truth)) for stage, p in stages.items()]
    report = pd.DataFrame(rows, columns=["stage", "log_loss", "ece", "accuracy", "n"])
    return CalibratedJudge(judge, *_fit(logp, truth), name or f"calibrated_{judge.name}", heldout, report)


def _log(p: Float[np.ndarray, "text label"]) -> Float[np.ndarray, "text label"]:
    return log_softmax(np.log(np.clip(p, FLOOR, None)), axis=1)


def _apply(logp: np.ndarray, scale: float, bias: np.ndarray) -> Float[np.ndarray, "text label"]:
    return softmax(scale * logp + bias, axis=1)


def _fit(logp: np.ndarray, truth: Int[np.ndarray, " text"]) -> tuple[float, Float[np.ndarray, " label"]]:
    """scale >= 0 and biases (they sum to 0) of least log loss: a convex problem, with its gradient.

    A normal prior of width 1 around "no change" weighs as much as one text: the scale stays finite where a judge tells
    all texts apart.
    """
    own, ridge = np.eye(logp.shape[1])[truth], 1 / len(truth)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias = x[0], x[1:]
        found = log_softmax(scale * logp + bias, axis=1)
        off = (np.exp(found) - own) / len(own)
        value = -(found * own).sum() / len(own) + ridge * ((scale - 1) ** 2 + (bias**2).sum()) / 2
        return value, np.concatenate([[(off * logp).sum() + ridge * (scale - 1)], off.sum(0) + ridge * bias])

    start = np.concatenate([[1.0], np.zeros(logp.shape[1])])
    bounds = [(0, None)] + [(None, None)] * logp.shape[1]
    x = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(x[0]), x[1:] - x[1:].mean()


def _judged(stage: str, p: np.ndarray, truth: np.ndarray, labels: list[str]) -> pd.DataFrame:
    top = p.argmax(1)
    names = np.array(labels)
    return pd.DataFrame(
        {"stage": stage, "label": names[truth], "top": names[top], "confidence": p.max(1), "correct": top == truth}
    )


def _quality(p: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    correct, confidence = p.argmax(1) == truth, p.max(1)
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs((correct[place == b] - confidence[place == b]).sum()) for b in range(BINS)]
    return log_loss(truth, p, labels=range(p.shape[1])), sum(gaps) / len(truth), correct.mean()


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
    coded = [pd.Categorical(scored[c], labels).codes for c in columns]
    pairs = list(combinations(range(len(columns)), 2))
    units = scored["query_id"].map(clusters_of(scored)) if "query_id" in scored else np.arange(len(scored))
    units = pd.factorize(units)[0]
    counts = np.zeros((units.max() + 1, len(pairs), len(labels), len(labels)))
    for k, (a, b) in enumerate(pairs):
        np.add.at(counts[:, k], (units, coded[a], coded[b]), 1)
    value, low, high = bootstrap_ci(counts, lambda rows: _kappa(rows.sum(0)), n=n, seed=seed)
    found = pd.DataFrame([(names[a], names[b]) for a, b in pairs], columns=["judge_a", "judge_b"])
    return found.assign(kappa=value, lo=low, hi=high, n=len(scored))


def _kappa(table: Float[np.ndarray, "pair label label"]) -> Float[np.ndarray, " pair"]:
    """Cohen's kappa of several tables of counts at once, as sklearn's cohen_kappa_score has it."""
    share = table / table.sum((1, 2), keepdims=True)
    expected = (share.sum(1) * share.sum(2)).sum(1)
    return (np.trace(share, axis1=1, axis2=2) - expected) / (1 - expected)
