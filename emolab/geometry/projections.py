"""Maps in two dimensions: PCA beside UMAP of the responses.

Maps come with trustworthiness, silhouette and a label-permutation p: distances between clusters of a UMAP are no
evidence. UMAP repeats itself bit for bit on one machine (`seed`, one thread); another machine may draw another map.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.spatial.distance import pdist, squareform

from emolab.base.errors import EmolabError, ResourceError
from emolab.base.tables import noted, some_layers
from emolab.geometry.resampling import against_null, counted, flat_layer, permuted_labels, site_values
from emolab.vectors.activations import ResponseMeans

METHODS = ("pca", "umap")


def embed(
    means: ResponseMeans,
    *,
    site: str = "resid",
    layers: Sequence[int] | None = None,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
) -> pd.DataFrame:
    """PCA and UMAP of the responses at each layer: one row a point, `query_id, condition, layer, method, x, y`.

    >>> embed(means, layers=[5]).groupby("method").size()

    layers: default at most four, evenly spread. Site "head": all heads' mean z side by side. The first UMAP of a
    session takes many seconds (compilation). Raises EmolabError for an unknown site, layer or method, and fewer than
    five responses.
    """
    layers = some_layers(site_values(means, site).shape[1], layers, most=4)
    frames = []
    for layer in layers:
        for method, xy in project(flat_layer(means, site, layer), methods, seed=seed).items():
            answers = means.index[["query_id", "condition"]].reset_index(drop=True)
            frames.append(answers.assign(layer=layer, method=method, x=xy[:, 0], y=xy[:, 1]))
    params = {"site": site, "layers": layers, "methods": list(methods)}
    return noted(pd.concat(frames, ignore_index=True), means.meta, n=counted(means.index), seed=seed, params=params)


def embed_scores(
    means: ResponseMeans, points: pd.DataFrame, *, site: str = "resid", n_permutations: int = 500, seed: int = 0
) -> pd.DataFrame:
    """What the maps of `embed` are worth, beside the full space that they were made from.

    >>> embed_scores(means, embed(means, methods=("pca",))).query("method == 'full'")

    One row a layer and method: `layer, method, trustworthiness, silhouette, null_mean, null_hi, p`. Trustworthiness:
    are neighbours on the map neighbours in the full space (1: all; 15 neighbours)? Silhouette: are conditions apart (-1
    to 1)? p: the share of shufflings of conditions within each query that reach it. Method "full" is the silhouette in
    all dimensions, where no map could flatter it. Raises EmolabError for points of other responses.
    """
    from sklearn.manifold import trustworthiness

    shuffled = permuted_labels(means.index, n_permutations, np.random.default_rng(seed))
    labellings = np.vstack([means.index["condition"].to_numpy(dtype=object), shuffled]).astype(str)
    n_neighbors = max(1, min(15, (len(means) - 1) // 2))
    rows = []
    for layer in sorted(points["layer"].unique()):
        full = flat_layer(means, site, layer)
        spaces = {"full": full}
        for method, xy in points[points["layer"] == layer].groupby("method"):
            if not all(list(xy[column]) == list(means.index[column]) for column in ("query_id", "condition")):
                raise EmolabError("these points are not of these responses; call embed with the same means")
            spaces[str(method)] = xy[["x", "y"]].to_numpy()
        for method, space in spaces.items():
            silhouette, *null = _silhouettes(space, labellings)
            trust = trustworthiness(full, space, n_neighbors=n_neighbors)
            rows.append((layer, method, trust, silhouette, *against_null(silhouette, null)))
    columns = ["layer", "method", "trustworthiness", "silhouette", "null_mean", "null_hi", "p"]
    params = {"site": site, "n_permutations": n_permutations}
    return noted(pd.DataFrame(rows, columns=columns), means.meta, n=counted(means.index), seed=seed, params=params)


def project(
    x: Float[np.ndarray, "point d"],
    methods: Sequence[str] = METHODS,
    *,
    seed: int = 0,
    metric: str = "euclidean",
    n_neighbors: int = 15,
) -> dict[str, Float[np.ndarray, "point 2"]]:
    """{method: points on a map}: the one PCA and the one UMAP, of responses as of heads; metric: that of the UMAP.

    >>> project(np.random.default_rng(0).normal(size=(20, 8)), ["pca"])["pca"].shape
    (20, 2)
    """
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not len(methods):
        raise EmolabError(f"unknown method {unknown[:1]}; expected {' and/or '.join(METHODS)}")
    if len(x) < 5:
        raise EmolabError(f"{len(x)} points are too few for a map, which needs at least five")
    maps = {}
    if "pca" in methods:
        u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
        xy = u[:, :2] * s[:2]
        sign = np.where(xy[np.abs(xy).argmax(0), [0, 1]] < 0, -1, 1)  # else up to the linear algebra library
        maps["pca"] = xy * sign
    if "umap" in methods:
        from sklearn.metrics import pairwise_distances

        # Sought here: UMAP's own search would first be compiled, for ten seconds in every process.
        distance, few = pairwise_distances(x, metric=metric), len(x) <= 15
        near = np.argsort(distance, axis=1, kind="stable")[:, : min(n_neighbors, len(x) - 1)]
        with warnings.catch_warnings(action="ignore"), _threads_kept():
            reducer = umap_class()(
                n_neighbors=near.shape[1],
                metric=metric,
                init="random" if few else "spectral",  # spectral needs more points than components
                random_state=seed,
                n_jobs=1,
                precomputed_knn=(near, np.take_along_axis(distance, near, axis=1)),
            )
            maps["umap"] = np.asarray(reducer.fit_transform(x), dtype=np.float64)
    return maps


def umap_class() -> Any:
    """UMAP's class; where numba may write beside neither UMAP nor the user's files, with a cache that ends with Python.

    Raises ResourceError where there is no temporary folder either.
    """
    import numba.core.config

    try:
        from umap import UMAP  # slow; says that TensorFlow is not installed
    except RuntimeError as error:  # "cannot cache function", as UMAP asks of some
        try:
            folder = tempfile.mkdtemp(prefix="emolab-numba-")
            numba.core.config.CACHE_DIR = folder  # pyright: ignore[reportAttributeAccessIssue] (read when it is used)
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            from umap import UMAP
        except (RuntimeError, OSError):
            raise ResourceError(
                f"UMAP cannot be used here: numba has no folder for what it compiles ({error}); set the variable "
                'NUMBA_CACHE_DIR to one that can be written, or take methods=("pca",)'
            ) from error
    return UMAP


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """numba sets OpenMP's number of threads anew when it begins, and with it torch's: all later sums would differ."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _silhouettes(x: np.ndarray, labellings: np.ndarray) -> Float[np.ndarray, " labelling"]:
    """Mean silhouette of the same rows under each labelling [labelling, row]; NaN for a single label.

    As scikit-learn's `silhouette_score`, which takes nine times as long: half a minute for the layers of a study.
    """
    names, codes = np.unique(labellings, return_inverse=True)
    distance, row = squareform(pdist(x)), np.arange(len(x))
    values = np.full(len(codes), np.nan)
    for number, code in enumerate(codes if len(names) > 1 else []):
        member = np.eye(len(names))[code]
        count, total = member.sum(0), distance @ member  # total: [row, label]
        own = total[row, code] / np.maximum(count[code] - 1, 1)
        mean = total / count
        mean[row, code] = np.inf
        other = mean.min(1)
        size = np.maximum(own, other)
        value = np.where((count[code] > 1) & (size > 0), (other - own) / np.where(size > 0, size, 1), 0)
        values[number] = value.mean()
    return values
