"""Causal tests by head: whose output carries the emotion, not merely correlates with it.

    ablate   in an instructed run the head loses its emotion direction; does the emotion fade?
    patch    in a neutral run the head gets the output that it has in the instructed run; does the emotion appear?
    steer    in a neutral run the head's own emotion vector is added to its output; does the emotion appear?

Read by the model's own probability of emotion words, or by a judge of the text that it writes. Which heads are worth a
test, a first-order estimate says for all of them at once; random ones stand beside them. Every effect stands beside the
same change along a random direction of that head, of equal size, and beside the other heads of its layer.

>>> effects = emolab.head_effects(model, vectors, responses, test="patch")
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from emolab.base.errors import need_number
from emolab.base.folders import alone
from emolab.base.labels import head_name
from emolab.base.stats import bh
from emolab.base.storage import kept, stable, user_path
from emolab.experiments.sweeps import vectors_identity
from emolab.heads.head_vectors import direct_shares
from emolab.heads.measures import WordProbability
from emolab.heads.patching import HeadTest, Trial, setup, word_probability
from emolab.models.model import Model
from emolab.steering.head_edits import Change, Heads, HeadSpace, head_pairs
from emolab.vectors.corpus import corpus_hash
from emolab.vectors.vectors import EmotionVectors

_COLUMNS = (
    "layer head name emotion test measure attribution screened direct effect lo hi gap share does random_direction "
    "other_heads p q n"
).split()
_DOES = {1: "raises", -1: "lowers", 0: ""}


@alone
def head_effects(
    model: Model,
    vectors: EmotionVectors,
    responses: pd.DataFrame,
    *,
    test: HeadTest | str = "ablate",
    heads: Heads | None = None,
    screen: int | None = 20,
    seed: int = 0,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """The causal effect of heads on every emotion, with controls: of those that attribution finds, and of random ones.

    >>> effects = emolab.head_effects(model, vectors, responses)                           # 20 heads and 20 random ones
    >>> judged = emolab.HeadTest("ablate", judge=judge, n_queries=12)
    >>> effects = emolab.head_effects(model, vectors, responses, test=judged, heads=[(2, 0), (3, 1)])
    >>> effects.sort_values("share", ascending=False).head()
    >>> effects.attrs["screening"]["rank_correlation"]                                 # of attribution and effect

    Every head gets an `attribution`: the first-order estimate of what the test would measure by words, the gradient of
    that measure at the head's z times the change that the test makes to z (attribution patching: Nanda 2023,
    neelnanda.io/attribution-patching; Syed et al. 2023, arXiv 2310.10348). It costs one pass forward and one backward a
    query and emotion for all heads together, and it is an approximation: it misses what a large change saturates, and
    heads that stand in for each other. So only the `screen` heads with the largest are tested, and as many drawn from
    the rest, which say what a head does that was not chosen.

    Args:
        vectors: with site "head"; pass `vectors.part("specific")` for what tells emotions apart.
        responses: from `collect_responses` under neutral and the emotions, best of queries that the vectors have not
            seen. Heads are chosen by attribution on other queries than those that test them, as many again, where
            there are so many.
        test: what is done and measured (`emolab.HeadTest`); "ablate", "patch" or "steer" alone is that test by words.
        heads: (layer, head) pairs to test, all of them whatever their attribution; default all that the model has.
        screen: how many heads to test for each emotion, and how many random ones beside them; None tests all heads.
            They are chosen by words where a judge measures, too.
        out: a folder; the table is kept there as heads.parquet, and the same call finds it again.

    Returns:
        One row per head and emotion: `layer, head, name` (L18H3), `emotion, test, measure`; `attribution` in nats, on
        the same queries as `effect`; `screened`: "top", "random" or "none" (not tested; where heads or screen=None ask
        for all, tested all the same); `direct`, the share of the emotion's vector in the last layer that the head
        writes straight into it (NaN without site "resid"); `effect` with its 95 % interval `lo, hi` (nats for words,
        probability for a judge); `gap`, the instructed less the neutral run; `share`, the effect over that whole way;
        `does`: "raises" or "lowers", what the head itself does to the emotion: where the instruction lowers the
        emotion, so that `gap` is negative, heads of large share lower it, too. The controls `random_direction` (mean
        effect of a random direction of that head's output, of equal size, another for every query) and `other_heads`
        (mean effect of the other tested heads of the layer; NaN if there are none); `p` of effect against random
        direction (sign flips, two-sided) and `q`, p after Benjamini-Hochberg over the table; `n` queries. Heads that
        were not tested have NaN and n = 0; random ones are themselves a control, without `random_direction`, `p`, `q`.

        Intervals and p are over queries, those of one situation together (`emolab.base.stats`): p is at least
        2 / 2**situations.

        `attrs["screening"]`: `correlation` and `rank_correlation` of attribution and effect over tested heads,
        `random_correlation` over the random ones alone; `top_effect` and `random_effect`, mean effect in the direction
        that the attribution which chose predicts, and their `difference` with 95 % interval `lo, hi`; `heads` and
        `tested` per emotion; `held_out`, whether other queries chose the heads than tested them.

    Raises:
        EmolabError: as `emolab.HeadTest`; vectors without site "head", responses without pairs, heads that do not
            exist, or a model without attention heads. Of hybrid models the layers that have heads are tested.
    """
    if out is not None:
        made_of = {"fingerprint": model.fingerprint, "dtype": str(model.dtype), "vectors": vectors_identity(vectors)}
        made_of |= {"responses": corpus_hash(responses), "test": stable(test), "heads": stable(heads)}
        made_of |= {"screen": screen, "seed": seed}
        make = partial(head_effects, model, vectors, responses, test=test, heads=heads, screen=screen, seed=seed)
        return kept(user_path(out) / "heads.parquet", made_of, make)
    space = HeadSpace(model, vectors)
    trial = setup(space, responses, test, seed)
    every = [(layer, head) for layer in space.layers for head in range(model.n_heads)]
    named = every if heads is None else list(dict.fromkeys(head_pairs(heads)))
    if screen is not None:
        need_number("screen", screen, 1, whole=True)
    n_screened = screen if heads is None else None
    attribution = choosing = np.full((len(vectors.emotions), *space.W_O.shape[:2]), np.nan)
    if n_screened or trial.test.judge is None:
        words = trial.measure
        words = words if isinstance(words, WordProbability) else word_probability(space, responses, trial.test)
        to_all = [trial.change(emotion, every) for emotion in vectors.emotions]
        attribution = choosing = _attribution(trial, space, words, trial.queries, to_all)
        if n_screened and trial.others:
            choosing = _attribution(trial, space, words, trial.others, to_all)
    chosen = {e: _screened(named, choosing[i], n_screened, seed + i) for i, e in enumerate(vectors.emotions)}
    tested = {emotion: [*top, *random] for emotion, (top, random) in chosen.items()}
    n_top, n_tested = len(chosen[vectors.emotions[0]][0]), len(tested[vectors.emotions[0]])
    places = {emotion: [([head], False) for head in heads] for emotion, heads in tested.items()}
    for emotion, (top, _) in chosen.items():
        places[emotion] += [([head], True) for head in top]
    values = trial.values(places)
    way = (values[..., 1] - values[..., 0]).mean(1)  # [emotion], from the run that is changed to the other end
    effect, control = np.split(values[..., 2:] - values[..., :1], [n_tested], axis=-1)  # [emotion, query, head]
    lo, hi = trial.interval(effect.swapaxes(0, 1))
    p = trial.p((effect[..., :n_top] - control).swapaxes(0, 1))

    mean = effect.mean(1)
    toward = -1 if trial.test.op == "ablate" else 1  # what is taken from an instructed run lowers what the head raised
    direct = direct_shares(vectors)
    layer, head = np.array(named).T
    tables = []
    for e, (emotion, tested_heads) in enumerate(tested.items()):
        of_all = pd.DataFrame({"layer": layer, "head": head, "emotion": emotion, "gap": toward * way[e]})
        of_all["attribution"], of_all["direct"] = attribution[e, layer, head], direct[e, layer, head]
        of_tested = pd.DataFrame(tested_heads, columns=["layer", "head"]).assign(
            effect=mean[e],
            lo=lo[e],
            hi=hi[e],
            share=ratio(mean[e], way[e]),
            does=[_DOES[sign] for sign in np.sign(toward * mean[e])],
            other_heads=[_mean_of_others(mean[e], tested_heads, i) for i in range(n_tested)],
            random_direction=pd.Series([control[e, :, i].mean() for i in range(n_top)]),  # NaN behind the first n_top
            p=pd.Series(p[e]),
            screened=["top"] * n_top + ["random"] * (n_tested - n_top) if n_screened else "none",
            n=len(trial.queries),
        )
        tables.append(of_all.merge(of_tested, how="left", on=["layer", "head"]))
    table = pd.concat(tables, ignore_index=True).fillna({"does": "", "screened": "none", "n": 0}).astype({"n": int})
    table["name"] = [head_name(*place) for place in zip(table["layer"], table["head"], strict=True)]
    table = table.assign(test=trial.test.op, measure=trial.measure.name, q=bh(table["p"]))[_COLUMNS]
    table = trial.noted(table, {"screen": n_screened})
    predicted, chosen_by = (
        np.array([[scores[e][head] for head in tested_heads] for e, tested_heads in enumerate(tested.values())])
        for scores in (attribution, choosing)
    )
    agreement = _agreement(trial, predicted, chosen_by, effect, n_top)
    table.attrs["screening"] = {
        "heads": len(named),
        "tested": n_tested,
        "held_out": n_screened is not None and bool(trial.others),
        **agreement,
    }
    return table


def _attribution(
    trial: Trial, space: HeadSpace, measure: WordProbability, queries: list[str], changes: list[Change]
) -> Float[np.ndarray, "emotion layer head"]:
    """Mean over these queries of what each change, to all heads at once, would do by each of them."""
    runs = [trial.run(query, change.emotion, change) for query in queries for change in changes]
    slopes = measure.slopes(space, runs)
    return slopes.reshape(len(queries), len(changes), *slopes.shape[1:]).mean(0)


def _screened(
    heads: list[tuple[int, int]], attribution: Float[np.ndarray, "layer head"], screen: int | None, seed: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The heads with the largest attribution, and as many drawn from the others; all and none where screen is None."""
    if screen is None:
        return heads, []
    order = sorted(heads, key=lambda head: -abs(attribution[head]))
    rest = sorted(order[screen:])
    drawn = np.random.default_rng(seed).permutation(len(rest))[:screen]
    return order[:screen], [rest[i] for i in sorted(drawn)]


def _mean_of_others(effects: Float[np.ndarray, " head"], heads: list[tuple[int, int]], i: int) -> float:
    """The mean effect of the other heads in the layer of head i; NaN where there are none."""
    others = [k for k, head in enumerate(heads) if head[0] == heads[i][0] and k != i]
    return effects[others].mean() if others else np.nan


def _agreement(
    trial: Trial,
    predicted: Float[np.ndarray, "emotion head"],
    choosing: Float[np.ndarray, "emotion head"],
    effect: Float[np.ndarray, "emotion query head"],
    n_top: int,
) -> dict[str, float | None]:
    """How well attribution tells what the test finds; the first n_top heads of each emotion are those it chose."""
    mean = effect.mean(1)
    numbers = {
        "correlation": _correlation(predicted, mean, "pearson"),
        "rank_correlation": _correlation(predicted, mean, "spearman"),
        "random_correlation": _correlation(predicted[:, n_top:], mean[:, n_top:], "pearson"),
    }
    along = effect * np.sign(choosing)[:, None]  # up where attribution said up
    if n_top < along.shape[-1]:
        top, random = along[..., :n_top].mean((0, 2)), along[..., n_top:].mean((0, 2))  # [query]
        lo, hi = trial.interval(top - random)
        numbers |= {"top_effect": top.mean(), "random_effect": random.mean(), "difference": (top - random).mean()}
        numbers |= {"lo": lo, "hi": hi}
    return {name: None if not np.isfinite(x) else round(float(x), 6) for name, x in numbers.items()}


def _correlation(a: np.ndarray, b: np.ndarray, method: Literal["pearson", "spearman"]) -> float:
    pairs = pd.DataFrame({"a": a.ravel(), "b": b.ravel()})
    varied = len(pairs) > 2 and (pairs.nunique() > 1).all()
    return float(pairs.corr(method=method).to_numpy(float)[0, 1]) if varied else np.nan


def ratio(a, b):
    """a / b, NaN where b is nothing."""
    b = np.asarray(b, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.abs(b) > 1e-9, a / b, np.nan)[()]
