"""The corpus that vectors come from: responses with all that reading them needs, and hashes that tell two apart.

>>> from emolab.vectors.corpus import corpus_hash
>>> corpus_hash(responses) == corpus_hash(responses.assign(text="So."))
False
"""

from __future__ import annotations

import pandas as pd

from emolab.base.errors import MismatchError, is_text, need_table, need_texts
from emolab.base.labels import NEUTRAL_QUERY, need_labels
from emolab.base.storage import digest
from emolab.models.model import Model
from emolab.models.prompts import render_prompts


def checked(responses: pd.DataFrame) -> pd.DataFrame:
    """The table with all columns that are needed; `prompt` is missing in all rows or in none."""
    need_table(responses, ("condition", "text"), "collect_responses or responses_from_texts")
    # Texts have no prompts; answers to many queries had some, and were told things in them.
    many = "query" in responses and responses["query"].nunique() > 1
    asked = "prompt" in responses and (many or not responses["prompt"].isna().all())
    for column in ("text", "condition", "query", *(["prompt"] if asked else [])):
        if column in responses:
            filled = column == "condition"
            # One by one: a list of all of them is memory that grows.
            if not all(is_text(value, filled=filled) for value in responses[column]):
                need_texts(f"responses' column {column!r}", responses[column].tolist(), filled=filled)  # says which
    need_labels(responses["condition"].tolist(), "the column 'condition' of these responses")
    default = {"prompt": None, "query": "", "emotion": responses["condition"]}
    default["query_id"] = [f"r-{i:04d}" for i in range(1, len(responses) + 1)]
    return responses.assign(**{c: v for c, v in default.items() if c not in responses}).reset_index(drop=True)


def prompted(model: Model, responses: pd.DataFrame) -> tuple[pd.DataFrame, dict]:
    """The responses with complete prompts, and for provenance what such as had none are read behind.

    Where `prompt` is missing: the neutral prompt of `query`, or of `NEUTRAL_QUERY`, if the model has a chat template,
    else none.
    """
    if not responses["prompt"].isna().all():
        return responses, {}
    if not model.tokenizer.chat_template:
        return responses.assign(prompt=""), {"read_behind": "nothing"}
    queries = responses["query"].where(responses["query"] != "", NEUTRAL_QUERY)
    asked = list(queries.unique())
    prompts = dict(zip(asked, render_prompts(model, asked), strict=True))
    behind = asked[0] if len(asked) == 1 else f"{len(asked)} queries"
    return responses.assign(prompt=queries.map(prompts), query=queries), {"read_behind": behind}


def check_origin(model: Model, responses: pd.DataFrame) -> None:
    """MismatchError for responses of another model, as far as their table knows: prompts are in that one's format."""
    source = responses.attrs.get("emolab", {})
    if source.get("fingerprint") not in (None, model.fingerprint):
        raise MismatchError(
            f"these responses are of {source.get('model')!r} ({source['fingerprint']}), prompts in its format, not of "
            f"{model.name!r} ({model.fingerprint}); collect them again with this model"
        )


def corpus_hash(responses: pd.DataFrame) -> str:
    """Hash of what the model reads and how it is grouped: query ids, conditions, prompts, texts, and their starts."""
    table = checked(responses)
    if table["prompt"].isna().all():
        table["prompt"] = "neutral prompt of " + table["query"].where(table["query"] != "", NEUTRAL_QUERY)
    columns = [c for c in ("query_id", "condition", "prompt", "text", "start") if c in table]
    rows = zip(*(table[column] for column in columns), strict=True)
    return digest(str(value) for row in rows for value in row)


def template_hash(responses: pd.DataFrame) -> str:
    """Hash of the prompts with their queries taken out: the wording around them."""
    pairs = zip(responses["prompt"], responses["query"], strict=True)
    return digest(sorted({prompt.replace(query, "{query}") if query else prompt for prompt, query in pairs}))
