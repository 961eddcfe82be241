"""Heads: who carries emotion, described by layer and head. The causal side is in `emolab.heads.effects`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import head_name
from emolab.base.stats import LEVEL, bootstrap_ci
from emolab.base.tables import noted
from emolab.geometry.projections import project
from emolab.geometry.reliability import probe_accuracy, split_half
from emolab.geometry.resampling import counted
from emolab.geometry.similarity import unit_rows
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.vectors import EmotionVectors


def head_maps(
    vectors: EmotionVectors,
    means: ResponseMeans,
    *,
    W_O: Float[Tensor, "layer head d_head d_model"],
    test: ResponseMeans | None = None,
    groups: pd.Series | None = None,
    n_splits: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """What each head has to do with each emotion: length, contribution, reliability, decodability.

    >>> maps = head_maps(vectors, means, W_O=output_weights(model), groups=queries.set_index("query_id")["situation"])
    >>> maps.query("emotion == 'joy'").nlargest(5, "contribution")

    vectors and means: with site "head", of the same responses. test: means of other queries, for the probe. groups:
    query_id -> situation; the halves and folds then share no situation (default: no query). Columns, one row per
    head and emotion:

    `norm`           length of the head's vector.
    `contribution`   its signed share of the layer's attention vector: projection over that vector's length; heads of a
                     layer sum to 1.
    `direct`         the same against the last layer's residual vector: what the head writes straight into it (NaN
                     without site "resid").
    `split_half`     cosine of the vectors from two halves of the queries, mean over `n_splits` random halves
                     (`emolab.geometry.split_half`).
    `probe`          share of the answers under the emotion that the nearest centroid among all conditions recognises
                     from this head's z alone, on queries it has not seen, with its `chance` and permutation `probe_p`
                     (`emolab.geometry.probe_accuracy`).

    Layers without attention heads (hybrid models) are left out. Raises EmolabError without site "head", for emotions
    that the means lack, and for fewer than two queries.
    """
    ev = vectors.get("head").double().numpy()
    missing = [e for e in vectors.emotions if e not in set(means.index["condition"])]
    if missing:
        raise EmolabError(f"the means hold no answer under {', '.join(missing)}; pass those that the vectors came from")
    halves = split_half(means, site="head", W_O=W_O, groups=groups, n_splits=n_splits, seed=seed)
    probes = probe_accuracy(means, test=test, site="head", groups=groups, probes=("centroid",), seed=seed)
    key = ["layer", "head", "emotion"]
    halves, probes = (table.astype({"head": int}).set_index(key) for table in (halves, probes))
    of_layer = ev.sum(2)  # attention's vector
    direct = direct_shares(vectors)
    rows = []
    for layer, head in np.ndindex(ev.shape[1:3]):
        if not W_O[layer].any():  # a hybrid model's layer without heads
            continue
        for e, emotion in enumerate(vectors.emotions):
            v = ev[e, layer, head]
            row = layer, head, head_name(layer, head), emotion
            rows.append((*row, np.linalg.norm(v), _share(v, of_layer[e, layer]), direct[e, layer, head]))
    table = pd.DataFrame(rows, columns=["layer", "head", "name", "emotion", "norm", "contribution", "direct"])
    table = table.join(halves[["cosine"]].set_axis(["split_half"], axis=1), on=key)
    table = table.join(probes[["accuracy", "chance", "p"]].set_axis(["probe", "chance", "probe_p"], axis=1), on=key)
    return noted(table, means.meta, n=counted(means.index), seed=seed, params={"n_splits": n_splits})


def head_cosines(vectors: EmotionVectors) -> pd.DataFrame:
    """By what the vectors of heads are alike, by layer: by their head, or by their emotion?

    >>> head_cosines(vectors).groupby("alike")["cosine"].mean()

    Mean cosine of two vectors of a layer that share their `alike`: "head" (one head, two emotions), "emotion" (two
    heads, one emotion) or "neither". `lo, hi`: 95 % interval over heads. `random`: 95 % of such means of random
    directions lie between minus and plus this, 1.96 / sqrt(d_model x pairs). In specific parts of k emotions "head" is
    near -1/(k-1) whatever the model does.

    Returns:
        One row per layer and kind: `layer, alike, cosine, lo, hi, random`. Heads that write nothing are left out.

    Raises:
        EmolabError: vectors of a single emotion, or without site "head".
    """
    x = vectors.get("head").double().numpy()
    k, n_layers, n_heads, d_model = x.shape
    if k < 2:
        raise EmolabError(f"heads are compared between emotions; these vectors hold {', '.join(vectors.emotions)}")
    unit = unit_rows(x)
    same_emotion, same_head = np.eye(k, dtype=bool)[:, None, :, None], np.eye(n_heads, dtype=bool)[None, :, None, :]
    kinds = {"head": same_head & ~same_emotion, "emotion": same_emotion & ~same_head}
    kinds["neither"] = ~same_head & ~same_emotion
    rows = []
    for layer in range(n_layers):
        cosine = np.einsum("ehd,fgd->ehfg", unit[:, layer], unit[:, layer])
        for alike, pairs in kinds.items():
            of_kind = np.where(pairs, cosine, np.nan).swapaxes(0, 1).reshape(n_heads, -1)
            known = np.isfinite(of_kind)
            if not known.any():  # a layer without heads, or with one
                continue
            _, lo, hi = bootstrap_ci(np.nanmean(of_kind[known.any(1)], axis=1), np.mean)
            random = 1.96 / np.sqrt(d_model * known.sum() / 2)  # each pair stands there twice
            rows.append((layer, alike, float(np.nanmean(of_kind)), float(lo), float(hi), random))
    table = pd.DataFrame(rows, columns=["layer", "alike", "cosine", "lo", "hi", "random"])
    params = {"site": "head", "part": vectors.meta.get("part", "whole")}
    return noted(table, vectors.meta, n=f"{n_heads} heads, {k} emotions", params=params)


def embed_heads(vectors: EmotionVectors, *, seed: int = 0) -> pd.DataFrame:
    """UMAP of unit head vectors, one point per head and emotion.

    >>> embed_heads(vectors)[["name", "emotion", "x", "y"]]

    Columns layer, head, name, emotion, norm, x, y, and `trustworthiness` of the map (scikit-learn; 1 is perfect, about
    0.5 is chance). Only directions count (cosine). Heads that write nothing are left out. Distances between clusters of
    a UMAP are no evidence: `head_cosines` is. Raises EmolabError for fewer than five points.
    """
    from sklearn.manifold import trustworthiness

    x = vectors.get("head").double()
    norm = x.norm(dim=-1)
    writes = (norm > 1e-9 * norm.max()).numpy()
    points = torch.nn.functional.normalize(x, dim=-1)[torch.from_numpy(writes)].numpy()
    emotion, layer, head = np.nonzero(writes)
    xy = project(points, ["umap"], seed=seed, metric="cosine", n_neighbors=10)["umap"]
    k = max(1, min(10, (len(points) - 1) // 2))
    table = pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "name": [head_name(*place) for place in np.argwhere(writes)[:, 1:]],
            "emotion": [vectors.emotions[e] for e in emotion],
            "norm": norm.numpy()[writes],
            "x": xy[:, 0],
            "y": xy[:, 1],
            "trustworthiness": trustworthiness(points, xy, n_neighbors=k, metric="cosine"),
        }
    )
    params = {"site": "head", "part": vectors.meta.get("part", "whole")}
    return noted(table, vectors.meta, n=f"{len(points)} head vectors", seed=seed, params=params)


def head_summary(effects: pd.DataFrame, curve: pd.DataFrame, *, top: int = 10) -> dict:
    """The numbers of `emolab.head_effects` and `emolab.ablation_curve` that a run's summary holds.

    >>> head_summary(effects, curve)["top"]

    `top`: [[layer, head, emotion, effect, lo, hi, q]] of the largest shares with q below 0.05.
    `ablation_curve`: what is kept, mean over emotions, by `ks`: `ranked, ranked_lo, ranked_hi, random_mean, random_lo,
    random_hi`. `apart`: for each emotion the k at which its interval lies below that of random heads. `screening`: how
    well attribution told what tests found, and how far the heads it chose exceed random ones (`head_effects`); {} where
    the table knows not.
    """
    need_table(effects, ("layer", "head", "emotion", "effect", "lo", "hi", "q", "share"), "emolab.head_effects")
    need_table(curve, ("emotion", "order", "k", "kept", "lo", "hi"), "emolab.ablation_curve")
    best = effects[effects["q"] < LEVEL].nlargest(top, "share")
    numbers = best[["effect", "lo", "hi", "q"]].round(4).to_numpy(float).tolist()
    places = best[["layer", "head", "emotion"]].to_numpy(object).tolist()
    wide = curve.pivot(index=["emotion", "k"], columns="order", values=["kept", "lo", "hi"])
    mean = wide.loc["all"].round(4)
    kept = {
        "ks": mean.index.tolist(),
        "ranked": mean["kept", "ranked"].tolist(),
        "ranked_lo": mean["lo", "ranked"].tolist(),
        "ranked_hi": mean["hi", "ranked"].tolist(),
        "random_mean": mean["kept", "random_heads"].tolist(),
        "random_lo": mean["lo", "random_heads"].tolist(),
        "random_hi": mean["hi", "random_heads"].tolist(),
    }
    below = wide["hi", "ranked"] < wide["lo", "random_heads"]
    emotions = [e for e in dict.fromkeys(curve["emotion"]) if e != "all"]
    return {
        "top": [place + values for place, values in zip(places, numbers, strict=True)],
        "ablation_curve": kept,
        "apart": {e: [int(k) for k in below[e].index[below[e]]] for e in emotions},
        "screening": effects.attrs.get("screening", {}),
    }


def direct_shares(vectors: EmotionVectors) -> Float[np.ndarray, "emotion layer head"]:
    """The share of the last layer's vector that each head writes straight into it; NaN without site "resid"."""
    heads = vectors.get("head").double().numpy()
    if "resid" not in vectors.sites:
        return np.full(heads.shape[:3], np.nan)
    last = vectors.get("resid").double().numpy()[:, -1]
    return np.array([[[_share(v, last[e]) for v in layer] for layer in heads[e]] for e in range(len(heads))])


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    """How much of a vector another one is, by projection: 1 for itself, NaN of nothing."""
    size = float(whole @ whole)
    return float(part @ whole) / size if size > 1e-18 else float("nan")
