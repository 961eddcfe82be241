"""What vectors say in words: through the final norm and the unembedding, straight to the vocabulary.

TransformerLens' `logit_readout` (the kernel of its logit lens) reads any d_model vector of a raw model. Its
`direct_logit_attribution` takes prompts, no vectors, and wants compatibility mode, which changes the model's weights:
so attribution to words is worked out here from the same readout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, need_number
from emolab.base.labels import NEUTRAL, order
from emolab.base.tables import some_layers
from emolab.models.finite import need_finite
from emolab.models.model import Model
from emolab.models.prompts import text_ids
from emolab.steering.head_edits import head_pairs
from emolab.vectors.vectors import EmotionVectors, check_vectors


def emotion_tokens(model: Model, responses: pd.DataFrame, *, n: int = 30) -> dict[str, list[int]]:
    """The model's own words for each emotion: token ids far more frequent under it than under all other conditions.

    >>> tokens = emotion_tokens(model, others)
    >>> model.tokenizer.convert_ids_to_tokens(tokens["joy"][:3])

    Weighted log-odds with an informative Dirichlet prior (Monroe et al. 2008): the n tokens with the largest z, above
    1.96, of which at least three quarters (of the rates by condition) fall to this emotion; else words that merely go
    with a style of sentence ("am", "!") would count. Take them from other responses than those under test where there
    are enough. Raises EmolabError where an emotion has no such token.
    """
    conditions = order(responses["condition"])
    if len(conditions) < 2:
        raise EmolabError(
            f"these responses are all {conditions[0]}; words of an emotion need another condition beside it"
        )
    special = set(model.tokenizer.all_special_ids)
    counts = np.zeros((len(conditions), model.bridge.cfg.d_vocab))
    encoded = text_ids(model, list(responses["text"]))
    for condition, ids in zip(responses["condition"], encoded, strict=True):
        np.add.at(counts[conditions.index(condition)], [i for i in ids if i not in special], 1)
    total = counts.sum(0)
    prior = 0.1 * total / len(conditions) + 1e-2  # as much as a tenth of one condition's text
    own, other = counts + prior, total - counts + prior
    n_own, n_other = own.sum(1, keepdims=True), other.sum(1, keepdims=True)
    z = (np.log(own / (n_own - own)) - np.log(other / (n_other - other))) / np.sqrt(1 / own + 1 / other)
    rates = counts / counts.sum(1, keepdims=True).clip(1)
    pure = rates / rates.sum(0).clip(1e-12) >= 0.75
    z = np.where(pure & (z > 1.96), z, -np.inf)
    tokens = {
        condition: [int(i) for i in np.argsort(-row, kind="stable")[:n] if np.isfinite(row[i])]
        for condition, row in zip(conditions, z, strict=True)
        if condition != NEUTRAL
    }
    for emotion, ids in tokens.items():
        if not ids:
            raise EmolabError(
                f"no token is typical of {emotion} in these {len(responses)} responses; collect more, or name words "
                "of your own"
            )
    return tokens


def word_tokens(model: Model, words: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """First token of each word, alone and after a space: {emotion: ids}; tokens of several emotions are left out.

    >>> word_tokens(model, {"joy": ["happy", "glad"], "fear": ["afraid"]})
    """
    tokens: dict[str, set[int]] = {}
    for emotion, group in words.items():
        if isinstance(group, str):
            raise EmolabError(f"words[{emotion!r}] is a text; expected a list of words")
        forms = [form for word in group for form in (word, " " + word)]
        tokens[emotion] = {row[0] for row in text_ids(model, forms) if row and row[0] != model.tokenizer.unk_token_id}
    emotions_of = Counter(i for ids in tokens.values() for i in ids)  # how many
    own = {emotion: sorted(i for i in ids if emotions_of[i] == 1) for emotion, ids in tokens.items()}
    empty = [emotion for emotion, ids in own.items() if not ids]
    if empty:
        raise EmolabError(f"no token of its own begins a word of {', '.join(empty)}; give other words")
    return own


def readout(model: Model, vectors: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
    """Logits that a direction raises (above 0) and lowers: logit lens of v and of -v, half their difference, centred.

    The two runs cancel biases of norm and unembedding, which are no part of the vector; the norm brings v to the length
    of a residual stream, so only its direction counts. Zero vectors give zero.
    """
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    x = vectors.float()
    x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-20) * x.shape[-1] ** 0.5  # so that the norm's epsilon is nothing
    both = torch.stack([x, -x])
    values = logit_readout(model.bridge, both.to(model.device)).values.float().cpu()
    need_finite(model, values, "the logits")
    logits = (values[0] - values[1]) / 2
    return logits - logits.mean(-1, keepdim=True)


def top_words(
    model: Model,
    vectors: EmotionVectors,
    *,
    site: str = "resid",
    layer: int | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
    n: int = 10,
) -> pd.DataFrame:
    """The words that vectors raise and lower most, by the logit lens: of each emotion, its base and its specific part.

    >>> top_words(model, vectors, layer=-1).query("part == 'specific' and rank == 1")
    >>> top_words(model, vectors, site="head", heads=[(3, 1)])

    Args:
        layer: of the vector, default the last one; not with heads.
        heads: with site "head", (layer, head) pairs.

    Returns:
        One row a word: `part` (whole, base, specific), `emotion` ("shared" for the base), `layer`, `head` (-1: none),
        `direction` (raised, lowered), `rank`, `token`, `logit` (centred over the vocabulary, as if the vector alone
        were the residual stream).
    """
    if (site == "head") != (heads is not None) or (heads is not None and layer is not None):
        raise EmolabError('site="head" goes with heads=[(layer, head), ...] and without layer; other sites with layer')
    need_number("n", n, 1, whole=True)
    check_vectors(model, vectors)
    (layer,) = some_layers(vectors.n_layers, -1 if layer is None else layer)
    places = [(layer, -1)] if heads is None else list(head_pairs(heads))
    parts = {"whole": vectors}
    if len(vectors.emotions) > 1:
        parts |= {"shared": vectors.part("shared"), "specific": vectors.part("specific")}
    rows = []
    for part, source in parts.items():
        for layer, head in places:
            logits = readout(model, source.get(site, layer=layer, head=None if head < 0 else head))
            for emotion, logit in zip(source.emotions, logits, strict=True):
                rows += [(part, emotion, layer, head, *word) for word in extreme_words(model, logit, n)]
    columns = ["part", "emotion", "layer", "head", "direction", "rank", "token", "logit"]
    return pd.DataFrame(rows, columns=columns)


def extreme_words(model: Model, logit: Float[Tensor, " vocab"], n: int) -> list[tuple[str, int, str, float]]:
    """(direction, rank, token, logit) of the n tokens that logits raise most, and of those that they lower most."""
    rows = []
    for direction, sign in (("raised", 1), ("lowered", -1)):
        top = (sign * logit).topk(min(n, len(logit)))
        words = model.tokenizer.batch_decode(top.indices[:, None])
        for rank, (word, value) in enumerate(zip(words, top.values.tolist(), strict=True), 1):
            rows.append((direction, rank, word, sign * value))
    return rows
