"""Responses: what a model answers to each query, plainly and with each emotion.

>>> import emolab
>>> model = emolab.load_model("smollm2")
>>> responses = emolab.collect_responses(model, ["Tell me about the park."], emotions=("joy",))
>>> list(responses["condition"])
['neutral', 'joy']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emolab.answers.jobs import Store, prompts_of, write_texts
from emolab.answers.labelled import labelled
from emolab.answers.queries import query_table
from emolab.answers.writing import Writing, need_writing
from emolab.base.errors import EmolabError, need_texts
from emolab.base.folders import alone
from emolab.base.labels import EMOTIONS, NEUTRAL, NEUTRAL_QUERY, need_labels, order
from emolab.base.storage import digest, user_path, write_table
from emolab.models.model import Model
from emolab.models.prompts import text_ids

COLUMNS = ("query_id", "situation", "query", "emotion", "condition", "prompt", "text", "n_tokens")
_CHUNK, _CHUNK_GPU = 64, 256  # rows between two writes, and the largest batch, where the caller names no batch_size


@alone
def collect_responses(
    model: Model,
    queries: pd.DataFrame | Sequence[str] | str,
    *,
    emotions: Sequence[str] = EMOTIONS,
    out: str | Path | None = None,
    pairing: str = "all",
    max_new_tokens: int = 80,
    writing: Writing = Writing(),
) -> pd.DataFrame:
    """Let the model answer each query under the neutral and the emotional conditions.

    Args:
        queries: a table from `load_queries`, or anything that it takes.
        emotions: the conditions beside neutral.
        out: a folder; `responses.parquet` in it is written after every chunk (atomically), and a second call with the
            same settings generates only what is missing, with the same result as one undisturbed run. While texts are
            missing the file holds the texts alone, by number.
        pairing: `"all"` asks every query under neutral and every emotion, so that the vectors of two emotions come from
            the same queries; `"own"` asks a query labelled `e` under neutral and `e` only (as arXiv 2502.04075 does)
            and neutral queries under all. Under `"own"`, queries with a label outside `emotions` are left out.
        writing: how each token is chosen, the same in every condition, and the wording of each (`emolab.Writing`); it
            is kept beside the texts.

    Returns:
        One row a response, columns `query_id, situation, query, emotion, condition, prompt, text, n_tokens`: `prompt`
        is the complete rendered prompt, `n_tokens` the length of `text` in tokens.

    Raises:
        EmolabError: unknown pairing, no query left, or `out` holds responses collected with other settings.
    """
    need_writing(writing)
    plan = _plan(model, queries, emotions, pairing, writing)
    settings = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "pairing": pairing,
        "emotions": [e for e in order(plan["condition"]) if e != NEUTRAL],
        "prompts": digest(plan[["query_id", "condition", "prompt"]].to_numpy().ravel().tolist()),
        "max_new_tokens": max_new_tokens,
        "writing": writing.settings(),
    }
    store = Store(None if out is None else user_path(out) / "responses.parquet", settings)
    finished = store.finished()
    if finished is not None:
        return finished
    # Chunks of similar length, cut the same way in every call: a continued run meets the same batches and seeds.
    asked = plan.iloc[plan["prompt"].str.len().argsort(kind="stable")]
    chunk = writing.batch_size or (_CHUNK if model.device.type == "cpu" else _CHUNK_GPU)
    texts = write_texts(
        model,
        list(asked["prompt"]),
        [None] * len(asked),
        chunk=chunk,
        max_new_tokens=max_new_tokens,
        writing=writing,
        name="responses",
        store=store,
    )
    plan["text"] = pd.Series(texts, index=asked.index)
    plan["n_tokens"] = [len(ids) for ids in text_ids(model, list(plan["text"]))]
    return write_table(_tidy(plan), store.path, settings)


def responses_from_texts(
    texts: Mapping[str, Sequence[str]] | pd.DataFrame | str | Path, *, query: str | None = NEUTRAL_QUERY
) -> pd.DataFrame:
    """The user's own labelled texts as responses; nothing is generated.

    A model with a chat template reads them as answers to one neutral query, since it is itself only inside a
    conversation; any other model reads them bare. Without topics, vectors from these are plain differences of the means
    of two groups: whatever else differs between the groups is in the vector, too.

    Args:
        texts: `{condition: [text, ...]}`, or a table with the columns `label` and `text`, or a file with these (CSV, or
            separated by semicolons, tabs or bars; JSON; parquet), or with a column of 0 and 1 for each label, or
            GoEmotions as published. "neutral" is the condition that the others are compared with; without it, at least
            three labels are compared with the mean of them all. Optional columns: `topic`, to compare only within it
            (it becomes `query_id`), and `start`, the character of the text from which on its tokens count.
        query: what the texts are read as answers to; None: nothing, read bare by every model.

    Returns:
        The columns of `collect_responses`, and `start` where given. `prompt` is missing (it is made for the model that
        reads, see `response_means`) or, with query=None, empty; `n_tokens` is not known yet.

    Raises:
        EmolabError: a row without text or label, labels that look alike but for case, merged or ragged rows of a file,
            each with row and label (see `emolab.answers.labelled`).

    >>> responses_from_texts({"joy": ["What a day!"], "neutral": ["It is a day."]})[["query_id", "condition", "text"]]
      query_id condition          text
    0   t-0001       joy   What a day!
    1   t-0002   neutral  It is a day.
    """
    if query is not None:
        need_texts("query", [query], filled=True)
    table = labelled(texts)
    topics = table["topic"].astype(str) if "topic" in table else [f"t-{i:04d}" for i in range(1, len(table) + 1)]
    columns = {
        "query_id": topics,
        "situation": "",
        "query": "" if query in (None, NEUTRAL_QUERY) else query,
        "emotion": table["label"],
        "condition": table["label"],
        "prompt": "" if query is None else None,
        "text": table["text"],
        "n_tokens": None,
    }
    responses = _tidy(pd.DataFrame(columns))
    return responses.assign(start=table["start"].astype("int64")) if "start" in table else responses


def _plan(model: Model, queries: Any, emotions: Any, pairing: str, writing: Writing) -> pd.DataFrame:
    """One row for each response wanted, with its rendered prompt; query by query, neutral first."""
    if pairing not in ("all", "own"):
        raise EmolabError(f"unknown pairing {pairing!r}; it is 'all' or 'own'")
    emotions = need_texts("emotions", [emotions] if isinstance(emotions, str) else emotions, filled=True)
    emotions = [e for e in dict.fromkeys(emotions) if e != NEUTRAL]
    need_labels(emotions, "emotions")
    if not emotions:
        raise EmolabError("collect_responses needs at least one emotion beside 'neutral'; give emotions=('joy', ...)")
    queries = query_table(queries, ("query_id", "query", "emotion"))
    queries = queries.assign(situation=queries["situation"].fillna("") if "situation" in queries else "")
    conditions = pd.DataFrame({"condition": [NEUTRAL, *emotions]})
    plan = queries[["query_id", "situation", "query", "emotion"]].merge(conditions, how="cross")
    if pairing == "own":
        plan = plan[plan["emotion"].isin(conditions["condition"])]
        of_query = (plan["condition"] == NEUTRAL) | (plan["condition"] == plan["emotion"])
        plan = plan[of_query | (plan["emotion"] == NEUTRAL)].reset_index(drop=True)
    if plan.empty:
        raise EmolabError(f"no query is labelled {', '.join(emotions)} or neutral; use pairing='all' or other emotions")
    return plan.assign(prompt=prompts_of(model, list(plan["query"]), list(plan["condition"]), writing))


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    """The columns in order and of one type each, so that a read table equals a fresh one."""
    types = {column: "Int64" if column == "n_tokens" else "str" for column in COLUMNS}
    return table[list(COLUMNS)].astype(types).reset_index(drop=True)
