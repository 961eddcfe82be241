"""Score texts: emotion by judges, and beside it topic, fluency, repetition and length, for emotion alone is word soup.

>>> import emolab
>>> table = emolab.score(pd.DataFrame({"text": ["I am so happy!"], "query": ["How was the park?"]}))
>>> table[["p_joy", "adherence", "distinct2", "compression"]]
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from emolab.base.errors import EmolabError, need_model, need_table, need_texts
from emolab.base.labels import NEUTRAL
from emolab.base.progress import tracked
from emolab.base.storage import digest, kept, stable
from emolab.judges import judges as judging
from emolab.judges.judges import UNREAD, ask, judges_of, top_labels
from emolab.judges.words import is_refusal, named, words_of
from emolab.models.model import Model
from emolab.models.prompts import render_prompts
from emolab.models.workers import on_cluster, run_chunks
from emolab.steering.settings import parse_mixture

# See `is_loop`.
_LEAST_WORDS, _LOOP_REPETITION = 8, 0.5
_LEAST_BYTES, _LOOP_COMPRESSION = 24, 0.5
_BLOCK = 1024  # rows that a killed `kept_score` may lose


def score(
    table: pd.DataFrame,
    *,
    judges: Any = None,
    model: Model | None = None,
    templates: dict[str, str] | None = None,
) -> pd.DataFrame:
    """The same rows plus what judges say of each text. Only `text` is needed; `query` for adherence.

    >>> scored = emolab.score(table, model=model)

    Adds for the first judge `p_<label>` and `top` (its most probable label), for further ones `<judge>_p_<label>` and
    `<judge>_top`; NaN and "unread" for texts that a judge cannot read. `n_cut`, how many tokens at the end of a text
    the first judge that cuts left out. `adherence`, the embedding cosine of text and query, and `adherence_shuffled`,
    its mean over the table's other queries (what any text on any topic gets), both NaN without a query.

    `distinct2`, the share of distinct word pairs; `repetition`, the share of words that repeat one of the four before;
    `compression`, the size of the text after zlib over that before, low in loops, where perplexity is low too (compare
    texts of similar length: short ones hardly shrink); `n_words`; `loop` (`is_loop`); `refusal`, whether the text
    refuses to answer or speaks as a machine; and, where a column `condition` (of responses) or else `emotion` (of a
    sweep) names a target, `named`: whether the text holds its label or a form of it (`emolab.judges.words`).

    With a model: `perplexity` after the plain prompt (without a query: after one with an empty question) and, where
    there is a target, `perplexity_instructed` after the prompt with that instruction, both unsteered (score outside
    `steered`); `n_tokens`, unless the table has it; and, where the table comes from `sweep` or `collect_responses`,
    `truncated`: whether the text has as many tokens as were allowed. With a client of a Dask cluster its workers
    compute the perplexities (`emolab.models.workers`).

    The judges' names are kept in attrs["judges"]. Warns of texts that a judge cannot read, or not to their end. Raises
    EmolabError where `text` is missing or holds something else than text, for a judge that reads queries without the
    column `query`, and for two judges of one name.
    """
    if not isinstance(table, pd.DataFrame) or "text" not in table:
        raise EmolabError("score takes a table with a column 'text' of strings, as sweep and collect_responses give it")
    need_texts("the column 'text'", table["text"].tolist())
    if model is not None:
        need_model(model)
    judges = judges_of(judges)
    names = [judge.name for judge in judges]
    table, texts, queries = table.copy(), list(table["text"]), table.get("query")
    for number, judge in enumerate(judges):
        values, prefix = ask(judge, texts, queries), "" if number == 0 else f"{judge.name}_"
        for label, column in zip(judge.labels, values.T, strict=True):
            table[f"{prefix}p_{label}"] = column
        table[f"{prefix}top"] = top_labels(judge, values)
        _warn_unread(judge, int(np.isnan(values).all(1).sum()), len(texts))
    _add_cuts(table, judges, texts)
    if queries is not None and len(table):
        table["adherence"], table["adherence_shuffled"] = adherence(texts, list(queries))
    for measure in (distinct2, repetition, compression):
        table[measure.__name__] = [measure(t) for t in texts]
    table["n_words"] = [len(words_of(t)) for t in texts]
    table["loop"] = [is_loop(t) for t in texts]
    table["refusal"] = [is_refusal(t) for t in texts]
    targets = _targets(table)
    if targets is not None:
        table["named"] = [any(named(t, label) for label in of) for t, of in zip(texts, targets, strict=True)]
    table.attrs["judges"] = names
    return table if model is None else _modelled(table, model, texts, targets, templates)


def _targets(table: pd.DataFrame) -> list[list[str]] | None:
    """Row by row, the emotions asked for; None where no column says so."""
    # In responses `emotion` is what the query evokes; what the model was told is `condition`.
    told = table.get("condition", table.get("emotion"))
    if told is None:
        return None
    asked = {c for c in told if isinstance(c, str) and c != NEUTRAL}
    targets = {c: [emotion for emotion, weight in parse_mixture(c).items() if weight > 0] for c in asked}
    return [targets.get(c, []) for c in told]


def _warn_unread(judge: Any, lost: int, n: int) -> None:
    if lost:
        warnings.warn(
            f"judge {judge.name!r} cannot read {lost} of {n} texts (emoji, another script): their top label is "
            f"{UNREAD!r}, their probabilities are missing; take a judge that can, such as ClassifierJudge",
            stacklevel=3,
        )


def _add_cuts(table: pd.DataFrame, judges: list[Any], texts: list[str]) -> None:
    """Column `n_cut` of the first judge that cuts, and one warning."""
    judge = next((judge for judge in judges if hasattr(judge, "n_cut")), None)
    if judge is None:
        return
    table["n_cut"] = judge.n_cut(texts)
    long = int((table["n_cut"] > 0).sum())
    if long:
        warnings.warn(
            f"judge {judge.name!r} read only the beginning of {long} of {len(texts)} texts, which are too long for it "
            "(column n_cut: tokens left out)",
            stacklevel=3,
        )


def _modelled(
    table: pd.DataFrame, model: Model, texts: list[str], targets: list[list[str]] | None, templates: Any
) -> pd.DataFrame:
    queries = list(table["query"]) if "query" in table else [""] * len(table)
    # Plain and instructed in one go: where nothing is told they are the same, and read once.
    conditions = {"perplexity": [NEUTRAL] * len(table)}
    if targets is not None:  # of a mixture all that is added is told
        conditions["perplexity_instructed"] = [" and ".join(of) or NEUTRAL for of in targets]
    n, told = len(conditions), [condition for column in conditions.values() for condition in column]
    values = perplexity(model, queries * n, texts * n, conditions=told, templates=templates)
    for name, part in zip(conditions, np.split(values, n), strict=True):
        table[name] = part
    if "n_tokens" not in table:
        ids = model.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        table["n_tokens"] = [len(row) for row in ids]
    allowed = table.attrs.get("emolab", {}).get("max_new_tokens")
    if allowed is not None:
        table["truncated"] = table["n_tokens"] >= allowed
    return table


def kept_score(
    table: pd.DataFrame,
    path: Path,
    *,
    judges: Any,
    model: Model,
    templates: dict[str, str] | None = None,
) -> pd.DataFrame:
    """`score`, kept in a file and read from it while table, judges and model are the same; continued block by block.

    >>> kept_score(table, Path("runs/smollm2/scores.parquet"), judges=None, model=model)   # doctest: +SKIP
    """
    judged = [] if judges is None else [judges] if callable(judges) else list(judges)

    def settings(rows: pd.DataFrame) -> dict:
        of = [model.fingerprint, stable(judged), stable(templates or {})]
        of += [*rows.columns, *rows.astype(str).to_numpy().ravel()]
        return {**table.attrs.get("emolab", {}), "scored": digest(of)}

    def make() -> pd.DataFrame:
        parts = []
        for number, rows in enumerate(tracked(_blocks(table), "scores", "block")):
            part = partial(score, rows, judges=judges, model=model, templates=templates)
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
) -> Float[np.ndarray, " text"]:
    """exp(mean negative log probability) of each text after its query, unsteered; NaN where it is empty.

    >>> perplexity(model, ["Tell me about the park."], ["It was quiet."], conditions=["joy"])

    conditions: the instruction in front of each query ("neutral" or missing: none). Equal rows are computed once.
    """
    from emolab.answers.logprobs import plan_texts

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
    if on_cluster():  # cut into the batches that `token_logprobs` would make
        plan = plan_texts(model, prompts, written)
        sizes = [len(rows) for rows in plan]
    values: list[Any] = [None] * len(unique)
    jobs = [([prompts[i] for i in rows], [written[i] for i in rows], n) for rows, n in zip(plan, sizes, strict=True)]
    for found in run_chunks(model, _read, jobs, name="scores"):
        for number, read in found.items():
            for i, logprobs in zip(plan[number], read, strict=True):
                values[i] = logprobs
    found = {key: float(np.exp(-np.mean(v))) if len(v) else float("nan") for key, v in zip(unique, values, strict=True)}
    return np.array([found[key] for key in keys])


def _read(model: Model, prompts: list[str], texts: list[str], batch_size: int | None) -> list[np.ndarray]:
    from emolab.answers.logprobs import token_logprobs

    return token_logprobs(model, prompts, texts, batch_size=batch_size)


def adherence(
    texts: Sequence[str], queries: Sequence[Any]
) -> tuple[Float[np.ndarray, " text"], Float[np.ndarray, " text"]]:
    """Embedding cosine of each text with its query, and its mean over the other queries; NaN where there is none.

    >>> own, shuffled = adherence(["The waves rolled in."], ["How was the beach?"])

    NaN also where the embedder cannot read the text (`emolab.judges.judges.reading`).
    """
    own, others = np.full((2, len(texts)), np.nan)
    asked = [i for i, q in enumerate(queries) if isinstance(q, str) and q.strip()]  # a user's own texts have no query
    if asked:
        unique = list(dict.fromkeys(queries[i] for i in asked))
        a = judging.embed([texts[i] for i in asked])
        own[asked] = (a * judging.embed([queries[i] for i in asked])).sum(1)
        if len(unique) > 1:  # cosine with every query, summed, less that with its own
            others[asked] = (a @ judging.embed(unique).sum(0) - own[asked]) / (len(unique) - 1)
        unread = judging.reading(tuple(texts))[0]
        own[unread], others[unread] = np.nan, np.nan
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


def is_loop(text: str) -> bool:
    """Whether a text says one thing again and again: the one place where that is decided.

    >>> is_loop("so so so so so so so so so so"), is_loop("I'm so sorry to hear that. " * 4)
    (True, True)

    Either half of its words repeat one of the four before (of unsteered texts at most a fifth, of word soup .84 to .99
    do; this sees short circles), or it is half as large after zlib as prose of its length (this sees whole sentences
    that come back). Prose of n bytes is left with about .5 + 40 / n of them (measured: 100 bytes .87, 200 .72, 400 .62,
    1,000 .55, and no text below .9 of that). Fewer than eight words are too few to tell by the first, fewer than 24
    bytes by the second.
    """
    size, words = len(text.encode()), len(words_of(text))
    again = words >= _LEAST_WORDS and repetition(text) >= _LOOP_REPETITION
    return again or (size >= _LEAST_BYTES and compression(text) < _LOOP_COMPRESSION * (0.5 + 40 / size))


def target_share(scored: pd.DataFrame, column: str = "top") -> float:
    """Share of rows whose top label is the one asked for: `condition` (of responses) or else `emotion` (of a sweep).

    >>> target_share(scored)

    Texts that the judge could not read are left out.
    """
    need_table(scored, [column], "emolab.score")
    if "condition" not in scored and "emotion" not in scored:
        raise EmolabError("the table lacks condition and emotion, which say what was asked for")
    read = scored[scored[column] != UNREAD]
    return float((read[column] == read["condition" if "condition" in scored else "emotion"]).mean())
