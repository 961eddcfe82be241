"""Score texts: emotion by judges, and beside it topic, fluency, repetition and length, for emotion alone is word soup.

>>> import emolab
>>> table = emolab.score(pd.DataFrame({"text": ["I am so happy!"], "query": ["How was the park?"]}))
>>> table[["p_joy", "adherence", "distinct2", "compression"]]
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from emolab.answers.jobs import Store, prompts_of, run_jobs
from emolab.answers.logprobs import plan_texts, token_logprobs
from emolab.answers.writing import Writing
from emolab.base.calls import once
from emolab.base.errors import EmolabError, need_model, need_table, need_texts
from emolab.base.labels import NEUTRAL
from emolab.base.storage import digest, kept, stable
from emolab.judges import judges as judging
from emolab.judges.judges import UNREAD, ask, judges_of, top_labels
from emolab.judges.words import compression, distinct2, is_loop, is_refusal, named, repetition, words_of
from emolab.models.model import Model
from emolab.models.prompts import text_ids
from emolab.steering.settings import parse_mixture
from emolab.vectors.token_rule import beyond_context, prompt_and_text_lengths


def score(
    table: pd.DataFrame,
    *,
    judges: Any = None,
    model: Model | None = None,
    writing: Writing | None = None,
    store: Store | None = None,
) -> pd.DataFrame:
    """The same rows plus what judges say of each text. Only `text` is needed; `query` for adherence.

    >>> scored = emolab.score(table, model=model)

    Adds for the first judge `p_<label>` and `top` (its most probable label), for further ones `<judge>_p_<label>` and
    `<judge>_top`; NaN and "unread" for texts that a judge cannot read. `adherence`, the embedding cosine of text and
    query, and `adherence_shuffled`, its mean over the table's other queries (what any text on any topic gets), both NaN
    without a query.

    `distinct2`, `repetition`, `compression` (low in loops, where perplexity is low too; short texts hardly shrink),
    `n_words`, `loop`, `refusal`, and, where a column `condition` (of responses) or else `emotion` (of a sweep) names a
    target, `named`: whether the text holds its label or a form of it. All are functions of `emolab.judges.words`.

    With a model: `perplexity` after the plain prompt (without a query: after one with an empty question) and, where
    there is a target, `perplexity_instructed` after the prompt with that instruction, both unsteered (score outside
    `steered`); `n_tokens`, unless the table has it; and, where the table comes from `sweep` or `collect_responses`,
    `truncated`: whether the text has as many tokens as were allowed. writing: with the templates of these prompts;
    default as the table says that it was written, where it says so. store: where perplexities are kept while they are
    worked out, which takes longest. Inside `emolab.workers` the cluster computes them.

    The judges' names are kept in attrs["judges"]. Warns of texts that a judge cannot read, and of probabilities that do
    not sum to 1. Raises EmolabError where `text` is missing or holds something else than text, for a judge that reads
    queries without the column `query`, and for two judges of one name.
    """
    if not isinstance(table, pd.DataFrame) or "text" not in table:
        raise EmolabError("score takes a table with a column 'text' of strings, as sweep and collect_responses give it")
    texts = need_texts("the column 'text'", table["text"].tolist())
    if model is not None:
        need_model(model)
    judges = judges_of(judges)
    table = table.copy()
    queries = table.get("query")
    read = [ask(judge, texts, queries) for judge in judges]
    for number, (judge, values) in enumerate(zip(judges, read, strict=True)):
        prefix = "" if number == 0 else f"{judge.name}_"
        for label, column in zip(judge.labels, values.T, strict=True):
            table[f"{prefix}p_{label}"] = column
        table[f"{prefix}top"] = top_labels(judge, values)
    if queries is not None and len(table):
        table["adherence"], table["adherence_shuffled"] = adherence(texts, list(queries))
    for measure in (distinct2, repetition, compression):
        table[measure.__name__] = [measure(text) for text in texts]
    table["n_words"] = [len(words_of(text)) for text in texts]
    table["loop"] = [is_loop(text) for text in texts]
    table["refusal"] = [is_refusal(text) for text in texts]
    targets = _targets(table)
    if targets is not None:
        table["named"] = [
            any(named(text, emotion) for emotion in emotions) for text, emotions in zip(texts, targets, strict=True)
        ]
    table.attrs["judges"] = [judge.name for judge in judges]
    if model is not None:
        table = _with_model(table, model, targets, _asked_with(table, writing), store)
    for judge, values in zip(judges, read, strict=True):  # at last, so that what is refused is not warned of
        _warn_of(judge, values)
    return table


def _warn_of(judge: Any, values: Float[np.ndarray, "text label"]) -> None:
    """Warn of texts that a judge cannot read, and of probabilities that do not sum to 1."""
    unread = int(np.isnan(values).all(1).sum())
    if unread:
        warnings.warn(
            f"judge {judge.name!r} cannot read {unread} of {len(values)} texts (emoji, another script): their top "
            f"label is {UNREAD!r}, their probabilities are missing; take a judge that can, such as ClassifierJudge",
            stacklevel=3,
        )
    sums = values.sum(1)
    odd = np.abs(sums - 1) > 0.01  # what a judge left of rounded numbers; NaN is a text not read
    if odd.any():
        row = int(odd.argmax())
        warnings.warn(
            f"probabilities of judge {judge.name!r} do not sum to 1 for {odd.sum()} of {len(sums)} texts (text {row}: "
            f"{sums[row]:.3g}); they are kept so: compare conditions, not labels, or scale them",
            stacklevel=3,
        )


def _targets(table: pd.DataFrame) -> list[list[str]] | None:
    """Row by row, the emotions asked for; None where no column says so."""
    # In responses `emotion` is what the query evokes; what the model was told is `condition`.
    names = table.get("condition", table.get("emotion"))
    if names is None:
        return None
    asked = {name for name in names if isinstance(name, str) and name != NEUTRAL}
    targets = {name: [e for e, weight in parse_mixture(name).items() if weight > 0] for name in asked}
    return [targets.get(name, []) for name in names]


def _asked_with(table: pd.DataFrame, writing: Writing | None) -> Writing:
    """The writing given, or else one with the templates that the table says it was written with."""
    if writing is not None:
        return writing
    return Writing(templates=table.attrs.get("emolab", {}).get("writing", {}).get("templates"))


def _with_model(
    table: pd.DataFrame, model: Model, targets: list[list[str]] | None, writing: Writing, store: Store | None
) -> pd.DataFrame:
    texts = list(table["text"])
    queries = list(table["query"]) if "query" in table else [""] * len(table)
    # Plain and instructed in one go: where nothing is told they are the same, and read once.
    conditions = {"perplexity": [NEUTRAL] * len(table)}
    if targets is not None:  # of a mixture all that is added is told
        conditions["perplexity_instructed"] = [" and ".join(emotions) or NEUTRAL for emotions in targets]
    n, every = len(conditions), [condition for column in conditions.values() for condition in column]
    values = perplexity(model, queries * n, texts * n, conditions=every, writing=writing, store=store)
    for name, part in zip(conditions, np.split(values, n), strict=True):
        table[name] = part
    if "n_tokens" not in table:
        table["n_tokens"] = [len(ids) for ids in text_ids(model, texts)]
    allowed = table.attrs.get("emolab", {}).get("max_new_tokens")
    if allowed is not None:
        table["truncated"] = table["n_tokens"] >= allowed
    return table


def kept_score(
    table: pd.DataFrame, path: Path, *, judges: Any, model: Model, writing: Writing | None = None
) -> pd.DataFrame:
    """`score`, kept in a file and read from it while table, judges, model and templates are the same.

    >>> kept_score(table, Path("runs/smollm2/scores.parquet"), judges=None, model=model)   # doctest: +SKIP
    """
    used = [model.fingerprint, stable(judges_of(judges)), stable(_asked_with(table, writing).templates or {})]
    used += [*table.columns, *table.astype(str).to_numpy().ravel()]
    settings = {**table.attrs.get("emolab", {}), "scored": digest(used)}
    store = Store(path.with_name(f".{path.name}"), settings)  # so that a killed scoring goes on where it was
    scored = kept(path, settings, partial(score, table, judges=judges, model=model, writing=writing, store=store))
    store.remove()
    return scored


def perplexity(
    model: Model,
    queries: Sequence[str],
    texts: Sequence[str],
    *,
    conditions: Iterable[str] | None = None,
    writing: Writing = Writing(),
    store: Store | None = None,
) -> Float[np.ndarray, " text"]:
    """exp(mean negative log probability) of each text after its query, unsteered; NaN where it is empty or too long.

    >>> perplexity(model, ["Tell me about the park."], ["It was quiet."], conditions=["joy"])

    conditions: the instruction in front of each query ("neutral" or missing: none), as the writing's templates word it.
    Equal rows are computed once. store: where what is read is kept, batch by batch. One warning names all texts that do
    not fit the model's context behind their prompt.
    """
    conditions = [NEUTRAL] * len(queries) if conditions is None else [NEUTRAL if pd.isna(c) else c for c in conditions]
    prompts = prompts_of(model, queries, conditions, writing)
    lengths = prompt_and_text_lengths(model, pd.DataFrame({"prompt": prompts, "text": texts}, dtype=object))
    long = beyond_context(model, lengths)
    if long:
        rows = {list(texts).index(texts[i]): f"{conditions[i]}, {lengths[i]} tokens" for i in long}
        named = ", ".join(f"row {row} ({what})" for row, what in rows.items())
        warnings.warn(
            f"perplexity is missing for {len(rows)} texts, which with their prompt do not fit {model.name!r} "
            f"({model.n_ctx}): {named}; shorten them to have it",
            stacklevel=4,
        )
    fit = sorted({*range(len(texts))} - {*long})

    def read(jobs: list[tuple[str, str]]) -> list[float]:
        plan = plan_texts(model, [prompt for prompt, _ in jobs], [text for _, text in jobs])
        return run_jobs(model, _perplexities, jobs, plan, name="scores", store=store)

    values = np.full(len(texts), np.nan)
    values[fit] = once([(prompts[i], texts[i]) for i in fit], read)
    return values


def _perplexities(model: Model, jobs: list[tuple[str, str]]) -> list[float]:
    """Of one batch of the plan, which `token_logprobs` reads as it is."""
    prompts, texts = zip(*jobs, strict=True)
    logprobs = token_logprobs(model, prompts, texts, batch_size=len(jobs))
    return [float(np.exp(-np.mean(values))) if len(values) else float("nan") for values in logprobs]


def adherence(
    texts: Sequence[str], queries: Sequence[Any]
) -> tuple[Float[np.ndarray, " text"], Float[np.ndarray, " text"]]:
    """Embedding cosine of each text with its query, and its mean over the other queries; NaN where there is none.

    >>> own, shuffled = adherence(["The waves rolled in."], ["How was the beach?"])

    NaN also where the embedder cannot read the text or its query (`emolab.judges.judges.unread`).
    """
    own, others = np.full((2, len(texts)), np.nan)
    asked = [i for i, q in enumerate(queries) if isinstance(q, str) and q.strip()]  # a user's own texts have no query
    if asked:
        unique = list(dict.fromkeys(queries[i] for i in asked))
        a = judging.embed([texts[i] for i in asked])
        own[asked] = (a * judging.embed([queries[i] for i in asked])).sum(1)
        if len(unique) > 1:  # cosine with every query, summed, less that with its own
            others[asked] = (a @ judging.embed(unique).sum(0) - own[asked]) / (len(unique) - 1)
        strange = dict(zip(unique, judging.unread(tuple(unique)), strict=True))
        unread = judging.unread(tuple(texts)) | [strange.get(query, False) for query in queries]
        own[unread], others[unread] = np.nan, np.nan
    return own, others


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
