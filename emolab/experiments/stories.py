"""Stories that a model writes about everyday topics, full of a feeling that they do not name: a second source of maps.

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
from emolab.base.storage import digest, kept, user_path
from emolab.judges.words import emotion_words, named
from emolab.models.model import Model, provenance

PROMPT = "Write a very short story about the {topic}. The narrator is full of {label}, and shows it without naming it."


def write_stories(
    model: Model,
    labels: Sequence[str],
    topics: Sequence[str] | None = None,
    *,
    max_new_tokens: int = 40,
    prompt: str = PROMPT,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """One story for each topic and label, as a table for `responses_from_texts`: `topic`, `label`, `text`.

    >>> write_stories(model, ["joy", "grief"], ["train", "garden"]).loc[0, "text"]           # doctest: +SKIP

    No story holds its label or a form of it, so that a vector of stories is of more than the word: those that do are
    written once more, with the words of all these forbidden (`Writing.forbidden`). topics: default four of
    `load_texts("topics")`.
    prompt: with "{topic}" and "{label}". out: a folder in which the table is kept and found again. Greedy; raises
    EmolabError for a prompt without either field, and where a story is empty.
    """
    need_model(model)
    labels = need_texts("labels", labels, filled=True)
    if topics is None:
        topics = list(dict.fromkeys(load_texts("topics")["topic"]))[:4]
    topics = need_texts("topics", topics, filled=True)
    if "{topic}" not in prompt or "{label}" not in prompt:
        raise EmolabError('the prompt lacks "{topic}" or "{label}"; expected both')

    def write() -> pd.DataFrame:
        pairs = [(topic, label) for label in labels for topic in topics]
        asked = [prompt.format(topic=topic, label=label) for topic, label in pairs]
        texts = generate(model, asked, max_new_tokens=max_new_tokens)
        naming = [i for i, (_, label) in enumerate(pairs) if named(texts[i], label)]
        words = {word for i in naming for word in emotion_words(pairs[i][1])}
        if naming:
            writing = Writing(forbidden=tuple(sorted(words)))
            again = generate(model, [asked[i] for i in naming], max_new_tokens=max_new_tokens, writing=writing)
            for i, text in zip(naming, again, strict=True):
                texts[i] = text
        return pd.DataFrame(pairs, columns=["topic", "label"]).assign(text=texts)

    if out is None:
        return _checked(write())
    settings = {**provenance(model), "stories": digest([*labels, *topics, str(max_new_tokens), prompt])}
    return _checked(kept(user_path(out) / "stories.parquet", settings, write))


def _checked(stories: pd.DataFrame) -> pd.DataFrame:
    for topic, label, text in stories[["topic", "label", "text"]].astype(str).to_numpy():
        if not text.strip() or named(text, label):
            problem = "names it" if text.strip() else "is empty"
            raise EmolabError(f"the story about {topic!r} and {label!r} {problem}; use another prompt or topic")
    return stories
