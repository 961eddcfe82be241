"""Causal tests by head: whose output carries the emotion, not merely correlates with it.

    ablate   in an instructed run the head loses its emotion direction; does the emotion fade?
    patch    in a neutral run the head gets the output that it has in the instructed run; does the emotion appear?
    steer    in a neutral run the head's own emotion vector is added to its output; does the emotion appear?

Read by the model's own probability of emotion words, or by a judge of the text that it writes. Which heads are worth a
test, a first-order estimate says for all of them at once; random ones stand beside them. Every effect stands beside the
same change along a random direction of that head, of equal size, and beside the other heads of its layer.

>>> effects = emolab.head_effects(model, vectors, responses)
>>> curve = ablation_curve(model, vectors, responses, ranked=effects, judge=emolab.judges.judges.EmbeddingJudge())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import false_discovery_control

from emolab.base.errors import EmolabError, need_number
from emolab.base.stats import bootstrap_ci, expanded, sign_flip
from emolab.base.tables import noted
from emolab.heads.patching import Words, setup, words_of
from emolab.models.model import Model
from emolab.steering.head_edits import Change, Heads, head_pairs
from emolab.vectors.vectors import EmotionVectors

DRAWS = 1000  # of the bootstrap
FLIPS = 20_000  # sign flips: all of up to 14 queries, else random ones


def head_effects(
    model: Model,
    vectors: EmotionVectors,
    responses: pd.DataFrame,
    *,
    test: str = "ablate",
    judge: Any = None,
    words: Mapping[str, Sequence[str]] | None = None,
    heads: Heads | None = None,
    screen: int | None = 20,
    dose: float = 1.0,
    n_queries: int = 10,
    max_new_tokens: int = 80,
    seed: int = 0,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """The causal effect of heads on every emotion, with controls: of those that attribution finds, and of random ones.

    >>> effects = emolab.head_effects(model, vectors, responses)                           # 20 heads and 20 random ones
    >>> effects = emolab.head_effects(model, vectors, responses, judge=judge, heads=[(2, 0), (3, 1)])
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
            seen. n_queries of those answered under all conditions are drawn. Heads are chosen by attribution on as many
            others, where there are so many, so that they are not tested on the queries that chose them.
        test: "ablate": in the instructed run each head loses the component of its output along its emotion vector,
            from the last prompt token on. "patch": the neutral run gets the head's output from the instructed run of
            the same query, at the tokens of the answer; written texts would diverge and positions with them, so this
            test has no judge. "steer": the neutral run plus dose times the head's own vector.
        judge: None measures words; else a judge (`emolab.judges.judges`) of the greedy text, by its probability of the
            emotion; heads are then still chosen by words. Every tested head writes 2 x emotions x n_queries texts.
        words: {emotion: words} to measure; default the words typical of each emotion in `responses`
            (`emotion_tokens`). The measure is the log of their mean next-token probability while the model reads, after
            either prompt, the first 32 tokens of the neutral answer: one text for all runs, so that positions match
            token by token although prompts differ in length, and emotion comes from the instruction alone, not from the
            words read.
        heads: (layer, head) pairs to test, all of them whatever their attribution; default all that the model has.
        screen: how many heads to test for each emotion, and how many random ones beside them; None tests all heads.

    Returns:
        One row a head and emotion: `layer, head, emotion, test, measure`; `attribution` in nats, on the same queries as
        `effect`; `screened`: "top",
        "random" or "none" (not tested; where heads or screen=None ask for all, tested all the same); `direct`, the
        share of the emotion's vector in the last layer that the head writes straight into it; `effect` with its 95 %
        bootstrap interval over queries `lo, hi` (nats for words, probability for a judge); `share`, the effect over the
        whole gap between the instructed and the neutral prompt; the controls `random_direction` (mean effect of a
        random direction of that head's output, of equal size, another for every query) and `other_heads` (mean effect
        of the other tested heads of the layer; NaN if there are none); `p` of effect against random direction (sign
        flips over queries, two-sided) and `q`, p after Benjamini-Hochberg over the table (p is at least 2 / 2**n: below
        about 10 queries no q is small); `n` queries. Heads that were not tested have NaN and n = 0; random ones are
        themselves a control, without `random_direction`, `p` and `q`.

        `attrs["screening"]`: `correlation` and `rank_correlation` of attribution and effect over tested heads,
        `random_correlation` over the random ones alone; `top_effect` and `random_effect`, mean effect in the direction
        that the attribution which chose predicts, and their `difference` with 95 % bootstrap interval over queries
        `lo, hi`; `heads` and `tested` per emotion; `held_out`, whether other queries chose the heads than tested them.

    Raises:
        EmolabError: unknown test, patch with a judge, vectors without site "head", responses without pairs, or a model
            without attention heads. Of hybrid models the layers that have heads are tested.
    """
    options = {"test": test, "judge": judge, "words": words, "n_queries": n_queries, "max_new_tokens": max_new_tokens}
    space, measure, runs = setup(model, vectors, responses, **options, seed=seed)
    every = [(layer, head) for layer in space.layers for head in range(model.n_heads)]
    named = every if heads is None else list(dict.fromkeys(head_pairs(heads)))
    need_number("dose", dose)
    if screen is not None:
        need_number("screen", screen, 1, whole=True)
    attribution = choosing = np.full((len(vectors.emotions), *space.W_O.shape[:2]), np.nan)
    screening = screen is not None and heads is None
    if screening or judge is None:
        reader = measure if isinstance(measure, Words) else words_of(model, vectors, responses, words)
        change = {e: Change(test, e, tuple(every), dose) for e in vectors.emotions}
        others = runs.others if screening else []
        jobs = [runs.job(query, e, change[e]) for query in (*runs.queries, *others) for e in vectors.emotions]
        slopes = reader.slopes(model, space, jobs).reshape(-1, *attribution.shape)
        attribution = slopes[: len(runs.queries)].mean(0)
        choosing = slopes[len(runs.queries) :].mean(0) if others else attribution
    groups = [_screened(named, chosen, screen if screening else None, seed + e) for e, chosen in enumerate(choosing)]
    jobs = []
    for emotion, (top, random) in zip(vectors.emotions, groups, strict=True):
        for place, query in enumerate(runs.queries):
            jobs += [runs.job(query, emotion), runs.goal(query, emotion)]
            for direction, some in ((None, top + random), (_seed(seed, place), top)):
                jobs += [runs.job(query, emotion, Change(test, emotion, (head,), dose, direction)) for head in some]
    n, n_tested = len(runs.queries), sum(map(len, groups[0]))
    values = measure(model, space, jobs, batch_size).reshape(len(vectors.emotions), n, -1)
    base, gap = values[..., :1], (values[..., 1] - values[..., 0]).mean(1)  # [emotion]
    effect, control = np.split(values[..., 2:] - base, [n_tested], axis=-1)  # [emotion, query, head]
    lo, hi = _interval(effect.swapaxes(0, 1), seed)
    p = sign_flip((effect[..., : control.shape[-1]] - control).swapaxes(0, 1), n=FLIPS, seed=seed)
    direct, mean, rows = _direct(vectors), effect.mean(1), []
    for e, emotion in enumerate(vectors.emotions):
        tested = [*groups[e][0], *groups[e][1]]
        place = {head: i for i, head in enumerate(tested)}
        for layer, head in named:
            row = {
                "layer": layer,
                "head": head,
                "emotion": emotion,
                "test": test,
                "measure": measure.name,
                "attribution": attribution[e, layer, head],
                "screened": "none",
                "direct": direct[e, layer, head],
            }
            i = place.get((layer, head))
            if i is not None:
                others = [k for k, other in enumerate(tested) if other[0] == layer and other[1] != head]
                row |= {"effect": mean[e, i], "lo": lo[e, i], "hi": hi[e, i], "share": _ratio(mean[e, i], gap[e])}
                row |= {"other_heads": mean[e, others].mean() if others else np.nan, "n": n}
                if screening:
                    row["screened"] = "top" if i < len(groups[e][0]) else "random"
                if i < control.shape[-1]:
                    row |= {"random_direction": control[e, :, i].mean(), "p": p[e, i]}
            rows.append(row)
    table = pd.DataFrame(rows, columns=_COLUMNS).astype({c: float for c in _COLUMNS[8:-1]})
    known = table["p"].notna()
    table.loc[known, "q"] = false_discovery_control(table.loc[known, "p"], method="bh")
    table["n"] = table["n"].fillna(0).astype(int)
    params = {"test": test, "measure": measure.name, "dose": dose, "screen": screen if screening else None}
    table = noted(table, _meta(model), n=f"{n} queries", seed=seed, params=params)
    predicted, chosen = (
        np.array([[x[e][at] for at in (*top, *random)] for e, (top, random) in enumerate(groups)])
        for x in (attribution, choosing)
    )
    table.attrs["screening"] = {
        "heads": len(named),
        "tested": n_tested,
        "held_out": screening and bool(runs.others),
        **_agreement(predicted, chosen, effect, len(groups[0][0]) if screening else n_tested, seed),
    }
    return table


_COLUMNS = (
    "layer head emotion test measure attribution screened direct effect lo hi share random_direction other_heads p q n"
).split()


def _screened(
    heads: list[tuple[int, int]], attribution: Float[np.ndarray, "layer head"], screen: int | None, seed: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The heads with the largest attribution, and as many drawn from the others; all and none where screen is None."""
    if screen is None:
        return heads, []
    order = sorted(heads, key=lambda at: -abs(attribution[at]))
    top, rest = order[:screen], sorted(order[screen:])
    drawn = np.random.default_rng(seed).permutation(len(rest))[:screen]
    return top, [rest[i] for i in sorted(drawn)]


def _agreement(
    predicted: Float[np.ndarray, "emotion head"],
    chosen: Float[np.ndarray, "emotion head"],
    effect: Float[np.ndarray, "emotion query head"],
    n_top: int,
    seed: int,
) -> dict[str, float | None]:
    """How well attribution tells what the test finds; the first n_top heads of each emotion are those it chose."""
    mean = effect.mean(1)
    found = {
        "correlation": _correlation(predicted, mean, "pearson"),
        "rank_correlation": _correlation(predicted, mean, "spearman"),
        "random_correlation": _correlation(predicted[:, n_top:], mean[:, n_top:], "pearson"),
    }
    along = effect * np.sign(chosen)[:, None]  # up where attribution said up
    if 0 < n_top < along.shape[-1]:
        top, random = along[..., :n_top].mean((0, 2)), along[..., n_top:].mean((0, 2))  # [query]
        lo, hi = _interval((top - random)[:, None], seed)
        found |= {"top_effect": top.mean(), "random_effect": random.mean(), "difference": (top - random).mean()}
        found |= {"lo": lo[0], "hi": hi[0]}
    return {name: None if not np.isfinite(x) else round(float(x), 6) for name, x in found.items()}


def _correlation(a: np.ndarray, b: np.ndarray, method: Literal["pearson", "spearman"]) -> float:
    pairs = pd.DataFrame({"a": a.ravel(), "b": b.ravel()})
    varied = len(pairs) > 2 and (pairs.nunique() > 1).all()
    return float(pairs.corr(method=method).to_numpy(float)[0, 1]) if varied else np.nan


def ablation_curve(
    model: Model,
    vectors: EmotionVectors,
    responses: pd.DataFrame,
    *,
    ranked: pd.DataFrame | Mapping[str, Heads],
    ks: Sequence[int] | None = None,
    judge: Any = None,
    words: Mapping[str, Sequence[str]] | None = None,
    test: str = "ablate",
    dose: float = 1.0,
    n_queries: int = 12,
    n_random: int = 3,
    max_new_tokens: int = 80,
    seed: int = 0,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """How much emotion is left when the first k heads of a ranking lose their emotion direction, and with random heads.

    >>> curve = ablation_curve(model, vectors, heldout, ranked=effects, judge=judge)
    >>> curve.query("emotion == 'all' and order == 'ranked'")[["k", "kept", "lo", "hi"]]

    Args:
        responses: of other queries than those that ranked the heads.
        ranked: a table of `head_effects` (ranked by `share`; heads that were not tested come behind, by attribution),
            or {emotion: [(layer, head), ...]}.
        ks: numbers of heads, default 1, 4, 16, ... up to half of all heads.
        test: "ablate"; or "steer", which adds the heads' own vectors to neutral runs instead: then `kept` is the share
            of the emotion that they bring. Judge, words and the rest are those of `head_effects`.
        n_random: how many random sets of heads, with as many heads of each layer as the ranked ones. They are drawn
            from the layer's other heads while these last; `overlap` is the share that had to be drawn from the ranked.

    Returns:
        One row an emotion (and "all", their mean), `order` and `k`: order "ranked", "random_heads", or
        "random_direction" (the ranked heads, along random directions); `value` of the measure; `kept`, on a scale
        where 1 is the instructed run and 0 the neutral one, with 95 % bootstrap interval over queries (and random sets)
        `lo, hi`; `overlap`, `n`. k = 0 is the run as it is.

    Raises:
        EmolabError: as `head_effects`, and where the ranking lacks an emotion or is shorter than a k.
    """
    if test not in ("ablate", "steer"):
        raise EmolabError(f'test {test!r} has no curve; expected "ablate" or "steer"')
    options = {"test": test, "judge": judge, "words": words, "n_queries": n_queries, "max_new_tokens": max_new_tokens}
    space, measure, runs = setup(model, vectors, responses, **options, seed=seed)
    rankings = {emotion: _ranking(ranked, emotion) for emotion in vectors.emotions}
    total = min(map(len, rankings.values()))
    for k in () if ks is None else ks:
        need_number("one of ks", k, 0, whole=True)
    need_number("n_random", n_random, 1, whole=True)
    need_number("dose", dose)
    ks = [4**i for i in range(10) if 4**i <= max(1, total // 2)] if ks is None else sorted({int(k) for k in ks} - {0})
    if not ks or ks[-1] > total:
        raise EmolabError(f"ks {ks} do not fit a ranking of {total} heads; expected numbers from 1 to {total}")
    rng = np.random.default_rng(seed)
    jobs, sets = [], []
    plan = [(k, order, draw) for k in ks for order, draw in _orders(n_random)]
    for emotion in vectors.emotions:
        chosen = {}
        for k, order, draw in plan:
            top = rankings[emotion][:k]
            chosen[k, order, draw] = _random_heads(top, model.n_heads, rng) if order == "random_heads" else (top, 0.0)
        sets.append(chosen)
        for place, query in enumerate(runs.queries):
            jobs += [runs.job(query, emotion), runs.goal(query, emotion)]
            for key in plan:
                random = _seed(seed, place) if key[1] == "random_direction" else None
                jobs.append(runs.job(query, emotion, Change(test, emotion, chosen[key][0], dose, random)))
    n = len(runs.queries)
    values = measure(model, space, jobs, batch_size).reshape(len(vectors.emotions), n, -1)
    start, end = (values[..., 1], values[..., 0]) if test == "ablate" else (values[..., 0], values[..., 1])
    boot = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n  # [draw, query]
    columns: dict[tuple, list[int]] = {}
    for i, (k, order, _) in enumerate(plan):
        columns.setdefault((order, k), []).append(2 + i)
    rows = []
    for order in ("ranked", "random_heads", "random_direction"):
        for k in (0, *ks):
            at = columns[order, k] if k else [0]
            x = values[..., at]  # [emotion, query, set]
            mean, span = x.mean(-1), end.mean(1) - start.mean(1)
            sets_boot = rng.multinomial(len(at), np.full(len(at), 1 / len(at)), size=DRAWS) / len(at)
            moved = np.einsum("bq,eqs,bs->be", boot, x, sets_boot) - boot @ start.T
            drawn = _ratio(moved, boot @ (end - start).T)
            kept = _ratio(mean.mean(1) - start.mean(1), span)
            for e, emotion in enumerate((*vectors.emotions, "all")):
                own = slice(None) if emotion == "all" else e
                lo, hi = expanded(pd.DataFrame(np.atleast_2d(drawn.T[own])).mean().to_numpy(), n)  # NaN of NaN alone
                over = [
                    s[key][1] for s in ([sets[e]] if emotion != "all" else sets) for key in s if key[:2] == (k, order)
                ]
                share = float(pd.Series(np.atleast_1d(kept[own])).mean())
                rows.append(
                    (
                        emotion,
                        order,
                        k,
                        float(mean[own].mean()),
                        share,
                        float(lo),
                        float(hi),
                        float(np.mean(over or [0])),
                        n,
                    )
                )
    names = ["emotion", "order", "k", "value", "kept", "lo", "hi", "overlap", "n"]
    params = {"test": test, "measure": measure.name, "dose": dose, "n_random": n_random}
    return noted(pd.DataFrame(rows, columns=names), _meta(model), n=f"{n} queries", seed=seed, params=params)


def _direct(vectors: EmotionVectors) -> Float[np.ndarray, "emotion layer head"]:
    """Share of the last layer's vector (without site resid: of the layer's attention) that each head itself writes."""
    heads = vectors.get("head").double().numpy()
    if "resid" in vectors.data:
        total = vectors.get("resid").double().numpy()[:, -1:, None]
    else:
        total = heads.sum(2, keepdims=True)
    return _ratio((heads * total).sum(-1), (total * total).sum(-1))


def _ratio(a, b):
    b = np.asarray(b, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.abs(b) > 1e-9, a / b, np.nan)[()]


def _interval(values: Float[np.ndarray, "query ..."], seed: int) -> tuple[np.ndarray, np.ndarray]:
    return bootstrap_ci(values, lambda rows: rows.mean(0), n=DRAWS, seed=seed)[1:]


def _ranking(ranked: pd.DataFrame | Mapping[str, Heads], emotion: str) -> tuple[tuple[int, int], ...]:
    if isinstance(ranked, pd.DataFrame):
        own = ranked[ranked["emotion"] == emotion].sort_values("share", ascending=False, kind="stable")
        untested = own["share"].isna() & (own.get("screened", "") == "none")
        if untested.any():  # attribution of an ablation is negative where the head carries the emotion
            rest = own[untested].sort_values("attribution", ascending=own["test"].iloc[0] == "ablate", kind="stable")
            own = pd.concat([own[~untested], rest])
        heads = tuple(zip(own["layer"].astype(int), own["head"].astype(int), strict=True))
    else:
        heads = tuple((int(layer), int(head)) for layer, head in ranked.get(emotion, ()))
    if not heads or len(set(heads)) < len(heads):
        raise EmolabError(f"the ranking of {emotion} is {'empty' if not heads else 'not of different heads'}")
    return heads


def _orders(n_random: int) -> list[tuple[str, int]]:
    return [("ranked", 0), *(("random_heads", i) for i in range(n_random)), ("random_direction", 0)]


def _random_heads(top: Heads, n_heads: int, rng: np.random.Generator) -> tuple[tuple[tuple[int, int], ...], float]:
    """As many heads of each layer as `top`, others before the same; and the share that is the same."""
    chosen: list[tuple[int, int]] = []
    for layer in dict.fromkeys(layer for layer, _ in top):
        own = [head for at, head in top if at == layer]
        others = [head for head in range(n_heads) if head not in own]
        drawn = [*rng.permutation(others), *rng.permutation(own)][: len(own)]
        chosen += [(layer, int(head)) for head in drawn]
    return tuple(chosen), len(set(chosen) & set(top)) / len(top)


def _seed(seed: int, place: int) -> int:
    return 1_000_003 * (seed + 1) + place


def _meta(model: Model) -> dict:
    return {"model": model.name, "revision": model.revision, "fingerprint": model.fingerprint}
