"""Geometry of emotion vectors and of the responses behind them, layer by layer.

Everything is computed from stored vectors and response means; no model is run. Maps in two dimensions: `projections`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, need_number, need_vectors
from emolab.base.labels import NEUTRAL
from emolab.base.stats import expanded
from emolab.base.tables import noted, some_layers
from emolab.geometry.resampling import (
    bootstrap_counts,
    contrasts,
    counted,
    draw_weights,
    flat_layer,
    grams,
    label_weights,
    middle,
    need_part,
    permuted_labels,
    query_groups,
    site_values,
)
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.vectors import EmotionVectors


def part_array(
    vectors: EmotionVectors, site: str = "resid", part: str = "whole"
) -> Float[np.ndarray, "emotion layer d_model"]:
    """One vector an emotion and layer, float64; part "whole" or "specific". EmolabError for site "head"."""
    need_vectors(vectors)
    if site == "head":
        raise EmolabError('one vector a layer is shown here: take site "resid", "attn" or "mlp" (heads sum to "attn")')
    need_part(part)
    return (vectors.part("specific") if part == "specific" else vectors).get(site).double().numpy()


def cosines(
    vectors: EmotionVectors, *, site: str = "resid", part: str = "whole"
) -> Float[np.ndarray, "layer emotion emotion"]:
    """Cosine between all emotions at every layer; NaN where a vector is zero.

    >>> cosines(vectors).shape
    (30, 5, 5)
    """
    unit = unit_rows(part_array(vectors, site, part))
    return np.clip(np.einsum("ild,jld->lij", unit, unit), -1.0, 1.0)


def tidy(axes: Mapping[str, Sequence], values: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Arrays with these axes as a table, one row for each cell.

    >>> tidy({"layer": [0], "emotion": ["joy", "fear"]}, {"norm": np.array([[1.0, 2.0]])})["emotion"].tolist()
    ['joy', 'fear']
    """
    index = pd.MultiIndex.from_product(list(axes.values()), names=list(axes))
    return pd.DataFrame({name: array.ravel() for name, array in values.items()}, index=index).reset_index()


def cosine_matrix(
    vectors: EmotionVectors, *, site: str = "resid", layer: int = -1, part: str = "whole"
) -> pd.DataFrame:
    """Cosine between all emotions at one layer (default the last), as a table [emotion, emotion] with labels.

    >>> cosine_matrix(vectors, layer=3).loc["joy", "fear"]

    The specific parts of k emotions sum to zero: their mean cosine lies near -1/(k-1), whatever the model does.
    """
    (layer,) = some_layers(vectors.n_layers, layer)
    return pd.DataFrame(cosines(vectors, site=site, part=part)[layer], vectors.emotions, vectors.emotions)


def cka(means: ResponseMeans, *, site: str = "resid") -> pd.DataFrame:
    """Linear CKA [layer, layer]: 1 for a rotated or scaled copy, 0 expected of unrelated activations.

    >>> cka(means).loc[0, 5]

    With the unbiased estimator of HSIC (Song et al. 2012; CKA: Kornblith et al. 2019), since the plain one lies far
    above 0 for unrelated activations where there are fewer responses than dimensions. Raises EmolabError for fewer
    than four responses.
    """
    values = site_values(means, site)
    n = len(values)
    if n < 4:
        raise EmolabError(f"CKA needs at least four responses, not {n}")
    layers = [flat_layer(means, site, layer) for layer in range(values.shape[1])]
    centred = [x - x.mean(0) for x in layers]
    stack = np.stack([u_centred(x @ x.T).ravel() for x in centred])
    products = stack @ stack.T
    size = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        result = pd.DataFrame(np.clip(products / np.outer(size, size), -1, 1))
    result.index.name = result.columns.name = "layer"
    return noted(result, means.meta, n=counted(means.index), params={"site": site})


def u_centred(gram: np.ndarray) -> np.ndarray:
    """U-centred Gram matrix: inner products of two of them are unbiased estimates of HSIC."""
    n = len(gram)
    gram = gram - np.diag(np.diag(gram))
    row = gram.sum(0) / (n - 2)
    gram = gram - row[:, None] - row[None, :] + gram.sum() / ((n - 1) * (n - 2))
    return gram - np.diag(np.diag(gram))


def shared_energy(
    means: ResponseMeans,
    *,
    site: str = "resid",
    W_O: Float[Tensor, "layer head d_head d_model"] | None = None,
    groups: pd.Series | None = None,
    n_permutations: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of the vectors' energy that all k emotions have in common: k ||base||^2 / sum of ||EV_e||^2, by layer.

    >>> shared_energy(means)[["layer", "share", "lo", "hi", "null_mean"]]

    Two yardsticks. `floor` 1/k is the share of orthogonal vectors of equal norm (opposed ones go below). The null
    permutes the emotion labels within each query and leaves neutral as it is: then emotions differ by chance alone, and
    the share is near 1, so a share below the null says that there is something specific. `p` is the share of
    permutations that reach as low.

    Args:
        W_O: `emolab.models.output_weights(model)`, for site "head".
        groups: Series query_id -> situation, drawn as wholes in the bootstrap; default every query by itself.

    Returns:
        One row a layer (and head): `layer, head, share, lo, hi, null_mean, null_lo, null_hi, p, floor`; `lo, hi` are
        the 95 % bootstrap interval over queries. Noise in the neutral mean is in all vectors and raises the share;
        noise of each emotion's own lowers it.
    """
    emotions, weights = contrasts(means.index)
    need_number("n_permutations", n_permutations, 1, whole=True)
    rng = np.random.default_rng(seed)
    members = query_groups(means.index, groups)
    drawn = draw_weights(weights, bootstrap_counts(members, 1000, rng))
    shuffled = label_weights(means.index, permuted_labels(means.index, n_permutations, rng, keep_neutral=True))
    rows = []
    for layer, head, gram in grams(means, site, W_O):
        share = float(_share(weights[None], gram)[0])
        null = _share(shuffled, gram)
        p = (1 + (null <= share + 1e-12).sum()) / (1 + n_permutations)
        low, high = expanded(_share(drawn, gram), members.max() + 1)
        rows.append((layer, head, share, low, high, null.mean(), *middle(null), p))
    columns = ["layer", "head", "share", "lo", "hi", "null_mean", "null_lo", "null_hi", "p"]
    table = pd.DataFrame(rows, columns=columns).assign(floor=1 / len(emotions)).astype({"head": "Int64"})
    params = {"site": site, "n_permutations": n_permutations, "bootstrap": 1000}
    return noted(table, means.meta, n=counted(means.index), seed=seed, params=params)


def _share(weights: Float[np.ndarray, "draw emotion row"], gram: np.ndarray) -> Float[np.ndarray, " draw"]:
    k = weights.shape[1]
    base = weights.mean(1)
    shared = k * np.einsum("br,br->b", base @ gram, base)
    total = np.einsum("ber,ber->b", weights @ gram, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return shared / total


def denoise(
    vectors: EmotionVectors,
    means: ResponseMeans,
    *,
    variance: float = 0.5,
    W_O: Float[Tensor, "layer head d_head d_model"] | None = None,
) -> EmotionVectors:
    """Project out the principal components of neutral responses that hold a share of their variance.

    >>> clean = denoise(vectors, means); clean.meta["denoised"]["resid"]

    What varies between neutral texts (topic, length) is no emotion (Sofroniew et al. 2026, who take half). The fewest
    components that reach the share are removed at each site and layer; how many is noted in `meta["denoised"]`.
    Site "head" is left out without W_O (`output_weights(model)`); with it, heads no longer sum to `attn`.

    Raises EmolabError for a share outside 0 to 1, fewer than three neutral responses, or a site that `means` lacks.
    """
    neutral = (means.index["condition"] == NEUTRAL).to_numpy()
    need_number("variance", variance, 0, 1)
    if neutral.sum() < 3:
        raise EmolabError(f"cannot denoise with {neutral.sum()} neutral responses; expected at least three")
    data, removed = {}, {}
    for site in [site for site in vectors.sites if site != "head" or W_O is not None]:
        x = site_values(means, site)[neutral].astype(np.float64)
        data[site], removed[site] = vectors.data[site].double().clone(), []
        for place in np.ndindex(x.shape[1:-1]):  # layer, or layer and head
            here = (slice(None), *place)
            out = x[here]
            if W_O is not None and site == "head":
                out = out @ W_O[place].to("cpu", torch.float64).numpy()
            basis = _leading(out, variance)
            data[site][here] -= data[site][here] @ basis @ basis.T
            removed[site].append(basis.shape[1])
    steps = [*vectors.meta.get("steps", []), f"denoised {variance:g}"]
    meta = {**vectors.meta, "sites": list(data), "steps": steps, "denoised": removed}
    return dataclasses.replace(vectors, data=data, meta=meta)


def _leading(x: np.ndarray, variance: float) -> Float[Tensor, "d component"]:
    """The fewest principal directions of the rows that hold the share of their variance."""
    _, s, directions = np.linalg.svd(x - x.mean(0), full_matrices=False)
    energy = np.cumsum(s**2)
    n = 0 if variance == 0 or energy[-1] == 0 else int((energy < variance * energy[-1] * (1 - 1e-12)).sum()) + 1
    return torch.from_numpy(directions[:n].T.copy())


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Vectors along the last axis at length one; NaN where they are zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)


def vector_agreement(
    vectors: EmotionVectors, others: EmotionVectors, *, site: str = "resid", part: str = "whole"
) -> pd.DataFrame:
    """Cosine between two sets of vectors of the same emotions, layer by layer, beside that of different emotions.

    >>> vector_agreement(ours, theirs, site="attn", part="specific").groupby("layer")[["cosine", "mismatched"]].mean()

    Args:
        site: one that both hold: "resid", "attn" or "mlp".
        part: "whole", or "specific": without the mean over the emotions that both hold.

    Returns:
        One row an emotion and layer: `emotion, layer, cosine`; `mismatched`, the mean cosine with the vectors of the
        other emotions in the other set: what any emotion would give (NaN with a single one); `random`, the size that
        the cosine of random directions stays below in 95 % of cases, 1.96/sqrt(d_model). NaN where a vector is zero.

    Raises:
        EmolabError: no emotion in common, other shapes, a site that either lacks, and site "head".
    """
    need_part(part)
    emotions = [emotion for emotion in vectors.emotions if emotion in others.emotions]
    ours, theirs = part_array(vectors, site), part_array(others, site)
    if not emotions or ours.shape[1:] != theirs.shape[1:]:
        shapes = f"{', '.join(vectors.emotions)} {ours.shape[1:]} with {', '.join(others.emotions)} {theirs.shape[1:]}"
        raise EmolabError(f"cannot compare {shapes}; expected an emotion in common and equal (layers, d_model)")
    ours = ours[[vectors.emotions.index(e) for e in emotions]]
    theirs = theirs[[others.emotions.index(e) for e in emotions]]
    if part == "specific":  # without the mean over the same emotions, whatever else either set holds
        ours, theirs = ours - ours.mean(0), theirs - theirs.mean(0)
    cosine = np.clip(np.einsum("eld,fld->lef", unit_rows(ours), unit_rows(theirs)), -1, 1)
    k, n_layers, d_model = ours.shape
    same = np.einsum("lee->el", cosine)
    mismatched = (cosine.sum(2).T - same) / (k - 1) if k > 1 else np.full_like(same, np.nan)
    axes = {"emotion": emotions, "layer": range(n_layers)}
    table = tidy(axes, {"cosine": same, "mismatched": mismatched}).assign(random=1.96 / np.sqrt(d_model))
    params = {"site": site, "part": part, "other": others.meta.get("model")}
    return noted(table, vectors.meta, n=f"{k} emotions", params=params)
