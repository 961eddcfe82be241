"""Valence and arousal of texts, each by measures of different kinds, tried on texts that differ in one of them alone.

>>> affect_measures(["What a lovely, quiet evening.", "Run! The house is on fire!"])[["valence", "arousal"]]
>>> affect_validity().query("measure == 'arousal'")                   # on written calm and excited texts
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from emolab.answers.texts import load_ratings, load_texts
from emolab.base.errors import need_texts
from emolab.base.stats import ridge
from emolab.judges.judges import embed, unread
from emolab.judges.words import words_of

# What each measure is of, and what it reads.
MEASURES = {
    "valence": "valence, read off the sentence embedding",
    "arousal": "arousal, read off the sentence embedding",
    "rated_valence": "valence, mean of the rated words in the text",
    "rated_arousal": "arousal, mean of the rated words in the text",
    "exclamations": "exclamation marks per sentence",
    "sentence_words": "words per sentence",
}
_FRAMES = {"noun": ("I feel {}.", "This is a story about {}.", "There was {} in the room."),
           "adjective": ("I feel {}.", "They were all {}.", "She looked {} when she came in.")}  # fmt: skip
_RIDGE = 0.3  # of the mean squared norm; chosen on the rated words (folds), not on the texts below


def affect_measures(texts: Sequence[str]) -> pd.DataFrame:
    """One row per text: `valence` and `arousal` from 1 to 9, and measures that need no model.

    >>> scored = scored.assign(**affect_measures(scored["text"]).set_index(scored.index))

    `valence` and `arousal` are read off the sentence embedding (`judges.embed`) by a ridge regression fitted to human
    ratings of 103 emotion words in short sentences (`load_ratings`); NaN where the embedder cannot read a text.
    `rated_valence` and `rated_arousal`: the mean rating of those words, NaN in a text without any. `exclamations` and
    `sentence_words`: per sentence. How far each tells what it is of from the other: `affect_validity`.
    """
    texts = need_texts("texts", list(texts))
    ratings = load_ratings().drop_duplicates("word").set_index("word")
    counted = []
    for text in texts:
        words = words_of(text)
        rated = ratings.loc[[word for word in words if word in ratings.index]]
        n_sentences = max(1, len([part for part in re.split(r"[.!?]+", text) if part.strip()]))
        means = (rated["valence"].mean(), rated["arousal"].mean())
        counted.append((*means, text.count("!") / n_sentences, len(words) / n_sentences))
    columns = np.hstack([_read(texts), np.reshape(counted, (len(texts), 4))])
    return pd.DataFrame(columns, columns=list(MEASURES))


def affect_validity() -> pd.DataFrame:
    """How well each measure tells pleasant from unpleasant and excited from calm texts: a row per measure and contrast.

    >>> affect_validity().pivot(index="measure", columns="contrast", values="auc").round(2)

    On `load_texts("affect")`: ten places, each told pleasantly or not, calmly or excitedly. `auc`: how often the text
    of the one kind is above that of the other (.5: by chance), `p` by the Mann-Whitney test; the mean of both halves of
    the other dimension, so that a measure of valence gets nothing for arousal.
    """
    texts = load_texts("affect")
    measures = affect_measures(texts["text"].tolist())
    pleasant, excited = texts["label"].str.startswith("pleasant"), texts["label"].str.endswith("excited")
    rows = []
    for contrast, high, other in (("valence", pleasant, excited), ("arousal", excited, pleasant)):
        for name in MEASURES:
            tests = []
            for half in (other, ~other):
                one, two = (measures.loc[half & side, name].dropna() for side in (high, ~high))
                if len(one) and len(two):
                    test = mannwhitneyu(one, two)
                    tests.append((test.statistic / (len(one) * len(two)), test.pvalue, len(one) + len(two)))
            auc, p, n = np.mean(tests, 0) if tests else (np.nan, np.nan, 0)
            rows.append({"measure": name, "contrast": contrast, "auc": auc, "p": p, "n": int(2 * n)})
    return pd.DataFrame(rows)


def _read(texts: list[str]) -> np.ndarray:
    if not texts:
        return np.empty((0, 2))
    values = _regression().predict(embed(texts).astype(np.float64))
    values[unread(tuple(texts))] = np.nan
    return values


@cache
def _regression() -> Any:
    """From the embedding of a sentence to its valence and arousal."""
    ratings = load_ratings()
    frames = [_FRAMES[form] for form in ratings["form"]]
    sentences = [frame.format(word) for word, some in zip(ratings["word"], frames, strict=True) for frame in some]
    x = embed(sentences).astype(np.float64).reshape(len(ratings), 3, -1).mean(1)
    return ridge(x, ratings[["valence", "arousal"]].to_numpy(), _RIDGE)
