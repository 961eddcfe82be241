"""Control vectors: what an emotion vector must be compared with before its effect means anything.

>>> from emolab.vectors.controls import random_like, shuffled_like
>>> control = random_like(vectors, seed=0)           # random directions of equal norm
>>> control = shuffled_like(vectors, seed=0)         # from the same means with their labels shuffled, of equal norm
>>> control = other_like(vectors, {"joy": "fear"})   # the vector of another emotion, as long as joy's
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, need_number
from emolab.base.labels import NEUTRAL, order
from emolab.base.storage import digest
from emolab.models.model import Model
from emolab.models.sites import output_weights
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.vectors import EmotionVectors, match_norm, vectors_from_means

DRAWN = 3  # random (or shuffled) vectors of a run, which its queries take in turn
_SAME = ("corpus_hash", "fingerprint", "token_rule")  # what means and the vectors of them have in common


def random_like(vectors: EmotionVectors, *, seed: int = 0) -> EmotionVectors:
    """Gaussian directions with the norm of `vectors` for every emotion, layer (and head)."""
    need_number("seed", seed, whole=True)
    # Not the plain seed: vectors that someone drew with the same one would be their own control.
    generator = torch.Generator().manual_seed(int(digest(["random control", str(seed)])[:15], 16))
    # The same numbers whatever torch's default dtype and device are.
    data = {
        site: match_norm(torch.randn(x.shape, generator=generator, dtype=torch.float32, device="cpu"), like=x)
        for site, x in vectors.data.items()
    }
    meta = {**vectors.meta, "control": "random", "seed": seed}
    return EmotionVectors(data, vectors.emotions, vectors.resid_norm, meta)


def beside_random(vectors: EmotionVectors, *, seed: int = 0) -> EmotionVectors:
    """The vectors and, as "random joy", a random direction of each one's norm: one forward pass reads all.

    >>> beside_random(vectors.select(["joy"])).emotions
    ('joy', 'random joy')
    """
    random = random_like(vectors, seed=seed)
    data = {site: torch.cat([x, random.data[site]]) for site, x in vectors.data.items()}
    emotions = (*vectors.emotions, *(f"random {emotion}" for emotion in vectors.emotions))
    return replace(vectors, data=data, emotions=emotions)


def shuffled_like(vectors: EmotionVectors, *, model: Model | None = None, seed: int = 0) -> EmotionVectors:
    """Vectors from the same response means with the conditions of each query shuffled, brought to equal norm.

    They keep what responses have in common (topic, length, wording) and lose what goes with the label. Of vectors that
    `select` took out of more, the labels of all responses are shuffled, those of labels left out, too. model: needed
    for site "head" alone, which is left out without it. Raises EmolabError where the means that the vectors came from
    are not at hand: `extract_vectors` keeps them, and `load` finds them in the folder of the vectors' file.
    """
    means = means_of(vectors)
    rng = np.random.default_rng(seed)
    condition = means.index["condition"].to_numpy(dtype=object, copy=True)
    groups = list(means.index.groupby("query_id").indices.values())
    if max(map(len, groups)) == 1:  # texts without queries: one pool
        groups = [np.arange(len(condition))]
    for rows in groups:
        condition[rows] = rng.permutation(condition[rows])
    sites = [site for site in vectors.sites if site != "head" or model is not None]
    if not sites:
        raise EmolabError("shuffled labels for heads need their output weights; pass model= to shuffled_like")
    W_O = output_weights(model) if model is not None and "head" in sites else None
    shuffled = vectors_from_means(replace(means, index=means.index.assign(condition=condition)), W_O=W_O, sites=sites)
    # Labels of a user's own come in the order of the responses, which shuffling has changed.
    shuffled = shuffled.select([e for e in order(means.index["condition"]) if e != NEUTRAL])
    meta, part = vectors.meta, vectors.meta.get("part", "whole")
    if "selected" in meta:  # a part may have been taken before, among all labels, or since, among these
        shuffled = shuffled.part(meta["selected_part"]).select(meta["selected"])
    if part != shuffled.meta["part"]:
        shuffled = shuffled.part(part)
    data = {site: match_norm(shuffled.data[site], vectors.data[site]) for site in sites}
    meta = {**vectors.meta, "control": "shuffled", "seed": seed}
    return EmotionVectors(data, vectors.emotions, vectors.resid_norm, meta)


def drawn_like(
    vectors: EmotionVectors, control: str, *, model: Model | None = None, seed: int = 0, n: int = DRAWN
) -> dict[int, EmotionVectors]:
    """{seed: vectors} of a control that is drawn ("random" or "shuffled"): n of them.

    >>> list(drawn_like(vectors, "random", seed=7))
    [7, 8, 9]
    """
    seeds = range(seed, seed + n)
    if control == "random":
        return {number: random_like(vectors, seed=number) for number in seeds}
    return {number: shuffled_like(vectors, model=model, seed=number) for number in seeds}


def other_like(vectors: EmotionVectors, others: Mapping[str, str]) -> EmotionVectors:
    """Vectors of other emotions under these names, with their norm at every layer (and head): {"joy": "fear"}.

    The sharpest control: it steers to an emotion, only not to this one. Raises EmolabError for an unknown emotion and
    for one that would control itself.
    """
    if any(emotion == other for emotion, other in others.items()):
        raise EmolabError(
            f"others are {dict(others)!r}; expected other ones of {', '.join(vectors.emotions)} for each emotion"
        )
    steered = [vectors.place(emotion) for emotion in others]
    used = [vectors.place(emotion) for emotion in others.values()]
    data = {site: match_norm(x[used], like=x[steered]) for site, x in vectors.data.items()}
    meta = {**vectors.meta, "control": "other", "others": dict(others)}
    return EmotionVectors(data, tuple(others), vectors.resid_norm, meta)


def match_summed_norm(
    control: EmotionVectors, vectors: EmotionVectors, heads: Mapping[int, Sequence[int]] | None = None
) -> EmotionVectors:
    """The control with its heads scaled together, so that their sum, which steering adds, is as long as the vectors'.

    Heads of equal norm are not enough: those of an emotion point the same way more than random ones do. heads: the sum
    is over these alone, {layer: [heads]}. Emotions that the control lacks are left out of the comparison.
    """
    like = vectors.get("head")[[vectors.place(emotion) for emotion in control.emotions]]
    mask = head_mask(heads, like.shape[1:3])

    def length(x: Tensor) -> Tensor:
        return (x.double() * mask[..., None]).sum(2, keepdim=True).norm(dim=-1, keepdim=True)

    x = control.get("head")
    scaled = x * (length(like) / length(x).clamp_min(1e-30)).float()
    return replace(control, data={**control.data, "head": scaled})


def head_mask(heads: Mapping[int, Sequence[int]] | None, shape: Sequence[int]) -> Float[Tensor, "layer head"]:
    """1 for the heads of {layer: [heads]}, 0 for others; None is every head. shape: [layer, head].

    >>> head_mask({0: [1]}, (2, 2)).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    if heads is None:
        return torch.ones(*shape, dtype=torch.float64, device="cpu")
    mask = torch.zeros(*shape, dtype=torch.float64, device="cpu")
    for layer, chosen in heads.items():
        mask[layer, list(chosen)] = 1
    return mask


def means_of(vectors: EmotionVectors) -> ResponseMeans:
    """The response means that vectors came from; EmolabError where they are not at hand."""
    means = ResponseMeans.load(vectors.means) if isinstance(vectors.means, Path) else vectors.means
    origin = vectors.meta | vectors.meta.get("made_on", {})
    if means is None or any(means.meta.get(key) != origin.get(key) for key in _SAME):
        raise EmolabError(
            "shuffled labels need the response means of these vectors; extract them with extract_vectors(..., "
            'out=folder) and load them from that folder, or leave "shuffled" out of the controls'
        )
    return means
