"""Maps in two dimensions: PCA beside UMAP of the responses, their path through the layers, emotions beside ratings.

>>> from emolab import geometry
>>> points = geometry.embed(means, layers=[0, 2, 5], seed=0)
>>> geometry.embed_scores(means, points)                           # what the maps are worth

Maps come with trustworthiness, silhouette and a label-permutation p: distances between clusters of a UMAP are no
evidence. UMAP repeats itself bit for bit on one machine (`seed`, one thread); another machine may draw another map.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np
import pandas as pd
from jaxtyping import Float

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import NEUTRAL
from emolab.base.tables import noted, some_layers
from emolab.geometry.resampling import counted, permuted_labels, site_values
from emolab.geometry.similarity import part_array
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.vectors import EmotionVectors

# Valence and arousal (1 to 9) of anger, disgusted, fear, joy, sad: ANEW, Bradley & Lang 1999, all subjects.
ANEW = {
    "anger": (2.34, 7.63), "disgust": (2.45, 5.42), "fear": (2.76, 6.96), "joy": (8.60, 7.22), "sadness": (1.61, 4.13),
}  # fmt: skip
METHODS = ("pca", "umap")


def embed(
    means: ResponseMeans,
    *,
    site: str = "resid",
    layers: Sequence[int] | None = None,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
) -> pd.DataFrame:
    """PCA and UMAP of the responses at each layer, one point a response.

    layers: default at most four, evenly spread. Site "head": all heads' mean z side by side. The first UMAP of a
    session takes many seconds (compilation).

    Returns:
        One row a point: `query_id, condition, layer, method, x, y`.

    Raises:
        EmolabError: unknown site, layer or method, or fewer than five responses.

    >>> embed(means, layers=[5]).groupby("method").size()
    """
    layers = some_layers(site_values(means, site).shape[1], layers, most=4)
    frames = []
    for layer in layers:
        for method, xy in _maps(_flat(means, site, layer), methods, seed).items():
            frames.append(_points(means.index, layer, method, xy))
    params = {"site": site, "layers": layers, "methods": list(methods)}
    return noted(pd.concat(frames, ignore_index=True), means.meta, n=counted(means.index), seed=seed, params=params)


def embed_scores(
    means: ResponseMeans, points: pd.DataFrame, *, site: str = "resid", n_permutations: int = 500, seed: int = 0
) -> pd.DataFrame:
    """What the maps of `embed` are worth, beside the full space that they were made from.

    Trustworthiness: are neighbours on the map neighbours in the full space (1: all; 15 neighbours)? Silhouette: are
    conditions apart (-1 to 1)? p: the share of shufflings of conditions within each query that reach it.
    Method "full" is the silhouette in all dimensions, where no map could flatter it.

    Returns:
        One row a layer and method: `layer, method, trustworthiness, silhouette, null_mean, null_hi, p`.

    Raises:
        EmolabError: points of other responses.
    """
    from sklearn.manifold import trustworthiness

    labels, codes = _codes(means.index["condition"].to_numpy(dtype=object))
    shuffled = permuted_labels(means.index, n_permutations, np.random.default_rng(seed))
    null_codes = np.searchsorted(labels, shuffled.astype(str))
    rows = []
    for layer in sorted(points["layer"].unique()):
        at_layer = points[points["layer"] == layer]
        full = _flat(means, site, layer)
        spaces = {"full": full}
        for method, xy in at_layer.groupby("method"):
            if list(xy["query_id"]) != list(means.index["query_id"]) or list(xy["condition"]) != list(
                means.index["condition"]
            ):
                raise EmolabError("these points are not of these responses; call embed with the same means")
            spaces[str(method)] = xy[["x", "y"]].to_numpy()
        for method, space in spaces.items():
            distance = _distances(space)
            found = _silhouette(distance, codes[None], len(labels))[0]
            null = _silhouette(distance, null_codes, len(labels))
            p = (1 + (null >= found - 1e-12).sum()) / (1 + n_permutations)
            k = max(1, min(15, (len(full) - 1) // 2))
            trust = trustworthiness(full, space, n_neighbors=k)
            rows.append((layer, method, trust, found, null.mean(), np.quantile(null, 0.95), p))
    columns = ["layer", "method", "trustworthiness", "silhouette", "null_mean", "null_hi", "p"]
    params = {"site": site, "n_permutations": n_permutations}
    return noted(pd.DataFrame(rows, columns=columns), means.meta, n=counted(means.index), seed=seed, params=params)


def trajectory(
    means: ResponseMeans, *, site: str = "resid", methods: Sequence[str] = METHODS, seed: int = 0
) -> pd.DataFrame:
    """All responses at all layers on one map, so that each emotion draws a path through the layers.

    At each layer the mean of the neutral responses is taken away and the rest divided by the mean norm of the
    residual stream, so that a path shows how responses leave neutral rather than how the stream grows. An illustration;
    the trustworthiness of each map is in `attrs["trustworthiness"]`.

    Returns:
        The columns of `embed`. Raises EmolabError without neutral responses.

    >>> paths = trajectory(means).groupby(["method", "condition", "layer"])[["x", "y"]].median()
    """
    from sklearn.manifold import trustworthiness

    neutral = (means.index["condition"] == NEUTRAL).to_numpy()
    if not neutral.any():
        raise EmolabError("paths start from neutral, and there are no neutral responses")
    n_layers = site_values(means, site).shape[1]
    layers = [_flat(means, site, layer) for layer in range(n_layers)]
    scale = means.resid_norm.astype(np.float64).mean(0)
    stacked = np.concatenate([(x - x[neutral].mean(0)) / s for x, s in zip(layers, scale, strict=True)])
    maps = _maps(stacked, methods, seed)
    n = len(means.index)
    frames = [
        _points(means.index, layer, method, xy[layer * n : (layer + 1) * n])
        for method, xy in maps.items()
        for layer in range(n_layers)
    ]
    table = pd.concat(frames, ignore_index=True)
    k = max(1, min(15, (len(stacked) - 1) // 2))
    table.attrs["trustworthiness"] = {m: float(trustworthiness(stacked, xy, n_neighbors=k)) for m, xy in maps.items()}
    return noted(table, means.meta, n=counted(means.index), seed=seed, params={"site": site})


def affect_plane(
    vectors: EmotionVectors,
    *,
    site: str = "resid",
    layer: int = -1,
    ratings: Mapping[str, tuple[float, float]] = ANEW,
) -> pd.DataFrame:
    """First two principal components of the specific vectors, beside people's ratings of the emotion words.

    A component's sign is arbitrary: PC1 is turned to rise with valence, PC2 with arousal. ratings: {label: (valence,
    arousal)}, default ANEW (Bradley & Lang 1999; 1 to 9). Labels without a rating get NaN.

    Returns:
        One row an emotion: `emotion, pc1, pc2, valence, arousal`. With five emotions this is an illustration, no test.

    >>> plane = affect_plane(vectors, layer=3); affect_scores(plane)
    """
    (layer,) = some_layers(vectors.n_layers, layer)
    x = part_array(vectors, site, "specific")[:, layer]
    if len(x) < 3:
        raise EmolabError(f"a plane needs three emotions; these vectors hold {', '.join(vectors.emotions)}")
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    rated = np.array([ratings.get(e, (np.nan, np.nan)) for e in vectors.emotions], dtype=float)
    pcs = u[:, :2] * s[:2]
    for i in range(2):
        r = _pearson(pcs[:, i], rated[:, i])
        pcs[:, i] *= -1 if r < 0 else 1
    table = pd.DataFrame({"emotion": vectors.emotions, "pc1": pcs[:, 0], "pc2": pcs[:, 1]})
    table = table.assign(valence=rated[:, 0], arousal=rated[:, 1])
    n = f"{len(x)} emotions"
    params = {"site": site, "layer": layer, "ratings": "ANEW, 1 to 9" if ratings is ANEW else ""}
    table = noted(table, vectors.meta, n=n, params=params)
    table.attrs["explained"] = [float(v) for v in s[:2] ** 2 / (s**2).sum()]
    return table


def affect_scores(plane: pd.DataFrame) -> pd.DataFrame:
    """Pearson r of either component with either rating, and p over all orders of the ratings (up to 7 emotions).

    Columns `component, rating, r, p, n`. p is two-sided, and cannot be less than 1/n!: with n = 5 that is 0.008.
    """
    need_table(plane, ("emotion", "pc1", "pc2", "valence", "arousal"), "embedding.affect_plane")
    rows = []
    for component in ("pc1", "pc2"):
        for rating in ("valence", "arousal"):
            rated = plane.dropna(subset=[rating])
            x, y = rated[component].to_numpy(), rated[rating].to_numpy()
            r = _pearson(x, y)
            if len(x) <= 7:
                draws = [y[list(o)] for o in permutations(range(len(y)))]
            else:
                rng = np.random.default_rng(0)
                draws = [rng.permutation(y) for _ in range(5000)]
            p = np.mean([abs(_pearson(x, d)) >= abs(r) - 1e-12 for d in draws]) if np.isfinite(r) else np.nan
            rows.append((component, rating, r, p, len(x)))
    return pd.DataFrame(rows, columns=["component", "rating", "r", "p", "n"])


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    good = np.isfinite(x) & np.isfinite(y)
    if good.sum() < 3 or np.ptp(x[good]) == 0 or np.ptp(y[good]) == 0:
        return float("nan")
    return float(np.corrcoef(x[good], y[good])[0, 1])


def _maps(x: np.ndarray, methods: Sequence[str], seed: int) -> dict[str, Float[np.ndarray, "point 2"]]:
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not len(methods):
        raise EmolabError(f"unknown method {unknown[:1]}; expected {' and/or '.join(METHODS)}")
    if len(x) < 5:
        raise EmolabError(f"a map needs at least five responses, not {len(x)}")
    found = {}
    if "pca" in methods:
        u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
        xy = u[:, :2] * s[:2]
        sign = np.where(xy[np.abs(xy).argmax(0), [0, 1]] < 0, -1, 1)  # else up to the linear algebra library
        found["pca"] = xy * sign
    if "umap" in methods:
        UMAP = compiled_umap()
        few = len(x) <= 15  # spectral initialisation needs more points than components
        with warnings.catch_warnings(action="ignore"), _threads_kept():
            reducer = UMAP(
                n_neighbors=min(15, len(x) - 1), init="random" if few else "spectral", random_state=seed, n_jobs=1
            )
            found["umap"] = np.asarray(reducer.fit_transform(x), dtype=np.float64)
    return found


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """numba sets OpenMP's number of threads anew when it begins, and with it torch's: all later sums would differ."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def compiled_umap():
    """The class UMAP, its compiled functions kept on disk: numba else compiles them anew in every process (20 s)."""
    from numba.core.dispatcher import Dispatcher

    with warnings.catch_warnings(action="ignore"):  # it says at import that TensorFlow is not installed
        from umap import UMAP, layouts, umap_, utils

    for module in (layouts, umap_, utils):
        for function in vars(module).values():
            if isinstance(function, Dispatcher):
                with contextlib.suppress(RuntimeError):  # nowhere to write
                    function.enable_caching()
    return UMAP


def _flat(means: ResponseMeans, site: str, layer: int) -> Float[np.ndarray, "response d"]:
    values = site_values(means, site)
    return values[:, layer].reshape(len(values), -1).astype(np.float64)


def _points(index: pd.DataFrame, layer: int, method: str, xy: np.ndarray) -> pd.DataFrame:
    table = index[["query_id", "condition"]].reset_index(drop=True)
    return table.assign(layer=layer, method=method, x=xy[:, 0], y=xy[:, 1])


def _codes(condition: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(condition.astype(str), return_inverse=True)


def _distances(x: np.ndarray) -> Float[np.ndarray, "row row"]:
    from scipy.spatial.distance import pdist, squareform

    return squareform(pdist(x))


def _silhouette(distance: np.ndarray, codes: np.ndarray, k: int) -> Float[np.ndarray, " draw"]:
    """Mean silhouette for each labelling [draw, row] of the same distances; NaN for a single label."""
    result = np.full(len(codes), np.nan)
    if k < 2:
        return result
    row = np.arange(distance.shape[0])
    for draw, label in enumerate(codes):
        member = np.eye(k)[label]
        count = member.sum(0)
        total = distance @ member  # [row, label]
        own = total[row, label] / np.maximum(count[label] - 1, 1)
        mean = total / np.maximum(count, 1)
        mean[:, count == 0] = np.inf
        mean[row, label] = np.inf
        other = mean.min(1)
        size = np.maximum(own, other)
        value = np.where((count[label] > 1) & (size > 0), (other - own) / np.where(size > 0, size, 1), 0)
        result[draw] = value.mean()
    return result
