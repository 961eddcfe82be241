"""How much emotion is left, or brought, as more and more heads are changed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_number, need_table
from emolab.base.stats import expanded
from emolab.geometry.resampling import bootstrap_counts
from emolab.heads.effects import ratio
from emolab.heads.patching import HeadTest, Trial, setup
from emolab.models.model import Model
from emolab.steering.head_edits import Heads, HeadSpace
from emolab.vectors.vectors import EmotionVectors

DRAWS = 1000  # of the bootstrap


def ablation_curve(
    model: Model,
    vectors: EmotionVectors,
    responses: pd.DataFrame,
    *,
    ranked: pd.DataFrame | Mapping[str, Heads],
    test: HeadTest | str = "ablate",
    ks: Sequence[int] | None = None,
    n_random: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """How much emotion is left when the first k heads of a ranking lose their emotion direction, and with random heads.

    >>> curve = emolab.ablation_curve(model, vectors, heldout, ranked=effects, test=emolab.HeadTest(judge=judge))
    >>> curve.query("emotion == 'all' and order == 'ranked'")[["k", "kept", "lo", "hi"]]

    Args:
        responses: of other queries than those that ranked the heads.
        ranked: a table of `head_effects` (ranked by `share`; heads that were not tested come behind, by attribution)
            or of `emolab.heads.head_maps` (by `direct`), or {emotion: [(layer, head), ...]}.
        test: what is done and measured (`emolab.HeadTest`): "ablate"; or "steer", which adds the heads' own vectors to
            neutral runs instead: then `kept` is the share of the emotion that they bring.
        ks: numbers of heads, default 1, 4, 16, ... up to half of all heads.
        n_random: how many random sets of heads, with as many heads of each layer as the ranked ones. They are drawn
            from the layer's other heads while these last; `overlap` is the share that had to be drawn from the ranked.

    Returns:
        One row per emotion (and "all", their mean), `order` and `k`: order "ranked", "random_heads", or
        "random_direction" (the ranked heads, along random directions); `value` of the measure; `kept`, on a scale
        where 1 is the instructed run and 0 the neutral one, with 95 % bootstrap interval over queries, those of one
        situation together (and over random sets), `lo, hi`; `overlap`, `n`. k = 0 is the run as it is.

    Raises:
        EmolabError: as `head_effects`, and where the ranking lacks an emotion or is shorter than a k.
    """
    trial = setup(HeadSpace(model, vectors), responses, test, seed, ops=("ablate", "steer"))
    rankings = {emotion: ranking(ranked, emotion) for emotion in vectors.emotions}
    return curve_of(trial, rankings, ks, n_random)


def curve_of(
    trial: Trial, rankings: Mapping[str, tuple[tuple[int, int], ...]], ks: Sequence[int] | None, n_random: int
) -> pd.DataFrame:
    """The curve of each emotion's ranking of heads, or of neurons: what `ablation_curve` returns."""
    need_number("n_random", n_random, 1, whole=True)
    ks = _numbers(ks, min(map(len, rankings.values())))
    space, rng = trial.space, np.random.default_rng(trial.seed)
    others = f"random_{space.sites[0]}s"
    columns = [(order, k) for k in ks for order in ("ranked", *[others] * n_random, "random_direction")]
    places = {
        emotion: [
            (_random_like(top[:k], space.sizes, rng) if order == others else top[:k], order == "random_direction")
            for order, k in columns
        ]
        for emotion, top in rankings.items()
    }
    values = trial.values(places)
    instructed, neutral = (0, 1) if trial.test.op == "ablate" else (1, 0)
    start, end = values[..., neutral], values[..., instructed]  # [emotion, query]

    weights = bootstrap_counts(pd.factorize(trial.situations)[0], DRAWS, rng)  # [draw, query]
    weights /= weights.sum(1, keepdims=True)
    rows = []
    for order in ("ranked", others, "random_direction"):
        for k in (0, *ks):
            chosen = [i for i, column in enumerate(columns) if column == (order, k)]
            x = values[..., [2 + i for i in chosen]] if k else values[..., [0]]  # [emotion, query, set]
            mean = x.mean(-1)
            n_sets = x.shape[-1]
            of_sets = rng.multinomial(n_sets, np.full(n_sets, 1 / n_sets), size=DRAWS) / n_sets
            moved = np.einsum("bq,eqs,bs->be", weights, x, of_sets) - weights @ start.T
            draws = _with_mean(ratio(moved, weights @ (end - start).T).T)  # [emotion and all, draw]
            kept = _with_mean(ratio(mean.mean(1) - start.mean(1), end.mean(1) - start.mean(1))[:, None])[:, 0]
            lo, hi = expanded(draws.T, len(set(trial.situations)))
            overlap = np.zeros(len(kept))
            if k and order == others:
                again = [[len({*places[e][i][0]} & {*top[:k]}) / k for i in chosen] for e, top in rankings.items()]
                overlap = _with_mean(np.array(again)).mean(1)
            value = _with_mean(mean).mean(1)
            for e, emotion in enumerate((*rankings, "all")):
                rows.append((emotion, order, k, value[e], kept[e], lo[e], hi[e], overlap[e], len(trial.queries)))
    table = pd.DataFrame(rows, columns=["emotion", "order", "k", "value", "kept", "lo", "hi", "overlap", "n"])
    site = {"site": space.sites[0]} if space.sites != ("head",) else {}
    return trial.noted(table, {"n_random": n_random, **site})


def _numbers(ks: Sequence[int] | None, total: int) -> list[int]:
    """How many heads are changed, from few to many; 0 is done without."""
    if ks is None:
        return [4**i for i in range(10) if 4**i <= max(1, total // 2)]
    for k in ks:
        need_number("one of ks", k, 0, whole=True)
    ks = sorted({int(k) for k in ks} - {0})
    if not ks or ks[-1] > total:
        raise EmolabError(f"ks {ks} do not fit a ranking of {total}; expected numbers from 1 to {total}")
    return ks


def _with_mean(values: np.ndarray) -> np.ndarray:
    """The rows, one per emotion, and below them their mean; NaN of NaN alone."""
    return np.vstack([values, pd.DataFrame(values).mean()])


def ranking(
    ranked: pd.DataFrame | Mapping[str, Heads], emotion: str, number: str = "head"
) -> tuple[tuple[int, int], ...]:
    """The heads, or neurons, of an emotion as (layer, number) pairs, first the one that ranks highest.

    Of a table by its `share`, or where nothing was tested by `direct`.
    """
    if isinstance(ranked, pd.DataFrame):
        by = "share" if "share" in ranked else "direct"
        need_table(ranked, ("layer", number, "emotion", by), "emolab.head_effects or emolab.heads.neuron_map")
        own = ranked[ranked["emotion"] == emotion].sort_values(by, ascending=False, kind="stable")
        untested = own[by].isna() & (own.get("screened", "") == "none")
        if untested.any():  # attribution of an ablation is negative where the head carries the emotion
            rest = own[untested].sort_values("attribution", ascending=own["test"].iloc[0] == "ablate", kind="stable")
            own = pd.concat([own[~untested], rest])
        places = tuple(zip(own["layer"].astype(int), own[number].astype(int), strict=True))
    else:
        places = tuple((int(layer), int(place)) for layer, place in ranked.get(emotion, ()))
    if not places or len(set(places)) < len(places):
        raise EmolabError(f"the ranking of {emotion} {'holds one place twice' if places else 'is empty'}")
    return places


def _random_like(top: Heads, sizes: Mapping[int, int], rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    """As many heads, or neurons, of each layer as `top`, others before the same; sizes: how many each layer has."""
    chosen: list[tuple[int, int]] = []
    for layer in dict.fromkeys(layer for layer, _ in top):
        own = [head for at, head in top if at == layer]
        others = sorted({*range(sizes[layer])} - {*own})
        drawn = [*rng.permutation(others), *rng.permutation(own)][: len(own)]
        chosen += [(layer, int(head)) for head in drawn]
    return tuple(chosen)
