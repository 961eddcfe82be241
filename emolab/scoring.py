"""Score texts: emotion by judges, and beside it topic, fluency, repetition and length, for emotion alone is word soup.

>>> import emolab
>>> table = emolab.score(pd.DataFrame({"text": ["I am so happy!"], "query": ["How was the park?"]}))
>>> table[["p_joy", "adherence", "distinct2", "compression"]]
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from emolab import judges as judging
from emolab.emotions import NEUTRAL
from emolab.errors import EmolabError
from emolab.grid import spoken
from emolab.judges import EmbeddingJudge, ask, words_of
from emolab.models import Model
from emolab.prompts import render_prompts


def score(
    table: pd.DataFrame, *, judges: Any = None, model: Model | None = None, templates: dict[str, str] | None = None
) -> pd.DataFrame:
    """The same rows plus what judges say of each text. Only `text` is needed; `query` for adherence.

    >>> scored = emolab.score(table, model=model)

    Adds for the first judge `p_<label>` and `top` (its most probable label), for further ones `<judge>_p_<label>` and
    `<judge>_top`; `adherence`, the embedding cosine of text and query, and `adherence_shuffled`, its mean over the
    table's other queries (what any text on any topic gets), both NaN without a query; `distinct2`, the share of
    distinct word pairs; `repetition`, the share of words that repeat one of the four before; `compression`, the size
    of the text after zlib over that before, low in loops, where perplexity is low too (compare texts of similar
    length: short ones hardly shrink); `n_words`. With a model: `perplexity` after the plain prompt and, where a column
    `condition` (of responses) or else `emotion` (of a sweep) names one, `perplexity_instructed` after the prompt with
    that instruction, both unsteered (score outside `steered`); `n_tokens`, unless the table has it; and, where the
    table comes from `sweep` or `collect_responses`, `truncated`: whether the text has as many tokens as were allowed.
    The judges' names are kept in attrs["judges"]. Raises EmolabError where `text` is missing or holds something else
    than text, for a model (or a judge that reads queries) without the column `query`, and for two judges of one name.
    """
    if "text" not in table or not all(isinstance(t, str) for t in table["text"]):
        raise EmolabError("score needs a column 'text' of strings")
    if model is not None and "query" not in table:
        raise EmolabError("score with a model needs a column 'query' too: perplexity is that of a text after its query")
    judges = [EmbeddingJudge()] if judges is None else [judges] if callable(judges) else list(judges)
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise EmolabError(f"judges are named {', '.join(names)}; give each its own name, their columns bear it")
    table, texts, queries = table.copy(), list(table["text"]), table.get("query")
    for number, judge in enumerate(judges):
        values, prefix = ask(judge, texts, queries), "" if number == 0 else f"{judge.name}_"
        for label, column in zip(judge.labels, values.T, strict=True):
            table[f"{prefix}p_{label}"] = column
        table[f"{prefix}top"] = [judge.labels[i] for i in values.argmax(1)] if len(texts) else []
    if queries is not None and len(table):
        table["adherence"], table["adherence_shuffled"] = adherence(texts, list(queries))
    for measure in (distinct2, repetition, compression):
        table[measure.__name__] = [measure(t) for t in texts]
    table["n_words"] = [len(t.split()) for t in texts]
    table.attrs["judges"] = names
    return table if model is None else _modelled(table, model, texts, templates)


def _modelled(table: pd.DataFrame, model: Model, texts: list[str], templates: dict[str, str] | None) -> pd.DataFrame:
    table["perplexity"] = perplexity(model, table["query"], texts, templates=templates)
    # In responses `emotion` is what the query evokes; what the model was told is `condition`.
    told = table.get("condition", table.get("emotion"))
    if told is not None:
        told = [c if pd.isna(c) else spoken(c) or NEUTRAL for c in told]  # of a mixture: all that is added
        table["perplexity_instructed"] = perplexity(model, table["query"], texts, conditions=told, templates=templates)
    if "n_tokens" not in table:
        ids = model.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        table["n_tokens"] = [len(row) for row in ids]
    allowed = table.attrs.get("emolab", {}).get("max_new_tokens")
    if allowed is not None:
        table["truncated"] = table["n_tokens"] >= allowed
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

    >>> perplexity(model, ["Tell me about the park."], ["It was quiet."], conditions=["joy"])

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


def adherence(
    texts: Sequence[str], queries: Sequence[Any]
) -> tuple[Float[np.ndarray, " text"], Float[np.ndarray, " text"]]:
    """Embedding cosine of each text with its query, and its mean over the other queries; NaN where there is none.

    >>> own, shuffled = adherence(["The waves rolled in."], ["How was the beach?"])
    """
    own, others = np.full((2, len(texts)), np.nan)
    asked = [i for i, q in enumerate(queries) if isinstance(q, str) and q.strip()]  # a user's own texts have no query
    if asked:
        unique = list(dict.fromkeys(queries[i] for i in asked))
        a = judging.embed([texts[i] for i in asked])
        own[asked] = (a * judging.embed([queries[i] for i in asked])).sum(1)
        if len(unique) > 1:  # cosine with every query, summed, less that with its own
            others[asked] = (a @ judging.embed(unique).sum(0) - own[asked]) / (len(unique) - 1)
    return own, others


def distinct2(text: str) -> float:
    """Share of distinct ones among a text's pairs of neighbouring words; NaN without a pair.

    >>> distinct2("the dog the dog")
    0.666...
    """
    words = words_of(text)
    pairs = list(zip(words, words[1:], strict=False))
    return len(set(pairs)) / len(pairs) if pairs else float("nan")


def repetition(text: str) -> float:
    """Share of a text's words that repeat one of the four before; NaN without a word.

    >>> repetition("the dog the dog")
    0.5
    """
    words = words_of(text)
    return float(np.mean([w in words[max(0, i - 4) : i] for i, w in enumerate(words)])) if words else float("nan")


def compression(text: str) -> float:
    """Bytes of a text after zlib (level 9) over those before; NaN where it is empty. Prose about .6, loops below .3.

    >>> round(compression("no no no " * 30), 2)
    0.06
    """
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / len(raw) if raw else float("nan")


def target_share(scored: pd.DataFrame, column: str = "top") -> float:
    """Share of rows whose top label is the one asked for: `condition` (of responses) or else `emotion` (of a sweep).

    >>> target_share(scored)
    """
    return float((scored[column] == scored["condition" if "condition" in scored else "emotion"]).mean())
