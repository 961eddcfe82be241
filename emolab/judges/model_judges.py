"""Judges that ask a model: an emotion classifier, zero-shot entailment, the steered model's own words.

>>> judges = [ClassifierJudge("SamLowe/roberta-base-go_emotions"), SelfReportJudge(model)]     # doctest: +SKIP
>>> scored = emolab.score(table, judges=judges)                                                # doctest: +SKIP

Their weights come from the hub, its cache or a directory. All cut long texts at the model's limit (`n_cut` says by how
many tokens), see equal texts once, and give in a batch what they give alone (up to rounding). A text of whose tokens a
classifier does not know more than half is not read: a row of NaN.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import expit, softmax

from emolab.base.errors import EmolabError, need_model, need_texts
from emolab.base.labels import EMOTIONS, NEUTRAL, order
from emolab.base.progress import progress_bar
from emolab.judges.judges import PROTOTYPES, _need_groups
from emolab.models.pretrained import quiet
from emolab.models.prompts import render_prompts

MAX_TOKENS = 512
BATCH = 32
SLACK = 16  # tokens: texts that are cut may tokenise a little longer
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
    multi-label head (sigmoids) is scaled down where its labels sum to more than 1; what they leave below 1 is neutral.
    Raises EmolabError where there is no such model, for weights without a trained classification head, and for labels
    that do not fit.
    """

    source: str | Path
    mapping: Mapping[str, str] | None = None
    name: str = "classifier"
    device: str | None = None

    def __post_init__(self) -> None:
        self._emotions  # noqa: B018 - a wrong model or mapping fails here, not after an hour of generation

    @property
    def labels(self) -> tuple[str, ...]:
        return (*order(filter(None, self._emotions)), NEUTRAL)

    @cached_property
    def _loaded(self) -> _Classifier:
        return _Classifier.load(self.source, self.device)

    @cached_property
    def _emotions(self) -> list[str | None]:
        """The emotion of each class of the model, None where it has none."""
        classes = self._loaded.classes
        if self.mapping is not None:
            unknown = [label for label in self.mapping if label not in classes]
            if unknown:
                raise EmolabError(f"{self.source} has no label {unknown[0]!r}; it has {', '.join(classes)}")
            found = [self.mapping.get(label) for label in classes]
        else:
            found = [NAMES.get(label.lower()) for label in classes]
        found = [None if emotion == NEUTRAL else emotion for emotion in found]
        if not any(found):
            has = ", ".join(classes)
            raise EmolabError(f"{self.source} has the labels {has}; say what they mean: mapping={{label: emotion}}")
        return found

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        unique = list(dict.fromkeys(texts))
        logits = self._loaded.logits(unique)
        if self._loaded.model.config.problem_type == "multi_label_classification":
            classes = expit(logits)
            classes /= np.maximum(1, classes.sum(1, keepdims=True))
        else:
            classes = softmax(logits, axis=1)
        labels = self.labels
        values = np.zeros((len(unique), len(labels)))
        for column, emotion in zip(classes.T, self._emotions, strict=True):
            if emotion:
                values[:, labels.index(emotion)] += column
        values[:, -1] = np.clip(1 - values.sum(1), 0, None)
        return _spread(values, unique, texts)

    def n_cut(self, texts: Sequence[str]) -> Int[np.ndarray, " text"]:
        """Tokens of each text that are not read."""
        return self._loaded.n_cut(texts)


@dataclass(frozen=True)
class NLIJudge:
    """Zero-shot judge: softmax over how strongly a text entails one sentence for each label.

    >>> NLIJudge("facebook/bart-large-mnli")(["I am so happy!"])                                   # doctest: +SKIP

    source: a natural-language-inference model (one of its labels starts with "entail"). hypotheses {label: sentence},
    any labels. Of a text that is too long the end is cut, never the hypothesis. Method: Yin et al. 2019. Raises
    EmolabError where there is no such model or it was not trained for entailment.
    """

    source: str | Path
    hypotheses: Mapping[str, str] | None = None
    name: str = "nli"
    device: str | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise EmolabError(f"hypotheses are {self.hypotheses!r}; expected a sentence for each of two labels or more")
        self._entailment  # noqa: B018

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(HYPOTHESES if self.hypotheses is None else self.hypotheses)

    @cached_property
    def _loaded(self) -> _Classifier:
        return _Classifier.load(self.source, self.device)

    @cached_property
    def _entailment(self) -> int:
        found = [i for i, label in enumerate(self._loaded.classes) if label.lower().startswith("entail")]
        if not found:
            has = ", ".join(self._loaded.classes)
            raise EmolabError(f"{self.source} has the labels {has}; expected a model trained for entailment")
        return found[0]

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        unique, sentences = list(dict.fromkeys(texts)), list((self.hypotheses or HYPOTHESES).values())
        premises = [text for text in unique for _ in sentences]
        logits = self._loaded.logits(premises, sentences * len(unique))
        values = softmax(logits[:, self._entailment].reshape(len(unique), len(sentences)), axis=1)
        return _spread(values, unique, texts)

    def n_cut(self, texts: Sequence[str]) -> Int[np.ndarray, " text"]:
        """Tokens of each text that are not read beside the longest hypothesis."""
        return self._loaded.n_cut(texts, list((self.hypotheses or HYPOTHESES).values()))


@dataclass(frozen=True)
class SelfReportJudge:
    """The model's own reading: log-probability of emotion words as its answer to a question about the text.

    >>> SelfReportJudge(model)(["I am so happy!"])                                                 # doctest: +SKIP

    The text and the question are the user's turn; of each word, the mean log-probability of its tokens as the
    assistant's answer (after `answer`, its beginning, where one is given), less the same after texts without emotion
    (`baseline`), so that common words win nothing (contextual calibration, Zhao et al. 2021; domain-conditional PMI,
    Holtzman et al. 2021). Then the mean over a label's words and the softmax over labels. words {label: words}. The
    model is asked unsteered: call this outside `steered`. It reads a text once a word (18 by default). A model may
    tell emotions apart so, and plain texts only after `calibrated`. Raises EmolabError for labels without words.
    """

    model: Any
    question: str = "How does the speaker feel?"
    words: Mapping[str, Sequence[str]] | None = None
    answer: str = ""
    baseline: Sequence[str] = tuple(PROTOTYPES[NEUTRAL])
    name: str = "self_report"

    def __post_init__(self) -> None:
        need_model(self.model)
        _need_groups("words", WORDS if self.words is None else self.words, "word")
        if not need_texts("baseline", self.baseline, filled=True):
            raise EmolabError("baseline is empty; expected at least one text without emotion")

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.words or WORDS)

    @cached_property
    def _reference(self) -> Float[np.ndarray, " label"]:
        return self._reports(list(self.baseline)).mean(0)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        unique, reports = list(dict.fromkeys(texts)), [np.zeros((0, len(self.labels)))]
        with progress_bar(self.name, len(unique)) as bar:
            for start in range(0, len(unique), BATCH):
                reports.append(self._reports(unique[start : start + BATCH]))
                bar.update(len(reports[-1]))
        return _spread(softmax(np.concatenate(reports) - self._reference, axis=1), unique, texts)

    def _reports(self, texts: list[str]) -> Float[np.ndarray, "text label"]:
        from emolab.answers.logprobs import token_logprobs

        turns = [f"{text}\n\n{self.question}".strip() for text in self._cut(texts)]
        prompts = render_prompts(self.model, turns)
        n, own = len(self._answers), [self._own_tokens(answer) for answer in self._answers]
        found = token_logprobs(self.model, [p for p in prompts for _ in range(n)], self._answers * len(prompts))
        values = np.array([row[own[i % n] :].mean() for i, row in enumerate(found)]).reshape(len(texts), n)
        ends = np.cumsum([len(group) for group in (self.words or WORDS).values()])[:-1]
        return np.stack([part.mean(1) for part in np.split(values, ends, axis=1)], axis=1)

    @cached_property
    def _answers(self) -> list[str]:
        return [f"{self.answer} {word}".strip() for group in (self.words or WORDS).values() for word in group]

    def _own_tokens(self, answer: str) -> int:
        """Where the word's own tokens start: after those that the answer shares with its beginning."""
        whole, start = self.model.tokenizer([answer, self.answer], add_special_tokens=False).input_ids
        return next((i for i, (a, b) in enumerate(zip(whole, start, strict=False)) if a != b), len(start))

    def n_cut(self, texts: Sequence[str]) -> Int[np.ndarray, " text"]:
        """Tokens of each text that are not read."""
        rows, room = self._fitted(list(texts))
        return np.array([max(0, len(row) - room) for row in rows], int)

    def _cut(self, texts: list[str]) -> list[str]:
        """Texts without what leaves no room in the model's context for question and answer."""
        (rows, room), decode = self._fitted(texts), self.model.tokenizer.decode
        return [t if len(row) <= room else decode(row[:room]) for t, row in zip(texts, rows, strict=True)]

    def _fitted(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """The tokens of each text, and how many fit."""
        given = [*render_prompts(self.model, [self.question]), max(self._answers, key=len), *texts]
        frame, longest, *rows = self.model.tokenizer(given, add_special_tokens=False).input_ids
        return rows, (self.model.n_ctx or 10**9) - len(frame) - len(longest) - SLACK


@dataclass(frozen=True)
class _Classifier:
    """A sequence classifier, ready to run: texts, or pairs of texts, to logits."""

    model: Any
    tokenizer: Any
    classes: list[str]
    limit: int

    @classmethod
    def load(cls, source: str | Path, device: str | None) -> _Classifier:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            with quiet():
                logging.getLogger("transformers").setLevel(logging.ERROR)  # missing weights are told below
                tokenizer = AutoTokenizer.from_pretrained(source)
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    source, use_safetensors=True, output_loading_info=True
                )
        except Exception as error:  # hub client, safetensors and tokenizers raise many kinds
            raise EmolabError(
                f"no classifier {str(source)!r}: neither a directory with a Hugging Face model and its tokenizer, nor "
                f"a hub id reachable from here ({str(error).splitlines()[0]})"
            ) from error
        config = model.config
        if info["missing_keys"] or config.num_labels < 2:
            what = f"lacks {min(info['missing_keys'])}" if info["missing_keys"] else "has one output"
            raise EmolabError(f"{source} {what}: it was not trained to classify; take a sequence classifier")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        config.pad_token_id = tokenizer.pad_token_id  # decoders find a row's last token by it
        tokenizer.padding_side = "right"
        # RoBERTa and its kin lose two positions to padding.
        limit = min(MAX_TOKENS, tokenizer.model_max_length, (getattr(config, "max_position_embeddings", 0) or 1e9) - 2)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        classes = [config.id2label[i] for i in range(config.num_labels)]
        return cls(model.float().to(device).eval().requires_grad_(False), tokenizer, classes, int(limit))

    def logits(self, texts: list[str], pairs: list[str] | None = None) -> Float[np.ndarray, "text class"]:
        accepted = inspect.signature(self.model.forward).parameters
        out = np.zeros((len(texts), len(self.classes)))
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        options = {"truncation": "only_first" if pairs else True, "max_length": self.limit}
        with progress_bar("classify", len(texts)) as bar:
            for start in range(0, len(texts), BATCH):
                index = by_length[start : start + BATCH]
                second = [pairs[i] for i in index] if pairs else None
                batch = self.tokenizer(
                    [texts[i] for i in index], second, padding=True, return_tensors="pt", **options
                ).to(self.model.device)
                with torch.inference_mode():
                    logits = self.model(**{key: v for key, v in batch.items() if key in accepted}).logits
                out[index] = logits.double().cpu().numpy()
                bar.update(len(index))
        out[self._unread(texts)] = np.nan
        return out

    def _unread(self, texts: Sequence[str]) -> Bool[np.ndarray, " text"]:
        """Texts of which more than half is one and the same unknown token."""
        unknown = self.tokenizer.unk_token_id
        return np.array([2 * row.count(unknown) > len(row) for row in self._ids(texts)], bool)

    def n_cut(self, texts: Sequence[str], beside: Sequence[str] = ()) -> Int[np.ndarray, " text"]:
        """Tokens of each text beyond the limit, beside the longest of other sentences."""
        room = self.limit - self.tokenizer.num_special_tokens_to_add(bool(beside))
        room -= max(map(len, self._ids(beside)), default=0)
        return np.array([max(0, len(row) - room) for row in self._ids(texts)], int)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids if len(texts) else []


def _spread(values: np.ndarray, unique: list[str], texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
    place = {text: i for i, text in enumerate(unique)}
    return values[[place[text] for text in texts]]
