"""Score texts: emotion by judges, and beside it topic, fluency, repetition and length, for emotion alone is word soup.

>>> import emolab
>>> table = emolab.score(pd.DataFrame({"text": ["I am so happy!"], "query": ["How was the park?"]}))
>>> table[["p_joy", "adherence", "distinct2", "compression"]]
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from emolab import judges as judging
from emolab.cluster import run_chunks
from emolab.emotions import NEUTRAL
from emolab.errors import EmolabError, need_model, need_table, need_texts
from emolab.grid import spoken
from emolab.judges import ask, judges_of, words_of
from emolab.models import Model
from emolab.prompts import render_prompts
from emolab.storage import digest, kept, stable

if TYPE_CHECKING:
    from distributed import Client

_BLOCK = 1024  # rows that a killed `kept_score` may lose


def score(
    table: pd.DataFrame,
    *,
    judges: Any = None,
    model: Model | None = None,
    templates: dict[str, str] | None = None,
    client: Client | None = None,
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
    With a client of a Dask cluster its workers compute the perplexities (`emolab.cluster`).
    The judges' names are kept in attrs["judges"]. Raises EmolabError where `text` is missing or holds something else
    than text, for a model (or a judge that reads queries) without the column `query`, and for two judges of one name.
    """
    if not isinstance(table, pd.DataFrame) or "text" not in table:
        raise EmolabError("score takes a table with a column 'text' of strings, as sweep and collect_responses give it")
    need_texts("the column 'text'", table["text"].tolist())
    if model is not None and "query" not in table:
        raise EmolabError("score with a model needs a column 'query' too: perplexity is that of a text after its query")
    if model is not None:
        need_model(model)
    judges = judges_of(judges)
    names = [judge.name for judge in judges]
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
    return table if model is None else _modelled(table, model, texts, templates, client)


def _modelled(table: pd.DataFrame, model: Model, texts: list[str], templates: Any, client: Any) -> pd.DataFrame:
    given = {"templates": templates, "client": client}
    table["perplexity"] = perplexity(model, table["query"], texts, **given)
    # In responses `emotion` is what the query evokes; what the model was told is `condition`.
    told = table.get("condition", table.get("emotion"))
    if told is not None:
        told = [c if pd.isna(c) else spoken(c) or NEUTRAL for c in told]  # of a mixture: all that is added
        table["perplexity_instructed"] = perplexity(model, table["query"], texts, conditions=told, **given)
    if "n_tokens" not in table:
        ids = model.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        table["n_tokens"] = [len(row) for row in ids]
    allowed = table.attrs.get("emolab", {}).get("max_new_tokens")
    if allowed is not None:
        table["truncated"] = table["n_tokens"] >= allowed
    return table


def kept_score(
    table: pd.DataFrame, path: Path, *, judges: Any, model: Model, client: Client | None, progress: bool = True
) -> pd.DataFrame:
    """`score`, kept in a file and read from it while table, judges and model are the same; continued block by block.

    >>> kept_score(table, Path("runs/smollm2/scores.parquet"), judges=None, model=model, client=None)   # doctest: +SKIP
    """
    judged = [] if judges is None else [judges] if callable(judges) else list(judges)

    def settings(rows: pd.DataFrame) -> dict:
        of = [model.fingerprint, stable(judged), *rows.columns, *rows.astype(str).to_numpy().ravel()]
        return {**table.attrs.get("emolab", {}), "scored": digest(of)}

    def make() -> pd.DataFrame:
        parts = []
        blocks = tqdm(_blocks(table), desc="scores", unit="block", disable=not progress)
        for number, rows in enumerate(blocks):
            part = partial(score, rows, judges=judges, model=model, client=client)
            parts.append(kept(path.with_name(f".{path.stem}_{number}.parquet"), settings(rows), part))
        return pd.concat(parts, ignore_index=True).__finalize__(parts[0])

    found = kept(path, settings(table), make)
    for part in path.parent.glob(f".{path.stem}_*.parquet"):
        part.unlink()
    return found


def _blocks(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of a sweep in blocks that hold every query, since `adherence_shuffled` needs them; else all at once."""
    n, ids = table["query_id"].nunique(), table["query_id"].to_numpy()
    if len(ids) % n or (ids.reshape(-1, n) != ids[:n]).any():
        return [table]
    size = -(-_BLOCK // n) * n
    return [table.iloc[start : start + size] for start in range(0, len(table), size)]


def perplexity(
    model: Model,
    queries: Iterable[str],
    texts: Sequence[str],
    *,
    conditions: Iterable[str] | None = None,
    templates: dict[str, str] | None = None,
    client: Client | None = None,
) -> Float[np.ndarray, " text"]:
    """exp(mean negative log probability) of each text after its query, unsteered; NaN where it is empty.

    >>> perplexity(model, ["Tell me about the park."], ["It was quiet."], conditions=["joy"])

    conditions: the instruction in front of each query ("neutral" or missing: none). Equal rows are computed once.
    """
    from emolab.generation import _plan

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
    written = [key[2] for key in unique]
    plan, sizes = [list(range(len(unique)))], [None]
    if client is not None:  # cut into the batches that `token_logprobs` would make
        plan = _plan(model, prompts, written, None, extra=0, logits=True)
        sizes = [len(rows) for rows in plan]
    values: list[Any] = [None] * len(unique)
    jobs = [([prompts[i] for i in rows], [written[i] for i in rows], n) for rows, n in zip(plan, sizes, strict=True)]
    for found in run_chunks(model, _read, jobs, client=client, name="scores"):
        for number, read in found.items():
            for i, logprobs in zip(plan[number], read, strict=True):
                values[i] = logprobs
    found = {key: float(np.exp(-np.mean(v))) if len(v) else float("nan") for key, v in zip(unique, values, strict=True)}
    return np.array([found[key] for key in keys])


def _read(model: Model, prompts: list[str], texts: list[str], batch_size: int | None) -> list[np.ndarray]:
    from emolab.generation import token_logprobs

    return token_logprobs(model, prompts, texts, batch_size=batch_size)


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
    need_table(scored, [column], "emolab.score")
    if "condition" not in scored and "emotion" not in scored:
        raise EmolabError("the table lacks condition and emotion, which say what was asked for")
    return float((scored[column] == scored["condition" if "condition" in scored else "emotion"]).mean())
