"""Written texts to extract vectors from, and human ratings of emotion words; all bundled, read without a model."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from emolab.base.errors import EmolabError, need_texts, shown
from emolab.base.labels import NEUTRAL
from emolab.base.storage import read_json
from emolab.data import FOLDER

BUNDLED_TEXTS = {name: FOLDER / "texts" / f"{name}.json" for name in ("topics", "frames", "affect")}
RATINGS = FOLDER / "ratings" / "affect_norms.csv"
_SLOT = "{e}"  # where a frame takes the emotion word


def load_texts(name: str, *, split: str | None = None, labels: Sequence[str] | str | None = None) -> pd.DataFrame:
    """Load a bundled set of labelled texts as a tidy table, for `responses_from_texts`.

    >>> load_texts("topics", split="train").groupby("label").size().loc["joy"].item()
    30
    >>> load_texts("frames", labels=["joy", "nostalgia"]).loc[1, "text"]
    'There was nostalgia in his voice when he spoke. Everyone in the room turned to him.'

    Args:
        name: `"topics"`: 40 everyday topics, each told under anger, disgust, fear, joy, sadness and neutral in about 38
            words, so that within a topic only the emotion differs. No text names its emotion.
            `"affect"`: 10 places, each told in about 29 words pleasantly or not, calmly or excitedly, to test measures
            of valence and arousal with.
            `"frames"`: 16 short frames around an emotion word; what counts is read after the word.
        split: `"train"` or `"heldout"` (whole topics, whole frames), None for both.
        labels: topics: the conditions wanted, None for all six. frames: the emotion words to put in, any nouns or
            phrases ("nostalgia", "quiet relief"), None for the 64 nouns of `load_ratings`.

    Returns:
        One row a text, topic by topic and label by label: `topic` (of frames, the frame), `label`, `text`, for frames
        `start` (the number of characters up to the end of the emotion word: the text that counts begins there), and
        `split`.

    Raises:
        EmolabError: no such set, split or condition; a label that is empty, repeated or padded with white space.
    """
    if not isinstance(name, str) or name not in BUNDLED_TEXTS:
        names = ", ".join(f'"{known}"' for known in BUNDLED_TEXTS)
        raise EmolabError(
            f"no texts {shown(name)}; the bundled ones are {names}; give your own to responses_from_texts"
        )
    if split not in (None, "train", "heldout"):
        raise EmolabError(f'texts "{name}" have no split {shown(split)}; expected "train", "heldout" or None')
    wanted = None if labels is None else _labels(labels)
    data = read_json(BUNDLED_TEXTS[name], "expected the bundled texts: reinstall emolab")
    table = _frames(data["frames"], wanted) if name == "frames" else _written(name, data["texts"], wanted)
    return table if split is None else table[table["split"] == split].reset_index(drop=True)


def load_ratings() -> pd.DataFrame:
    """Human ratings of 103 emotion words: valence, arousal and dominance, means and standard deviations, from 1 to 9.

    A selection from the Glasgow Norms (Scott, Keitel, Becirspahic, Yao and Sereno 2019, Behavior Research Methods 51,
    1258-1270; CC BY 4.0), numbers unchanged. `form` is noun (64) or adjective (39); the nouns come first.

    >>> load_ratings().loc[0, ["word", "form"]].to_list(), load_ratings().loc[0, "valence"].item()
    (['joy', 'noun'], 8.061)
    """
    return pd.read_csv(RATINGS)


def _written(name: str, texts: list[dict[str, str]], wanted: list[str] | None) -> pd.DataFrame:
    table = pd.DataFrame(texts, columns=["topic", "label", "text", "split"])
    known = list(dict.fromkeys(table["label"]))
    unknown = [label for label in wanted or () if label not in known]
    if unknown:
        raise EmolabError(
            f'texts "{name}" have no label {unknown[0]!r}; they are written for {", ".join(known)}; '
            'for other labels use "frames" or texts of your own'
        )
    return table if wanted is None else table[table["label"].isin(wanted)].reset_index(drop=True)


def _frames(frames: list[dict[str, str]], wanted: list[str] | None) -> pd.DataFrame:
    ratings = load_ratings()
    words = list(ratings.loc[ratings["form"] == "noun", "word"]) if wanted is None else wanted
    if NEUTRAL in words:
        raise EmolabError(
            'texts "frames" put an emotion word into a sentence, and "neutral" is none; leave it out: the vectors of '
            "frames are compared with the mean over all labels"
        )
    rows = [
        {
            "topic": frame["topic"],
            "label": label,
            "text": frame["text"].replace(_SLOT, label),
            "start": frame["text"].index(_SLOT) + len(label),
            "split": frame["split"],
        }
        for frame in frames
        for label in words
    ]
    return pd.DataFrame(rows)


def _labels(labels: Sequence[str] | str) -> list[str]:
    """The labels as a list; EmolabError where one is no name, or stands there twice."""
    wanted = need_texts("labels", [labels] if isinstance(labels, str) else labels, filled=True)
    problem = "" if wanted else "are empty"
    for label in wanted:
        if label != label.strip() or not label.isprintable():
            problem = f"hold {shown(label)}"
        elif wanted.count(label) > 1:
            problem = f"hold {shown(label)} twice"
    if problem:
        raise EmolabError(f"labels {problem}; expected words such as 'joy', each once, without white space around them")
    return wanted
