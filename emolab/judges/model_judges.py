"""Judges that ask a model: an emotion classifier, zero-shot entailment, the steered model's own words.

>>> judges = [ClassifierJudge("SamLowe/roberta-base-go_emotions"), SelfReportJudge(model)]     # doctest: +SKIP
>>> scored = emolab.score(table, judges=judges)                                                # doctest: +SKIP

Their weights come from the hub, its cache or a directory. All read texts that are too long for the model in windows,
which are averaged by their tokens, see equal texts once, and give in a batch what they give alone (up to
rounding). A text of whose tokens a classifier does not know more than half, or which it spells byte by byte, is not
read: a row of NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit, softmax

from emolab.answers.logprobs import token_logprobs
from emolab.base.errors import EmolabError, need_model, need_texts
from emolab.base.labels import EMOTIONS, NEUTRAL, order
from emolab.base.progress import progress_bar
from emolab.judges.classifiers import BATCH, Classifier, load_classifier
from emolab.judges.judges import PROTOTYPES, need_groups
from emolab.judges.windows import averaged, cut
from emolab.models.prompts import prompt_ids, render_prompts, text_ids

SLACK = 16  # tokens: pieces of texts may tokenise a little longer
# What classifiers call the five emotions: GoEmotions' own grouping by Ekman (Demszky et al. 2020, ekman_mapping.json)
# and common other names. Surprise and all else is left out.
_NAMES = {
    "anger": "anger angry annoyance disapproval rage",
    "disgust": "disgust disgusted",
    "fear": "fear fearful afraid nervousness scared",
    "joy": "joy joyful happy happiness amusement approval excitement gratitude love optimism relief pride admiration "
    "desire caring",
    "sadness": "sadness sad disappointment embarrassment grief remorse",
}
NAMES = {name: emotion for emotion, names in _NAMES.items() for name in names.split()}
# What a class for none of the emotions is called; GoEmotions' labels, of which a text has several.
_NONE = "neutral none other others no_emotion noemotion calm".split()
_SEVERAL = {"admiration", "approval", "caring", "confusion", "curiosity", "desire", "realization", "remorse"}
HYPOTHESES = {e: f"The speaker feels {e}." for e in EMOTIONS} | {NEUTRAL: "The speaker feels no emotion."}
WORDS = {
    "anger": ("angry", "furious", "mad"), "disgust": ("disgusted", "repulsed", "sick"),
    "fear": ("afraid", "scared", "terrified"), "joy": ("happy", "delighted", "glad"),
    "sadness": ("sad", "heartbroken", "miserable"), "neutral": ("calm", "neutral", "indifferent"),
}  # fmt: skip


@dataclass(frozen=True)
class ClassifierJudge:
    """Any Hugging Face sequence classifier of emotions, by hub id or directory.

    >>> ClassifierJudge("j-hartmann/emotion-english-distilroberta-base")(["I am so happy!"])       # doctest: +SKIP
    >>> ClassifierJudge("path/to/mine", mapping={"LABEL_0": "calm", "LABEL_1": "joy"})              # doctest: +SKIP

    mapping {the model's label: emotion}; default: the five emotions by common names (`NAMES`), several labels of one
    emotion added up. Every other label counts as neutral, which here means "none of these emotions": were surprise
    dropped and the rest scaled up, a surprised text would be read as whatever trace of emotion is left beside it. A
    model without any label for that is warned of. A multi-label head (sigmoids) is scaled down where its labels sum to
    more than 1; what they leave below 1 is neutral. multi_label: whether it is such a head, where the model does not
    say so. Raises EmolabError where there is no such model, for weights without a trained classification head, for one
    that gives no probabilities (a regression), and for labels that do not fit.
    """

    source: str | Path
    mapping: Mapping[str, str] | None = None
    name: str = "classifier"
    device: str | None = None
    multi_label: bool | None = None

    def __post_init__(self) -> None:
        self._emotions  # noqa: B018 - a wrong model or mapping fails here, not after an hour of generation
        classes = self._classifier.classes
        none = {label.strip().lower().replace(" ", "_") for label in classes} & {*_NONE}
        if self.mapping is None and not self._sigmoids and not none:
            warnings.warn(
                f"{self.source} has no label for texts without emotion ({', '.join(classes)}): it gives one to plain "
                "texts, too; compare conditions, or take another model",
                stacklevel=3,
            )

    @property
    def labels(self) -> tuple[str, ...]:
        return (*order(filter(None, self._emotions)), NEUTRAL)

    @cached_property
    def _classifier(self) -> Classifier:
        return load_classifier(self.source, self.device)

    @cached_property
    def _sigmoids(self) -> bool:
        kind = self._classifier.model.config.problem_type
        if self.multi_label is not None:
            return self.multi_label
        if kind == "regression" or (kind is None and {*map(str.lower, self._classifier.classes)} >= _SEVERAL):
            what = "is a regression" if kind == "regression" else "does not say whether a text has one label or several"
            raise EmolabError(
                f"{self.source} {what}; say how to read it: multi_label=True (sigmoids) or False (softmax)"
            )
        return kind == "multi_label_classification"

    @cached_property
    def _emotions(self) -> list[str | None]:
        """The emotion of each class of the model, None where it has none."""
        classes = self._classifier.classes
        if self.mapping is None:
            emotions = [NAMES.get(label.strip().lower()) for label in classes]
        else:
            unknown = [label for label in self.mapping if label not in classes]
            if unknown:
                raise EmolabError(f"{self.source} has no label {unknown[0]!r}; it has {', '.join(classes)}")
            emotions = [self.mapping.get(label) for label in classes]
        if not {*emotions} - {None, NEUTRAL}:
            has = ", ".join(classes)
            raise EmolabError(f"{self.source} has the labels {has}; say what they mean: mapping={{label: emotion}}")
        return [None if emotion == NEUTRAL else emotion for emotion in emotions]

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        pieces, text_of, n_tokens = self._classifier.cut(texts)
        logits = self._classifier.logits([(piece, None) for piece in pieces])
        classes = expit(logits) if self._sigmoids else softmax(logits, axis=1)
        classes /= np.maximum(1, classes.sum(1, keepdims=True))  # of a multi-label head
        labels = self.labels
        values = np.zeros((len(pieces), len(labels)))
        for column, emotion in zip(classes.T, self._emotions, strict=True):
            if emotion:
                values[:, labels.index(emotion)] += column
        values[:, -1] = np.clip(1 - values.sum(1), 0, None)
        return self._classifier.of_texts(texts, averaged(values, text_of, n_tokens))


@dataclass(frozen=True)
class NLIJudge:
    """Zero-shot judge: softmax over how strongly a text entails one sentence for each label.

    >>> NLIJudge("facebook/bart-large-mnli")(["I am so happy!"])                                   # doctest: +SKIP

    source: a natural-language-inference model. hypotheses {label: sentence}, any labels. entailment: which of the
    model's labels means it; default the one that starts with "entail". A text that is too long is read in windows, each
    with the whole hypothesis. Method: Yin et al. 2019. Raises EmolabError where there is no such model, no one label of
    it means entailment, or a hypothesis leaves no room for a text.
    """

    source: str | Path
    hypotheses: Mapping[str, str] | None = None
    name: str = "nli"
    device: str | None = None
    entailment: str | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise EmolabError(f"hypotheses are {self.hypotheses!r}; expected a sentence for each of two labels or more")
        self._entailment  # noqa: B018

    @property
    def _hypotheses(self) -> Mapping[str, str]:
        return HYPOTHESES if self.hypotheses is None else self.hypotheses

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._hypotheses)

    @cached_property
    def _classifier(self) -> Classifier:
        return load_classifier(self.source, self.device)

    @cached_property
    def _entailment(self) -> int:
        classes = self._classifier.classes
        named = [label.strip().lower().startswith("entail") for label in classes]
        if self.entailment is not None:
            named = [label == self.entailment for label in classes]
        entailing = np.flatnonzero(named).tolist()
        if len(entailing) != 1:
            has = ", ".join(classes)
            raise EmolabError(
                f"{self.source} has the labels {has}; expected a model trained for entailment, or say which of them "
                "means it: entailment=label"
            )
        return entailing[0]

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        sentences = list(self._hypotheses.values())
        pieces, text_of, n_tokens = self._classifier.cut(texts, sentences)
        pairs: list = [(piece, sentence) for piece in pieces for sentence in sentences]
        logits = self._classifier.logits(pairs)[:, self._entailment]
        values = softmax(logits.reshape(len(pieces), len(self.labels)), axis=1)
        return self._classifier.of_texts(texts, averaged(values, text_of, n_tokens))


@dataclass(frozen=True)
class SelfReportJudge:
    """The model's own reading: log-probability of emotion words as its answer to a question about the text.

    >>> SelfReportJudge(model)(["I am so happy!"])                                                 # doctest: +SKIP

    The text and the question are the user's turn; of each word, the mean log-probability of its tokens as the
    assistant's answer (after `answer`, its beginning, where one is given), less the same after texts without emotion
    (`baseline`), so that common words win nothing (contextual calibration, Zhao et al. 2021; domain-conditional PMI,
    Holtzman et al. 2021). Then the mean over a label's words and the softmax over labels. words {label: words}. The
    model is asked unsteered: call this outside `steered`. It reads a text once a word (18 by default). A model may
    tell emotions apart so and take plain texts for emotional: compare it with another judge (`agreement`). Raises
    EmolabError for labels without words.
    """

    model: Any
    question: str = "How does the speaker feel?"
    words: Mapping[str, Sequence[str]] | None = None
    answer: str = ""
    baseline: Sequence[str] = tuple(PROTOTYPES[NEUTRAL])
    name: str = "self_report"

    def __post_init__(self) -> None:
        need_model(self.model)
        need_groups("words", self._words, "word")
        if not need_texts("baseline", self.baseline, filled=True):
            raise EmolabError("baseline is empty; expected at least one text without emotion")

    @property
    def _words(self) -> Mapping[str, Sequence[str]]:
        return WORDS if self.words is None else self.words

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._words)

    @cached_property
    def _reference(self) -> Float[np.ndarray, " label"]:
        return self._reports(list(self.baseline)).mean(0)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        unique = list(dict.fromkeys(texts))
        reports = np.zeros((len(unique), len(self.labels)))
        with progress_bar(self.name, len(unique)) as bar:
            for start in range(0, len(unique), BATCH):
                batch = unique[start : start + BATCH]
                reports[start : start + BATCH] = self._reports(batch)
                bar.update(len(batch))
        number = {text: i for i, text in enumerate(unique)}
        return softmax(reports - self._reference, axis=1)[[number[text] for text in texts]]

    def _reports(self, texts: list[str]) -> Float[np.ndarray, "text label"]:
        pieces, text_of, n_tokens = cut(self.model.tokenizer, texts, self._room)
        turns = [f"{piece}\n\n{self.question}".strip() for piece in pieces]
        prompts = render_prompts(self.model, turns)
        n = len(self._answers)
        starts = [self._own_tokens(answer) for answer in self._answers]
        logprobs = token_logprobs(self.model, [p for p in prompts for _ in range(n)], self._answers * len(prompts))
        values = np.array([row[starts[i % n] :].mean() for i, row in enumerate(logprobs)]).reshape(len(pieces), n)
        ends = np.cumsum([len(group) for group in self._words.values()])[:-1]
        labels = np.stack([part.mean(1) for part in np.split(values, ends, axis=1)], axis=1)
        return averaged(labels, text_of, n_tokens)

    @property
    def _room(self) -> int:
        """Tokens of a text that fit the model's context beside question and answer."""
        given = [*render_prompts(self.model, [self.question]), max(self._answers, key=len)]
        frame, longest = prompt_ids(self.model, given)
        return (self.model.n_ctx or 10**9) - len(frame) - len(longest) - SLACK

    @cached_property
    def _answers(self) -> list[str]:
        return [f"{self.answer} {word}".strip() for group in self._words.values() for word in group]

    def _own_tokens(self, answer: str) -> int:
        """Where the word's own tokens start: after those that the answer shares with its beginning."""
        whole, start = text_ids(self.model, [answer, self.answer])
        return next((i for i, (a, b) in enumerate(zip(whole, start, strict=False)) if a != b), len(start))
