"""Response means made of planted directions, so that the truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from emolab.base.labels import EMOTIONS
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.vectors import EmotionVectors

LABELS = ("neutral", "anger", "disgust", "fear", "joy", "sadness")
META = {"model": "made", "revision": None, "fingerprint": "abc", "corpus_hash": "def"}


def make_index(n_queries: int, labels=LABELS, prefix: str = "q") -> pd.DataFrame:
    rows = [(f"{prefix}{q}", "neutral", label, 5) for q in range(n_queries) for label in labels]
    return pd.DataFrame(rows, columns=["query_id", "emotion", "condition", "n_tokens"])


def make_means(planted: np.ndarray, *, n_queries=12, noise=1.0, topic=3.0, seed=0, labels=LABELS, prefix="q", heads=0):
    """planted [emotion, layer, d] is added to the responses under each emotion; topic is a query's own direction."""
    rng = np.random.default_rng(seed)
    index = make_index(n_queries, labels, prefix)
    _, n_layers, d = planted.shape
    whole = {label: planted[i] for i, label in enumerate(x for x in labels if x != "neutral")}
    signal = np.stack([whole.get(c, np.zeros((n_layers, d))) for c in index["condition"]])
    topics = np.repeat(rng.normal(size=(n_queries, n_layers, d)), len(labels), axis=0)
    x = signal + topic * topics + noise * rng.normal(size=(len(index), n_layers, d))
    means = {"resid": x.astype(np.float32)}
    if heads:
        means["head"] = x.reshape(len(index), n_layers, heads, -1).astype(np.float32)
    norm = np.linalg.norm(x, axis=-1).astype(np.float32)
    return ResponseMeans(index, means, norm, dict(META))


def make_vectors(x, emotions=EMOTIONS, site: str = "resid") -> EmotionVectors:
    """Vectors [emotion, layer, d_model] without any answers behind them."""
    return EmotionVectors({site: torch.as_tensor(x)}, emotions, torch.zeros(len(x[0])), {"model": "made"})


def orthogonal(k: int, n_layers: int, d: int, size: float = 4.0) -> np.ndarray:
    """k orthogonal directions of equal norm, [emotion, layer, d]."""
    return np.repeat(size * np.eye(d)[:k, None, :], n_layers, axis=1)
