"""Wordings of the instruction: which one a model follows is tried on training questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd

from emolab.answers.queries import query_table
from emolab.answers.writing import Writing
from emolab.base.calls import once
from emolab.base.errors import EmolabError, need_model, need_texts, shown
from emolab.base.labels import NEUTRAL
from emolab.base.stats import LEVEL, clusters_of, interval, least_p, sign_flip
from emolab.judges.judges import ask, default_judge, judges_of, need_labels, top_labels

if TYPE_CHECKING:
    from emolab.models.model import Model

# Situations with which the test whether an emotion is followed at all can come out below LEVEL.
FEWEST = next(k for k in range(1, 99) if least_p(k, sides=1) < LEVEL)
# How somebody is who has the emotion; of other labels, "full of awe".
ADJECTIVES = {
    "anger": "furious",
    "disgust": "disgusted",
    "fear": "terrified",
    "joy": "overjoyed",
    "sadness": "heartbroken",
}
# name -> (neutral, emotional) user's turn, the frame of both the same, so that it cancels in the vectors. None: the
# instruction as a system turn, as `emolab.models.render_prompts` words it.
WORDINGS: dict[str, tuple[str, str] | None] = {
    "second person, adjective": (
        "{query} Answer in the first person.",
        "You are {adjective}. {query} Answer in the first person and show how {adjective} you are.",
    ),
    "second person, noun": (
        "{query} Answer in the first person.",
        "You feel {noun}. {query} Answer in the first person and show your {noun}.",
    ),
    "first person": (
        "Write in the first person. {query}",
        "Write in the first person, as someone who is {adjective}. {query}",
    ),
    "instruction, noun": ("{query}", "Answer with {noun}. {query}"),
    "instruction, adjective": ("{query}", "Sound {adjective} in your answer. {query}"),
    "system turn": None,
}


def templates_of(wording: str, emotions: Sequence[str]) -> dict[str, str] | None:
    """A bundled wording as `templates` of `Writing`, {condition: text with "{query}"}; None for the default.

    >>> templates_of("instruction, noun", ["joy", "awe"])
    {'neutral': '{query}', 'joy': 'Answer with joy. {query}', 'awe': 'Answer with awe. {query}'}
    >>> templates_of("first person", ["awe"])["awe"]
    'Write in the first person, as someone who is full of awe. {query}'
    """
    if wording not in WORDINGS:
        raise EmolabError(f"unknown wording {shown(wording)}; expected some of {', '.join(map(repr, WORDINGS))}")
    pair = WORDINGS[wording]
    if pair is None:
        return None
    templates, emotional = {NEUTRAL: pair[0]}, pair[1]
    for emotion in emotions:
        adjective = ADJECTIVES.get(emotion, f"full of {emotion}")
        templates[emotion] = emotional.replace("{adjective}", adjective).replace("{noun}", emotion)
    return templates


@dataclass(frozen=True, eq=False)
class WordingChoice:
    """The wording that a model followed best, and how each one fared.

    >>> choice.wording, choice.not_followed                                             # doctest: +SKIP
    ('second person, adjective', ('disgust',))

    wording     its name.
    templates   of it, for `Writing`; None where it is the default.
    table       one row a wording and emotion: `wording, emotion, following, lo, hi, neutral, p, n`. following: share of
                the answers under that emotion which the judge reads as it, with its 95 % interval over situations;
                neutral: share of the neutral answers, worded alike, that it reads as that emotion anyway; p: that the
                first is no larger than the second, query by query (`stats.sign_flip`), NaN where fewer than five
                situations could not tell; n queries.
    """

    wording: str
    templates: dict[str, str] | None
    table: pd.DataFrame

    @property
    def chosen(self) -> pd.DataFrame:
        """The rows of the wording that was kept."""
        return self.table[self.table["wording"] == self.wording].reset_index(drop=True)

    @property
    def not_followed(self) -> tuple[str, ...]:
        """Emotions that answers show no more often than neutral ones do, as far as these queries can tell (p > .05)."""
        return tuple(self.chosen.loc[self.chosen["p"] > LEVEL, "emotion"])

    def __str__(self) -> str:
        table, missed = self.chosen, self.chosen[self.chosen["emotion"].isin(self.not_followed)]
        n = int(table["n"].iloc[0])
        best = (
            f'Followed best is the wording "{self.wording}": {table["following"].mean():.0%} of the answers to {n} '
            f"training {'question' if n == 1 else 'questions'} show what was asked for."
        )
        if table["p"].isna().all():
            return f"{best} Fewer than {FEWEST} situations cannot tell which emotions are followed at all."
        if not len(missed):
            return f"{best} Every emotion is followed."
        shares = [
            f"{r.emotion} ({r.following:.0%} [{r.lo:.0%}, {r.hi:.0%}], of neutral answers {r.neutral:.0%})"
            for r in missed.itertuples()
        ]
        return f"{best} Not followed: {', '.join(shares)}; vectors of these answers say little about them."


def choose_wording(
    model: Model,
    queries: pd.DataFrame | Sequence[str] | str,
    emotions: Sequence[str],
    *,
    wordings: Sequence[str] | Mapping[str, dict[str, str]] | None = None,
    judges: Any = None,
    max_new_tokens: int = 60,
    writing: Writing = Writing(),
) -> WordingChoice:
    """Try wordings of the instruction on training questions and keep the one that the model follows best.

    >>> choice = emolab.choose_wording(model, load_queries("everyday", split="train", n=4), ("joy", "fear"))
    >>> writing = emolab.Writing(templates=choice.templates)
    >>> responses = emolab.collect_responses(model, queries, emotions=("joy", "fear"), writing=writing)

    wordings  names of `WORDINGS` (default: all), or your own {name: {condition: text with "{query}"}}, neutral among
              the conditions.
    judges    as `emolab.score` takes them; the first one counts. Default `default_judge`.

    Best is the highest mean over emotions of the share of answers that the judge reads as what was asked for. One
    wording is kept for all emotions, since their vectors have the answers to its neutral prompt in common.

    Raises EmolabError for held-out questions (a choice made on them would flatter the report), an unknown wording, one
    without an emotion or neutral, and a judge that lacks an emotion.
    """
    need_model(model)
    queries = query_table(queries, ("query_id", "query"))
    if "split" in queries and (queries["split"] == "heldout").any():
        raise EmolabError('some of these queries are held out; choose a wording on training ones (split="train")')
    emotions = need_texts("emotions", [emotions] if isinstance(emotions, str) else emotions, filled=True)
    emotions = [e for e in dict.fromkeys(emotions) if e != NEUTRAL]
    if not emotions:
        raise EmolabError("there is no emotion beside neutral; give at least one that the judge knows")
    judge = default_judge(emotions) if judges is None else judges_of(judges)[0]
    need_labels(judge, emotions)
    tried = _tried(wordings, emotions)
    answers = _answers(model, queries, emotions, tried, max_new_tokens, writing)
    answers["top"] = top_labels(judge, ask(judge, list(answers["text"]), list(answers["query"])))
    table = _following(answers, emotions, clusters_of(queries))
    best = str(table.groupby("wording", sort=False)["following"].mean().idxmax())
    return WordingChoice(best, tried[best], table)


def _tried(wordings: Any, emotions: Sequence[str]) -> dict[str, dict[str, str] | None]:
    if isinstance(wordings, str):
        wordings = [wordings]
    if not isinstance(wordings, Mapping):
        return {name: templates_of(name, emotions) for name in (wordings or WORDINGS)}
    for name, templates in wordings.items():
        missing = [c for c in (NEUTRAL, *emotions) if not hasattr(templates, "get") or not templates.get(c)]
        if missing:
            raise EmolabError(f'wording {name!r} has no text for {missing[0]}; expected {{condition: "... {{query}}"}}')
    if not wordings:
        raise EmolabError("there is no wording to try; leave wordings out for the bundled ones")
    return {str(name): dict(templates) for name, templates in wordings.items()}


def _answers(
    model: Model,
    queries: pd.DataFrame,
    emotions: Sequence[str],
    tried: Mapping[str, dict[str, str] | None],
    max_new_tokens: int,
    writing: Writing,
) -> pd.DataFrame:
    """`wording, condition, query_id, query, text`; equal prompts (neutral ones, mostly) are asked once."""
    from emolab.answers.generation import generate  # here, since names and templates need no torch
    from emolab.models.prompts import render_prompts

    parts = []
    for (wording, templates), condition in product(tried.items(), (NEUTRAL, *emotions)):
        prompts = render_prompts(model, list(queries["query"]), condition, templates=templates)
        asked = queries[["query_id", "query"]]
        parts.append(asked.assign(wording=wording, condition=condition, prompt=prompts))
    answers = pd.concat(parts, ignore_index=True)

    def write(prompts: list[str]) -> list[str]:
        return generate(model, prompts, max_new_tokens=max_new_tokens, writing=writing, raw=True)

    return answers.assign(text=once(list(answers["prompt"]), write))


def _following(answers: pd.DataFrame, emotions: Sequence[str], situations: pd.Series) -> pd.DataFrame:
    rows = []
    for wording, texts in answers.groupby("wording", sort=False):
        neutral = texts[texts["condition"] == NEUTRAL]
        for emotion in emotions:
            instructed = texts[texts["condition"] == emotion]
            hits, anyway = ((of["top"] == emotion).to_numpy(float) for of in (instructed, neutral))  # by query
            clusters = situations.loc[instructed["query_id"]].to_numpy()
            lo, hi = interval(hits, clusters=clusters)
            enough = len(set(clusters)) >= FEWEST
            p = sign_flip(hits - anyway, clusters=clusters, alternative="greater") if enough else float("nan")
            rows.append((wording, emotion, hits.mean(), lo, hi, anyway.mean(), p, len(hits)))
    return pd.DataFrame(rows, columns=["wording", "emotion", "following", "lo", "hi", "neutral", "p", "n"])
