"""Heads: who carries emotion, described by layer and head. The causal side is in `emolab.heads.effects`.

>>> import emolab
>>> from emolab.models.sites import output_weights
>>> maps = head_maps(vectors, means, W_O=output_weights(model))
>>> maps.query("emotion == 'joy'").nlargest(5, "contribution")
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, need_table
from emolab.base.tables import noted
from emolab.geometry.projections import compiled_umap
from emolab.geometry.reliability import probe_accuracy, split_half
from emolab.geometry.resampling import counted
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.vectors import EmotionVectors

PERMUTATIONS = 1000


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

    vectors and means: with site "head", of the same responses. test: means of other queries, for the probe. groups:
    query_id -> situation; the halves and folds then share no situation (default: no query). Columns, one row a head
    and emotion:

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
    for source, what in ((vectors.sites, "vectors"), (means.sites, "means")):
        if "head" not in source:
            raise EmolabError(f'these {what} hold no site "head", only {", ".join(source)}; collect it too')
    lost = [e for e in vectors.emotions if e not in set(means.index["condition"])]
    if lost:
        raise EmolabError(f"the means hold no answer under {', '.join(lost)}; pass those that the vectors came from")
    halves = split_half(means, site="head", W_O=W_O, groups=groups, n_splits=n_splits, seed=seed)
    options = {"probes": ("centroid",), "n_permutations": PERMUTATIONS, "seed": seed}
    probes = probe_accuracy(means, test=test, site="head", groups=groups, **options)
    key = ["layer", "head", "emotion"]
    halves, probes = (t.assign(head=t["head"].astype(int)).set_index(key) for t in (halves, probes))
    ev = vectors.get("head").double().numpy()
    total = ev.sum(2)
    last = vectors.get("resid").double().numpy()[:, -1] if "resid" in vectors.sites else None
    rows = []
    for layer, head in np.ndindex(ev.shape[1:3]):
        if not W_O[layer].any():  # a hybrid model's layer without heads
            continue
        for e, emotion in enumerate(vectors.emotions):
            v, at = ev[e, layer, head], (layer, head, emotion)
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "emotion": emotion,
                    "norm": float(np.linalg.norm(v)),
                    "contribution": _share(v, total[e, layer]),
                    "direct": _share(v, last[e]) if last is not None else np.nan,
                    "split_half": halves["cosine"][at],
                    "probe": probes["accuracy"][at],
                    "chance": probes["chance"][at],
                    "probe_p": probes["p"][at],
                }
            )
    return noted(pd.DataFrame(rows), means.meta, n=counted(means.index), seed=seed, params={"n_splits": n_splits})


def head_cosines(vectors: EmotionVectors, *, emotion: str) -> pd.DataFrame:
    """Cosines between all heads' vectors of one emotion; rows and columns are named "layer.head".

    >>> head_cosines(vectors, emotion="joy").loc["3.1", "5.0"]

    NaN where a head writes nothing. Heads write into one residual stream, so that cosines across layers mean something.
    """
    x = vectors.get("head", emotion=emotion).double().flatten(0, 1).numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    table = pd.DataFrame(np.clip(unit @ unit.T, -1, 1), _names(vectors), _names(vectors))
    return noted(table, vectors.meta, n=vectors.meta.get("n_responses"), seed=vectors.meta.get("seed"))


def embed_heads(vectors: EmotionVectors, *, seed: int = 0, n_neighbors: int = 10) -> pd.DataFrame:
    """PCA and UMAP of unit head vectors, one point for each head and emotion.

    >>> embed_heads(vectors).query("method == 'pca'")[["layer", "head", "emotion", "x", "y"]]

    Columns layer, head, emotion, norm, method (pca, umap), x, y, and `trustworthiness` of that map (scikit-learn; 1 is
    perfect, about 0.5 is chance). Only directions count (cosine). Heads that write nothing are left out, and the
    UMAP where there are fewer than 6 points. Distances between UMAP clusters are no evidence.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import trustworthiness

    x = vectors.get("head").double()
    norm = x.norm(dim=-1)
    keep = (norm > 1e-9 * norm.max()).numpy()
    points = torch.nn.functional.normalize(x, dim=-1)[torch.from_numpy(keep)].numpy()
    if len(points) < 4:
        raise EmolabError(f"{len(points)} head vectors are too few for a map; it needs at least 4")
    maps = {"pca": PCA(2, random_state=seed).fit_transform(points)}
    if len(points) > 5:
        with warnings.catch_warnings(action="ignore"):
            options = {"metric": "cosine", "random_state": seed, "n_jobs": 1}
            fit = compiled_umap()(n_neighbors=min(n_neighbors, len(points) - 1), **options)
            maps["umap"] = fit.fit_transform(points)
    e, layer, head = np.nonzero(keep)
    where = {"layer": layer, "head": head, "emotion": [vectors.emotions[i] for i in e], "norm": norm.numpy()[keep]}
    k = max(1, min(10, (len(points) - 1) // 2))
    tables = [
        pd.DataFrame(
            where
            | {"method": method, "x": xy[:, 0], "y": xy[:, 1]}
            | {"trustworthiness": trustworthiness(points, xy, n_neighbors=k, metric="cosine")}
        )
        for method, xy in maps.items()
    ]
    return noted(pd.concat(tables, ignore_index=True), vectors.meta, n=f"{len(points)} head vectors", seed=seed)


def head_summary(effects: pd.DataFrame, curve: pd.DataFrame, *, top: int = 10) -> dict:
    """The numbers of `emolab.head_effects` and `emolab.heads.ablation_curve` that a run's summary holds.

    >>> head_summary(effects, curve)["ablation_curve"]["ranked"]

    `top`: [[layer, head, emotion, effect, lo, hi, q]] of the largest shares with q below 0.05. `ablation_curve`: what
    is kept, mean over emotions, by `ks`: `ranked, ranked_lo, ranked_hi, random_mean, random_lo, random_hi`. `apart`:
    for each emotion the k at which its interval lies below that of random heads. `screening`: how well attribution told
    what tests found, and how far the heads it chose exceed random ones (`head_effects`); {} where the table knows not.
    """
    need_table(effects, ("layer", "head", "emotion", "effect", "lo", "hi", "q", "share"), "emolab.head_effects")
    need_table(curve, ("emotion", "order", "k", "kept", "lo", "hi"), "emolab.ablation_curve")
    best = effects[effects["q"] < 0.05].nlargest(top, "share")
    columns = ["layer", "head", "emotion", "effect", "lo", "hi", "q"]
    rows = [[x if isinstance(x, str) else round(float(x), 4) for x in row] for row in best[columns].to_numpy(object)]
    rows = [[int(layer), int(head), *rest] for layer, head, *rest in rows]
    wide = curve.pivot(index=["emotion", "k"], columns="order", values=["kept", "lo", "hi"])
    mean = wide.loc["all"].round(4)
    names = {"ranked": "ranked", "random_heads": "random"}
    found = {"ks": [int(k) for k in mean.index]}
    for order, name in names.items():
        found[name if name == "ranked" else "random_mean"] = mean["kept", order].tolist()
        found |= {f"{name}_{end}": mean[end, order].tolist() for end in ("lo", "hi")}
    below = wide["hi", "ranked"] < wide["lo", "random_heads"]
    emotions = [e for e in dict.fromkeys(curve["emotion"]) if e != "all"]
    apart = {e: [int(k) for k in below[e].index[below[e]]] for e in emotions}
    return {"top": rows, "ablation_curve": found, "apart": apart, "screening": effects.attrs.get("screening", {})}


def _names(vectors: EmotionVectors) -> list[str]:
    _, n_layers, n_heads, _ = vectors.get("head").shape
    return [f"{layer}.{head}" for layer in range(n_layers) for head in range(n_heads)]


def _share(v: np.ndarray, of: np.ndarray) -> float:
    """How much of a vector another one is: 1 for itself, NaN of nothing."""
    size = float(of @ of)
    return float(v @ of) / size if size > 1e-18 else float("nan")
