"""Judges: what reads emotion in texts, independently of the vectors that steered them.

A judge is anything with `name`, `labels` and a call `judge(texts) -> probabilities [text, label]`; labels are emotions
and "neutral". One with `with_queries = True` is called judge(texts, queries). A text that a judge cannot read gets a
row of NaN, and "unread" as its top label; one that is too long for it is read in windows (`emolab.judges.windows`).
Here are those that need no further model; `judges.model_judges` holds those that ask one, `judges.scoring` runs judges
over a table.

>>> judges = [EmbeddingJudge(), LexiconJudge({"joy": {"happy", "glad"}})]
>>> scored = emolab.score(pd.DataFrame({"text": ["I am so happy!"]}), judges=judges)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from emolab.base.errors import EmolabError, need_number, shown
from emolab.base.labels import NEUTRAL
from emolab.judges.embedding import embed, unread
from emolab.judges.words import affirmed, unnamed, words_of

UNREAD = "unread"  # top label of a text that a judge cannot read
TEMPERATURE = 0.05  # of the softmax over cosines: a scale, not a truth
PROTOTYPES = {
    "anger": ["I am furious and outraged.", "This makes me so angry.", "I am full of rage, how dare they do this."],
    "disgust": [
        "This is disgusting and revolting.", "It makes me sick, how gross.",
        "I feel nausea at this filthy, foul thing.",
    ],
    "fear": [
        "I am terrified and afraid.", "This scares me to death.",
        "I am anxious and full of dread, something terrible will happen.",
    ],
    "joy": ["I am so happy and delighted.", "This fills me with joy.", "What a wonderful day, I am overjoyed."],
    "sadness": [
        "I am heartbroken and full of sorrow.", "This makes me so sad.",
        "I could cry, I feel lonely and full of grief.",
    ],
    "neutral": [
        "Here is some information about the topic.", "As an AI, I don't have feelings.",
        "It is ordinary, the same as usual.",
        "I described it plainly and noted the details.", "I looked at it for a while and then went on as planned.",
        "I was there in the morning and stayed as planned.", "First do this, and then do that.",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class EmbeddingJudge:
    """Softmax over the cosines of a text with prototype sentences of each label.

    >>> EmbeddingJudge()(["I am so happy!"]).round(2)          # columns as in .labels

    The prototypes of a label are averaged and brought to unit length. Probabilities depend on prototypes and
    temperature: compare conditions, do not read them as frequencies. prototypes {label: [sentences]} replaces the
    built-in ones (any labels). It reads English (`unread`), a long text in windows (`embed`). Raises EmolabError where
    a label has no list of sentences.
    """

    prototypes: Any = None
    temperature: float = TEMPERATURE
    name: str = "embedding"

    def __post_init__(self) -> None:
        need_groups("prototypes", self._sentences, "sentence")
        need_number("temperature", self.temperature, 0)
        if not self.temperature:
            raise EmolabError("temperature is 0; expected a number above 0")

    @property
    def _sentences(self) -> Any:
        return PROTOTYPES if self.prototypes is None else self.prototypes

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._sentences)

    @cached_property
    def _centres(self) -> Float[np.ndarray, "label dim"]:
        centres = np.stack([embed(list(sentences)).mean(0) for sentences in self._sentences.values()])
        return centres / np.linalg.norm(centres, axis=1, keepdims=True)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        centres = self._centres  # first, so that the texts are what `embed` embedded last
        scores = embed(texts).astype(np.float64) @ centres.T / self.temperature
        scores[unread(tuple(texts))] = np.nan
        return softmax(scores, axis=1)


class AroundJudge:
    """What a judge that asks another one, `judge`, passes on."""

    judge: Any

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.judge.labels)

    @property
    def with_queries(self) -> bool:
        return getattr(self.judge, "with_queries", False)


@dataclass(frozen=True)
class BlindJudge(AroundJudge):
    """Another judge that does not see the names of emotions: what it reads has "something" in their place.

    >>> BlindJudge(EmbeddingJudge())(["I am angry, angry, angry."])        # read as "I am something, something, ..."

    A vector may write the name of its emotion rather than the emotion, which judges by meaning reward. Hidden are the
    labels and their forms (`emolab.judges.words.emotion_words`); hidden: default the judge's own, without neutral.
    """

    judge: Any
    hidden: tuple[str, ...] | None = None
    name: str = "blind"

    def __post_init__(self) -> None:
        judges_of(self.judge)
        if isinstance(self.hidden, str):
            raise EmolabError(f"hidden is {self.hidden!r}; expected labels such as ('joy', 'fear')")

    def __call__(self, texts: Sequence[str], queries: Sequence[str] | None = None) -> Float[np.ndarray, "text label"]:
        hidden = [label for label in self.labels if label != NEUTRAL] if self.hidden is None else self.hidden
        return ask(self.judge, [unnamed(text, hidden) for text in texts], queries)


@dataclass(frozen=True)
class LexiconJudge:
    """Share of each emotion's words among a text's emotion words; one neutral pseudo-word, so that none is neutral.

    words {label: words}, lower case. A word that stands in two labels counts for both; equal shares go to the first.
    A word up to three behind a negation ("not at all happy") does not count. Of scripts that put no spaces between
    words, a word counts wherever it stands, and so does an emoji. Entries of several words are found as they stand.

    >>> LexiconJudge({"joy": {"happy", "glad"}, "fear": {"afraid"}})(["So glad, so happy."])
    array([[0.667, 0.   , 0.333]])
    """

    words: Any
    name: str = "lexicon"

    def __post_init__(self) -> None:
        need_groups("words", self.words, "word")
        odd = [word for group in self.words.values() for word in group if word != word.lower()]
        if odd:
            raise EmolabError(f"words hold {odd[0]!r}; expected lower case, as texts are read")

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.words, NEUTRAL)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        counts = np.ones((len(texts), len(self.labels)))
        groups = [{_entry(word) for word in group} for group in self.words.values()]
        for i, text in enumerate(texts):
            read = {"affirmed": _spaced(affirmed(text)), "said": _spaced(words_of(text)), "signs": _signs(text)}
            for j, group in enumerate(groups):
                counts[i, j] = sum(read[where].count(entry) for where, entry in group)
        return counts / counts.sum(1, keepdims=True)


def _entry(word: str) -> tuple[str, str]:
    """Where `LexiconJudge` looks for an entry, and what for: its words, or the signs of emoji and smileys."""
    if not any(map(str.isalnum, word)):
        return "signs", _signs(word.strip())
    words = words_of(word)
    return "affirmed" if affirmed(word) == words else "said", _spaced(words)  # "not happy" denies a word itself


def _spaced(words: list[str]) -> str:
    return f" {'  '.join(words)} "  # so that each has its own space on either side


def _signs(text: str) -> str:
    """Without letters, and without what chooses between a coloured emoji and a plain one."""
    return "".join(" " if c.isalnum() else c for c in text if c != "\ufe0f")


@dataclass(frozen=True)
class FunctionJudge:
    """Your own judge, for example an LLM: a function texts -> probabilities [text, label].

    >>> judge = FunctionJudge(ask_my_llm, ("joy", "neutral"), name="llm")          # doctest: +SKIP

    with_queries=True: the function is called with (texts, queries). Raises EmolabError for an answer of another shape.
    """

    function: Callable[..., Any]
    labels: tuple[str, ...]
    name: str = "own"
    with_queries: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise EmolabError(f"the function is {shown(self.function)}; expected texts -> probabilities [text, label]")
        if isinstance(self.labels, str) or not self.labels or len(set(self.labels)) < len(self.labels):
            raise EmolabError(f"labels are {shown(self.labels)}; expected names such as ('joy', 'neutral'), each once")

    def __call__(self, texts: Sequence[str], queries: Sequence[str] | None = None) -> Float[np.ndarray, "text label"]:
        return _probabilities(self, self.function(texts, queries) if self.with_queries else self.function(texts), texts)


def default_judge(emotions: Sequence[str]) -> EmbeddingJudge:
    """The embedding judge for these labels and neutral: built-in prototypes, and made ones for labels that have none.

    >>> default_judge(["joy", "nostalgia"]).labels
    ('joy', 'nostalgia', 'neutral')

    A made prototype only names its label ("I feel nostalgia."): for labels of your own write better ones. With the five
    emotions it is `EmbeddingJudge()`.
    """
    if set(emotions) == set(PROTOTYPES) - {NEUTRAL}:
        return EmbeddingJudge()
    made = {e: [f"I feel {e}.", f"This text is full of {e}.", f"The speaker shows {e}."] for e in emotions}
    return EmbeddingJudge({e: PROTOTYPES.get(e, made[e]) for e in emotions} | {NEUTRAL: PROTOTYPES[NEUTRAL]})


def ask(judge: Any, texts: Sequence[str], queries: Iterable[str] | None = None) -> Float[np.ndarray, "text label"]:
    """What a judge says of texts; EmolabError where it wants their queries and there are none."""
    if not getattr(judge, "with_queries", False):
        return _probabilities(judge, judge(texts), texts)
    if queries is None:
        raise EmolabError(f"judge {judge.name!r} reads each text with its query; expected queries too")
    return _probabilities(judge, judge(texts, list(queries)), texts)


def judges_of(given: Any) -> list[Any]:
    """One judge or several as a list, `EmbeddingJudge` for None; EmolabError for what is none, or two of one name."""
    given = EmbeddingJudge() if given is None else given
    judges = list(given) if isinstance(given, list | tuple) else [given]
    odd = [j for j in judges if isinstance(j, type) or not callable(j) or not hasattr(j, "labels")]
    if odd or not judges:
        problem = f"the judge is {shown(odd[0])}" if odd else "there is no judge"
        raise EmolabError(f"{problem}; expected one such as EmbeddingJudge(), or FunctionJudge(your_function, labels)")
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise EmolabError(f"judges are named {', '.join(names)}; give each its own name, their columns bear it")
    return judges


def need_labels(judges: Any, labels: Sequence[str]) -> None:
    """Raise EmolabError where one of the judges cannot tell one of these labels."""
    for judge in judges_of(judges):
        unread = [label for label in labels if label not in judge.labels]
        if unread:
            known = ", ".join(judge.labels)
            raise EmolabError(
                f"judge {judge.name!r} cannot tell {', '.join(unread)}, only {known}; give judges= that can"
            )


def _probabilities(judge: Any, values: Any, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
    """What a judge returned, checked: it is anybody's code, and a score of 0 to 10 would pass for a probability."""
    try:
        values = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        values = np.full(0, np.nan)
    shape = (len(texts), len(judge.labels))
    problem = "what are no probabilities"
    if values.shape != shape:
        problem = f"shape {values.shape}"
    else:
        read = values[~np.isnan(values).all(1)]  # a text not read is a row of NaN
        if ((read > -1e-6) & (read < 1 + 1e-6)).all():
            return values
    raise EmolabError(f"judge {judge.name!r} returned {problem}; expected {shape} finite numbers from 0 to 1")


def need_groups(name: str, groups: Any, what: str) -> None:
    """EmolabError unless {label: [texts]}, at least one of either: a text alone would be taken letter by letter."""
    if not hasattr(groups, "items") or not groups:
        raise EmolabError(f"{name} are {shown(groups)}; expected {{label: [{what}, ...]}}")
    for label, group in groups.items():
        listed = not isinstance(group, str) and hasattr(group, "__iter__")
        if not listed or not len(list(group)) or not all(isinstance(x, str) and x.strip() for x in group):
            raise EmolabError(f"{name}[{label!r}] is {shown(group)}; expected a list of at least one {what}")


def top_labels(judge: Any, values: Float[np.ndarray, "text label"]) -> list[str]:
    """Each text's most probable label; "unread" where the judge could not read it.

    >>> top_labels(EmbeddingJudge(), EmbeddingJudge()(["I am so happy!", "😡😡😡"]))
    ['joy', 'unread']
    """
    if not len(values):
        return []
    tops = np.array(judge.labels, dtype=object)[np.nan_to_num(values).argmax(1)]
    return np.where(np.isnan(values).all(axis=1), UNREAD, tops).tolist()
