"""Causal tests of heads: what is done to them, on which pairs of prompts, and what is measured (`heads.measures`).

>>> space = HeadSpace(model, vectors)
>>> trial = setup(space, responses, HeadTest("patch"), seed=0)
>>> trial.values({"joy": [([(2, 0)], False), ([(2, 0)], True)]})             # [1 emotion, query, 4 runs]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from emolab.answers.writing import Writing, need_writing
from emolab.base.errors import EmolabError, need_number, need_table
from emolab.base.labels import NEUTRAL
from emolab.base.stats import bootstrap_ci, clusters_of, sign_flip
from emolab.base.tables import noted
from emolab.heads.attribution import emotion_tokens, word_tokens
from emolab.heads.measures import READ, JudgedText, PatchRun, Space, WordProbability
from emolab.judges.judges import judges_of
from emolab.models.model import Model
from emolab.models.prompts import text_ids
from emolab.models.sites import output_norm
from emolab.steering.head_edits import OPS, Change, Heads, HeadSpace
from emolab.vectors.corpus import check_origin


@dataclass(frozen=True)
class HeadTest:
    """How heads are tested: what is done to them, what is measured, and on how much.

    >>> emolab.HeadTest("patch", words={"joy": ["happy", "glad"], "sadness": ["sad", "lonely"]}, n_queries=8)
    >>> emolab.HeadTest("ablate", judge=judge, max_new_tokens=40)

    Attributes:
        op: "ablate": in the instructed run each head loses the component of its output along its emotion vector, from
            the last prompt token on. "patch": the neutral run gets the head's output from the instructed run of the
            same query, at the tokens of the answer; written texts would diverge and positions with them, so this test
            has no judge. "steer": the neutral run plus dose times the head's own vector.
        words: {emotion: words} to measure; None: the words typical of each emotion in the responses
            (`emotion_tokens`). The measure is the log of their mean next-token probability while the model reads, after
            either prompt, the first 32 tokens of the neutral answer: one text for all runs, so that positions match
            token by token although prompts differ in length, and emotion comes from the instruction alone, not from the
            words read.
        judge: None measures words; else a judge (`emolab.judges`) of the text that the model writes, by its probability
            of the emotion. Every tested head then writes a text for each emotion and query, and one for its control.
        dose: how many times the component is taken away, or the vector added.
        n_queries: how many of the queries that were answered under all conditions are drawn. With fewer than about 10
            situations no q is small.
        max_new_tokens, writing: of texts that a judge reads. The batch size of `writing` is that of all runs.

    Raises EmolabError for an unknown op, "patch" with a judge, and numbers outside their bounds.
    """

    op: str = "ablate"
    words: Mapping[str, Sequence[str]] | None = field(default=None, kw_only=True)
    judge: Any = field(default=None, kw_only=True)
    dose: float = field(default=1.0, kw_only=True)
    n_queries: int = field(default=10, kw_only=True)
    max_new_tokens: int = field(default=80, kw_only=True)
    writing: Writing = field(default=Writing(), kw_only=True)

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise EmolabError(f"unknown test {self.op!r}; expected one of {', '.join(OPS)}")
        if self.op == "patch" and self.judge is not None:
            raise EmolabError("patching needs one text for both runs, so it has no judge; leave judge out")
        need_number("dose", self.dose)
        need_number("n_queries", self.n_queries, 1, whole=True)
        need_number("max_new_tokens", self.max_new_tokens, 1, whole=True)
        need_writing(self.writing)


@dataclass(frozen=True)
class Trial:
    """A test on the two prompts of every query, neutral and instructed: its runs, and statistics of their values."""

    test: HeadTest
    space: Space
    measure: WordProbability | JudgedText
    queries: list[str]
    others: list[str]  # as many again, on which heads are chosen; empty where there are not so many
    situations: np.ndarray  # of the queries: those of one situation are resampled together
    prompts: Mapping[Any, str]  # by (query_id, condition)
    texts: dict[str, str]  # query_id -> what all its runs read
    seed: int

    def change(self, emotion: str, where: Heads, random: int | None = None) -> Change:
        return Change(self.test.op, emotion, tuple(where), self.test.dose, random)

    def run(self, query: str, emotion: str, change: Change | None = None) -> PatchRun:
        """The run that is changed."""
        op, instructed = self.test.op, self.prompts[query, emotion]
        source = instructed if op == "patch" and change is not None else None
        prompt = instructed if op == "ablate" else self.prompts[query, NEUTRAL]
        return PatchRun(prompt, self.texts[query], emotion, change, source)

    def goal(self, query: str, emotion: str) -> PatchRun:
        """The run at the other end."""
        condition = NEUTRAL if self.test.op == "ablate" else emotion
        return PatchRun(self.prompts[query, condition], self.texts[query], emotion)

    def values(self, places: Mapping[str, Sequence[tuple[Heads, bool]]]) -> Float[np.ndarray, "emotion query run"]:
        """Of every emotion and query the run that is changed, the one at the other end, and one for each change.

        places: of each emotion the heads (neurons, sublayers) that are changed together, and whether along random
        directions, which are others for every query.
        """
        runs = []
        for emotion, changed in places.items():
            for number, query in enumerate(self.queries):
                control = 1_000_003 * (self.seed + 1) + number
                changes = [self.change(emotion, where, control if random else None) for where, random in changed]
                runs += [self.run(query, emotion), self.goal(query, emotion)]
                runs += [self.run(query, emotion, change) for change in changes]
        return self.measure(self.space, runs).reshape(len(places), len(self.queries), -1)

    def interval(self, values: Float[np.ndarray, "query ..."]) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval of the mean over queries."""
        return bootstrap_ci(values, lambda rows: rows.mean(0), clusters=self.situations, seed=self.seed)[1:]

    def p(self, differences: Float[np.ndarray, "query ..."]) -> np.ndarray:
        """That the differences are as likely up as down: all flips of up to 14 situations, else random ones."""
        return sign_flip(differences, clusters=self.situations, n=20_000, seed=self.seed)

    def noted(self, table: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        """The table, with how it was made."""
        of_test = {"test": self.test.op, "measure": self.measure.name, "dose": self.test.dose}
        n = f"{len(self.queries)} queries"
        return noted(table, self.space.model, n=n, seed=self.seed, params=of_test | params)


def setup(space: Space, responses: pd.DataFrame, test: HeadTest | str, seed: int, *, ops: Sequence[str] = OPS) -> Trial:
    """A test with these responses, or the one by words of this op; EmolabError where they, or the op, do not fit."""
    model = space.model
    test = HeadTest(test) if isinstance(test, str) else test
    if test.op not in ops:
        raise EmolabError(f'"{test.op}" is a test of heads one by one; expected {" or ".join(map(repr, ops))}')
    need_table(responses, ("query_id", "condition", "prompt", "text"), "emolab.collect_responses")
    check_origin(model, responses)
    judge = None if test.judge is None else judges_of(test.judge)[0]
    blocks = model.bridge.blocks if isinstance(space, HeadSpace) and test.op == "steer" else ()
    if any(output_norm(block, "head") is not None for block in blocks):
        raise EmolabError(f"{model.name!r} rescales attention before adding it, so a head has no fixed vector to add")
    prompted = responses[responses["prompt"].fillna("") != ""]
    if prompted.empty:
        raise EmolabError(
            "causal tests run prompts with and without instruction: responses from collect_responses, not from texts"
        )
    conditions = {NEUTRAL, *space.emotions}
    answers = prompted[prompted["condition"].isin(conditions)]
    lengths = [len(ids) for ids in text_ids(model, list(answers["text"]))]
    answers = answers[np.array(lengths, dtype=int) > 0].set_index(["query_id", "condition"])
    prompts, texts = answers["prompt"].to_dict(), answers["text"].to_dict()  # (query_id, condition) -> prompt, answer
    queries = [q for q in dict.fromkeys(responses["query_id"]) if all((q, c) in prompts for c in conditions)]
    if not queries:
        raise EmolabError(
            f"no query has an answer under each of {', '.join(sorted(conditions))}; "
            "use collect_responses(pairing='all')"
        )
    drawn = np.random.default_rng(seed).permutation(len(queries))
    tested = [queries[i] for i in sorted(drawn[: test.n_queries])]
    others = [queries[i] for i in sorted(drawn[test.n_queries : 2 * test.n_queries])]
    return Trial(
        test=test,
        space=space,
        measure=JudgedText(judge, test.max_new_tokens, test.writing)
        if judge is not None
        else word_probability(space, responses, test),
        queries=tested,
        others=others if len(others) == test.n_queries else [],
        situations=clusters_of(responses).loc[tested].to_numpy(),
        prompts=prompts,
        texts={query: _beginning(model, texts[query, NEUTRAL]) for query in (*tested, *others)},
        seed=seed,
    )


def word_probability(space: Space, responses: pd.DataFrame, test: HeadTest) -> WordProbability:
    """The measure by words: the test's own, or those typical of each emotion in the responses."""
    model, words = space.model, test.words
    tokens = emotion_tokens(model, responses) if words is None else word_tokens(model, dict(words))
    missing = [e for e in space.emotions if e not in tokens]
    if missing:
        raise EmolabError(
            f"words lack {', '.join(missing)}; give {{emotion: [words]}} for every emotion of the vectors"
        )
    return WordProbability(tokens, test.writing.batch_size)


def _beginning(model: Model, text: str) -> str:
    """The part of an answer that is read."""
    ids = text_ids(model, [text])[0]
    return text if len(ids) <= READ else model.tokenizer.decode(ids[:READ]).rstrip("\ufffd")  # half a character
