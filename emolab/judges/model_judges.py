"""Judges that ask a model: an emotion classifier, zero-shot entailment, the steered model's own words.

>>> judges = [ClassifierJudge("SamLowe/roberta-base-go_emotions"), SelfReportJudge(model)]     # doctest: +SKIP
>>> scored = emolab.score(table, judges=judges)                                                # doctest: +SKIP

Their weights come from the hub, its cache or a directory. All cut long texts at the model's limit (`n_cut` says by how
many tokens), see equal texts once, and give in a batch what they give alone (up to rounding). A text of whose tokens a
classifier does not know more than half is not read: a row of NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import softmax

from emolab.answers.logprobs import token_logprobs
from emolab.base.errors import EmolabError, need_model, need_texts
from emolab.base.labels import EMOTIONS, NEUTRAL, order
from emolab.base.progress import progress_bar
from emolab.base.storage import user_path
from emolab.judges.judges import PROTOTYPES, need_groups
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
    def _pipeline(self) -> Any:
        return _classifier(self.source, self.device)

    @cached_property
    def _emotions(self) -> list[str | None]:
        """The emotion of each class of the model, None where it has none."""
        classes = _classes(self._pipeline)
        if self.mapping is None:
            emotions = [NAMES.get(label.lower()) for label in classes]
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
        classes = _read(self._pipeline, [(text, None) for text in texts])
        classes /= np.maximum(1, classes.sum(1, keepdims=True))  # of a multi-label head
        labels = self.labels
        values = np.zeros((len(texts), len(labels)))
        for column, emotion in zip(classes.T, self._emotions, strict=True):
            if emotion:
                values[:, labels.index(emotion)] += column
        values[:, -1] = np.clip(1 - values.sum(1), 0, None)
        return values

    def n_cut(self, texts: Sequence[str]) -> Int[np.ndarray, " text"]:
        """Tokens of each text that are not read."""
        return _beyond(self._pipeline, texts)


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

    @property
    def _sentences(self) -> list[str]:
        return list((self.hypotheses or HYPOTHESES).values())

    @cached_property
    def _pipeline(self) -> Any:
        return _classifier(self.source, self.device)

    @cached_property
    def _entailment(self) -> int:
        classes = _classes(self._pipeline)
        entailing = [i for i, label in enumerate(classes) if label.lower().startswith("entail")]
        if not entailing:
            has = ", ".join(classes)
            raise EmolabError(f"{self.source} has the labels {has}; expected a model trained for entailment")
        return entailing[0]

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        pairs: list = [(text, sentence) for text in texts for sentence in self._sentences]
        logits = _read(self._pipeline, pairs, function_to_apply="none")[:, self._entailment]
        return softmax(logits.reshape(len(texts), len(self.labels)), axis=1)

    def n_cut(self, texts: Sequence[str]) -> Int[np.ndarray, " text"]:
        """Tokens of each text that are not read beside the longest hypothesis."""
        return _beyond(self._pipeline, texts, self._sentences)


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
        need_groups("words", WORDS if self.words is None else self.words, "word")
        if not need_texts("baseline", self.baseline, filled=True):
            raise EmolabError("baseline is empty; expected at least one text without emotion")

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.words or WORDS)

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
        turns = [f"{text}\n\n{self.question}".strip() for text in self._cut(texts)]
        prompts = render_prompts(self.model, turns)
        n = len(self._answers)
        starts = [self._own_tokens(answer) for answer in self._answers]
        logprobs = token_logprobs(self.model, [p for p in prompts for _ in range(n)], self._answers * len(prompts))
        values = np.array([row[starts[i % n] :].mean() for i, row in enumerate(logprobs)]).reshape(len(texts), n)
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
        ids, room = self._fitted(list(texts))
        return np.array([max(0, len(own) - room) for own in ids], int)

    def _cut(self, texts: list[str]) -> list[str]:
        """Texts without what leaves no room in the model's context for question and answer."""
        ids, room = self._fitted(texts)
        decode = self.model.tokenizer.decode
        return [text if len(own) <= room else decode(own[:room]) for text, own in zip(texts, ids, strict=True)]

    def _fitted(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """The tokens of each text, and how many fit."""
        given = [*render_prompts(self.model, [self.question]), max(self._answers, key=len), *texts]
        frame, longest, *rows = self.model.tokenizer(given, add_special_tokens=False).input_ids
        return rows, (self.model.n_ctx or 10**9) - len(frame) - len(longest) - SLACK


def _classifier(source: str | Path, device: str | None) -> Any:
    """A transformers pipeline that gives the scores of all classes; EmolabError where nothing was trained to do that.

    Its tokenizer cuts texts at `model_max_length`.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    place = str(user_path(source))
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(place)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                place, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # hub client, safetensors and tokenizers raise many kinds
        raise EmolabError(
            f"no classifier {str(source)!r}: neither a directory with a Hugging Face model and its tokenizer, nor a "
            f"hub id reachable from here ({str(error).splitlines()[0]})"
        ) from error
    if info["missing_keys"]:  # transformers would draw them at random
        lacking = min(info["missing_keys"])
        raise EmolabError(f"{source} lacks {lacking}: it was not trained to classify; take a sequence classifier")
    if model.config.num_labels < 2:
        raise EmolabError(f"{source} has one output: it was not trained to classify; take a sequence classifier")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.config.pad_token_id = tokenizer.pad_token_id  # decoders find a row's last token by it
    tokenizer.padding_side = "right"
    # RoBERTa and its kin lose two positions to padding.
    positions = (getattr(model.config, "max_position_embeddings", None) or 10**9) - 2
    tokenizer.model_max_length = min(MAX_TOKENS, tokenizer.model_max_length, positions)
    return pipeline(
        "text-classification",
        model=model.float(),
        tokenizer=tokenizer,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        batch_size=BATCH,
        top_k=None,
        truncation="only_first",
    )


def _classes(pipe: Any) -> list[str]:
    return [pipe.model.config.id2label[i] for i in range(pipe.model.config.num_labels)]


def _read(
    pipe: Any, inputs: list[tuple[str, str | None]], *, function_to_apply: str | None = None
) -> Float[np.ndarray, "input class"]:
    """The scores of all classes for each (text, other text beside it or None); NaN for a text that is not read."""
    classes = _classes(pipe)
    todo = sorted(dict.fromkeys(inputs), key=lambda pair: len(pair[0]))  # those of a length in one batch
    rows = ({"text": text, "text_pair": beside} for text, beside in todo)
    scores = {}
    with progress_bar("classify", len(todo)) as bar:
        for pair, scored in zip(todo, pipe(rows, function_to_apply=function_to_apply), strict=True):
            by_label = {one["label"]: one["score"] for one in scored}
            scores[pair] = [by_label[label] for label in classes]
            bar.update()
    unknown = pipe.tokenizer.unk_token_id
    for pair, ids in zip(todo, _ids(pipe, [text for text, _ in todo]), strict=True):
        if 2 * ids.count(unknown) > len(ids):
            scores[pair] = [np.nan] * len(classes)
    return np.array([scores[pair] for pair in inputs]).reshape(len(inputs), len(classes))


def _beyond(pipe: Any, texts: Sequence[str], beside: Sequence[str] = ()) -> Int[np.ndarray, " text"]:
    """Tokens of each text beyond the limit, beside the longest of other sentences."""
    room = pipe.tokenizer.model_max_length - pipe.tokenizer.num_special_tokens_to_add(bool(beside))
    room -= max(map(len, _ids(pipe, beside)), default=0)
    return np.array([max(0, len(ids) - room) for ids in _ids(pipe, texts)], int)


def _ids(pipe: Any, texts: Sequence[str]) -> list[list[int]]:
    return pipe.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids if len(texts) else []
