"""Stories that a model writes about everyday topics and feelings, in which no feeling is named: a second source of maps.

>>> stories = write_stories(model, ["joy", "grief", "awe"], out="runs/stories")          # doctest: +SKIP
>>> means = emolab.response_means(model, emolab.responses_from_texts(stories), tokens="from:8")    # doctest: +SKIP

Source: stories by topic and emotion, read from a later token on, topic means removed: arXiv 2604.07729.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from emolab.answers.generation import generate
from emolab.answers.texts import load_texts
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError, need_model, need_texts
from emolab.base.progress import progress_bar
from emolab.base.storage import digest, kept, user_path
from emolab.judges.words import emotion_words, named
from emolab.models.model import Model, provenance

PROMPT = "Write a very short story about the {topic}. The narrator is full of {label}, and shows it without naming it."


def write_stories(
    model: Model,
    labels: Sequence[str],
    topics: Sequence[str] | None = None,
    *,
    max_new_tokens: int = 60,
    prompt: str = PROMPT,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """One story for each topic and label, as a table for `responses_from_texts`: `topic`, `label`, `text`.

    >>> write_stories(model, ["joy", "grief"], ["train", "garden"]).loc[0, "text"]           # doctest: +SKIP

    The label and its forms are never written (`Writing.forbidden`), so that a vector of stories holds more than the
    word. topics: default six of `load_texts("topics")`. prompt: with "{topic}" and "{label}". out: a folder in which
    the table is kept and found again. Greedy; raises EmolabError for a prompt without either field, and where a
    story is empty.
    """
    need_model(model)
    labels, topics = need_texts("labels", labels, filled=True), _topics(topics)
    if "{topic}" not in prompt or "{label}" not in prompt:
        raise EmolabError('the prompt lacks "{topic}" or "{label}"; expected both')

    def write() -> pd.DataFrame:
        rows = []
        with progress_bar("stories", len(labels)) as bar:
            for label in labels:
                asked = [prompt.format(topic=topic, label=label) for topic in topics]
                writing = Writing(forbidden=tuple(sorted(emotion_words(label))))
                texts = generate(model, asked, max_new_tokens=max_new_tokens, writing=writing)
                rows += [(topic, label, text) for topic, text in zip(topics, texts, strict=True)]
                bar.update(1)
        return pd.DataFrame(rows, columns=["topic", "label", "text"])

    if out is None:
        return _checked(write())
    settings = {**provenance(model), "stories": digest([labels, topics, max_new_tokens, prompt])}
    return _checked(kept(user_path(out) / "stories.parquet", settings, write))


def _topics(topics: Sequence[str] | None) -> list[str]:
    if topics is None:
        return list(dict.fromkeys(load_texts("topics")["topic"]))[:6]
    return need_texts("topics", topics, filled=True)


def _checked(stories: pd.DataFrame) -> pd.DataFrame:
    for row in stories.itertuples():
        if not str(row.text).strip() or named(row.text, row.label):
            problem = "names it" if str(row.text).strip() else "is empty"
            raise EmolabError(f"the story about {row.topic!r} and {row.label!r} {problem}; use another prompt or topic")
    return stories
