"""Stand-ins for tests of the pipeline: planted response means, written responses, a sentence encoder of no weight."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch

from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.geometry.projections import project
from emolab.models.prompts import render_prompts
from emolab.vectors.activations import ResponseMeans
from tests import tiny

PLAIN = [w for w in tiny.WORDS if w.isalpha()]


def planted_means(n_queries=24, n_layers=3, d_model=64, *, seed=0, query_size=3.0, noise=0.3, heads=4):
    """Response means with known vectors: (means, [emotion, layer, d_model]).

    h[query, condition] = query + vector[condition] + noise. The vectors are orthonormal, so they share nothing.
    """
    rng = np.random.default_rng(seed)
    truth = np.stack([np.linalg.qr(rng.normal(size=(d_model, d_model)))[0][: len(EMOTIONS)] for _ in range(n_layers)])
    truth = truth.transpose(1, 0, 2)  # [emotion, layer, d_model]
    conditions = [NEUTRAL, *EMOTIONS]
    shift = np.concatenate([np.zeros((1, n_layers, d_model)), truth])
    index, rows = [], []
    for q in range(n_queries):
        query = query_size * rng.normal(size=(n_layers, d_model)) / np.sqrt(d_model)
        for c, condition in enumerate(conditions):
            index.append((f"q-{q:04d}", NEUTRAL, condition, 10))
            rows.append(query + shift[c] + noise * rng.normal(size=(n_layers, d_model)) / np.sqrt(d_model))
    values = np.array(rows, np.float32)
    means = {"resid": values, "attn": values[..., ::-1].copy()}
    means["head"] = values.reshape(len(values), n_layers, heads, -1)
    table = pd.DataFrame(index, columns=["query_id", "emotion", "condition", "n_tokens"])
    meta = {"corpus_hash": f"planted{seed}", "fingerprint": "planted", "model": "planted"}
    return ResponseMeans(table, means, np.full((len(rows), n_layers), 2.0, np.float32), meta), truth


def talker():
    """(model, tokenizer): random weights that always say words; those of `tiny_llama` often answer nothing."""
    hf, tok = tiny.build(tiny.llama_config()), tiny.tokenizer()
    with torch.no_grad():
        hf.lm_head.weight[: len(tok.all_special_ids)] = 0
    return hf, tok


def drawn_once(fig, name: str, alt: str) -> tuple[dict[str, bytes], bytes]:
    """In place of `emolab.plot.save._render`: a small PNG alone."""
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=40)
    return {"svg": b"<svg/>", "pdf": b"", "png": png.getvalue()}, png.getvalue()


def flat_umap(x, methods=("pca", "umap"), **_) -> dict[str, np.ndarray]:
    """In place of `emolab.geometry.projections.project`: PCA for UMAP, which compiles for seconds."""
    return {method: project(x, ["pca"])["pca"] for method in methods}


def queries(n_train=8, n_heldout=4) -> pd.DataFrame:
    """A query table with splits; two queries a situation."""
    rows = []
    for split, n in (("train", n_train), ("heldout", n_heldout)):
        for i in range(n):
            word = PLAIN[(len(rows) * 3 + 5) % len(PLAIN)]
            rows.append((f"u-{len(rows):04d}", f"tell me about the {word} .", NEUTRAL, f"{split}{i // 2}", split))
    return pd.DataFrame(rows, columns=["query_id", "query", "emotion", "situation", "split"])


def responses(model, asked: Sequence[str], emotions: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Written answers, none of them empty, to every query under neutral and every emotion."""
    rng = np.random.default_rng(seed)
    rows = []
    for condition in (NEUTRAL, *emotions):
        for i, (query, prompt) in enumerate(zip(asked, render_prompts(model, list(asked), condition), strict=True)):
            words = list(rng.choice(PLAIN, rng.integers(4, 9)))
            words[1:2] = [] if condition == NEUTRAL else [condition, condition]
            rows.append((f"u-{i:04d}", query, NEUTRAL, condition, prompt, " ".join(words), len(words)))
    columns = ["query_id", "query", "emotion", "condition", "prompt", "text", "n_tokens"]
    return pd.DataFrame(rows, columns=columns)


def embed(texts: Sequence[str]) -> np.ndarray:
    """In place of `judges.judges.embed`: unit sums of one fixed random vector a word; a text of no words is even."""
    found = np.full((len(texts), 64), 0.01)
    for i, text in enumerate(texts):
        for word in text.lower().replace(".", " ").replace(",", " ").split():
            found[i] += _word(word)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@cache
def _word(word: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=64)
