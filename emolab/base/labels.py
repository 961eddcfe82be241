"""Names, order, colours and markers of emotions: one emotion, one colour and one marker everywhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from emolab.base.errors import EmolabError

# The five emotions of arXiv 2502.04075 (after Ekman; surprise is left out there), in its order.
EMOTIONS = ("anger", "disgust", "fear", "joy", "sadness")
NEUTRAL = "neutral"
# What texts that nobody asked for are read behind, where the model has a chat template: it should evoke nothing.
NEUTRAL_QUERY = "Write a few sentences about an everyday situation."

# What a direction is held against, each of equal norm, in the words of figures and sentences.
CONTROL_NAMES = {"random": "random direction", "shuffled": "shuffled labels", "other": "another emotion's vector"}

# Okabe-Ito: told apart under deuteranopia, protanopia and tritanopia (smallest CAM02-UCS distance 11).
_STYLE = {
    "anger": ("#D55E00", "^"),
    "disgust": ("#009E73", "s"),
    "fear": ("#CC79A7", "v"),
    "joy": ("#E69F00", "o"),
    "sadness": ("#0072B2", "D"),
    "neutral": ("#4D4D4D", "P"),
}
# Labels beyond the five (a user's own set) take petroff10 in the order in which they come.
_MORE_COLORS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
_MORE_MARKERS = ("*", "X", "p", "h", "<", ">", "8", "d", "H", "o")
_NO_LABELS = {"all", "mean", "shared"}  # in tables these mean several emotions


def order(labels: Iterable[str]) -> list[str]:
    """Sort labels: the five in their fixed order, then others as they came, `neutral` last.

    >>> order(["joy", "neutral", "calm", "anger"])
    ['anger', 'joy', 'calm', 'neutral']
    """
    seen = list(dict.fromkeys(labels))
    known = [e for e in EMOTIONS if e in seen]
    return known + [x for x in seen if x not in EMOTIONS and x != NEUTRAL] + [x for x in seen if x == NEUTRAL]


def styles(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each label, {label: (colour, marker)}.

    >>> styles(["joy", "calm"])
    {'joy': ('#E69F00', 'o'), 'calm': ('#3f90da', '*')}
    """
    labels = order(labels)
    others = [x for x in labels if x not in _STYLE]
    # From the eleventh on colours come again, with another marker each time: a hundred pairs.
    more = {x: (_MORE_COLORS[i % 10], _MORE_MARKERS[(i + i // 10) % 10]) for i, x in enumerate(others)}
    return {x: _STYLE.get(x) or more[x] for x in labels}


def head_name(layer: int, head: int) -> str:
    """An attention head's name, both numbers from 0.

    >>> head_name(18, 3)
    'L18H3'
    """
    return f"L{layer}H{head}"


def neuron_name(layer: int, neuron: int) -> str:
    """An MLP neuron's name, both numbers from 0.

    >>> neuron_name(18, 734)
    'L18N734'
    """
    return f"L{layer}N{neuron}"


def fold(text: object) -> str:
    """A text without its case, and with one space for all white space: equal where texts differ by these alone.

    >>> fold(" Very  GLAD")
    'very glad'
    """
    return " ".join(str(text).split()).casefold()


def need_labels(labels: Sequence[str], where: str) -> None:
    """Raise EmolabError where two labels, or a label and "neutral", look alike but for case; names their rows.

    Also for the words that stand for no single emotion in tables: "all", "mean" and "shared".

    >>> need_labels(["joy", "neutral", "joy "], "the table")
    Traceback (most recent call last):
    ...
    emolab.base.errors.EmolabError: the table has the labels 'joy' (row 0) and 'joy ' (row 2), which differ only by \
case, space or coding; write them alike
    """
    first: dict[str, int] = {}
    for row, label in enumerate(labels):
        first.setdefault(label, row)
    for word in _NO_LABELS.intersection(first):
        raise EmolabError(f"{where} has the label {word!r} (row {first[word]}), which in tables means all; rename it")
    known = {NEUTRAL: NEUTRAL}
    for label, row in first.items():
        seen = "".join(c for c in unicodedata.normalize("NFKC", label) if unicodedata.category(c) != "Cf")
        other = known.setdefault(fold(seen), label)
        if other == label:
            continue
        if other in first:
            same = unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", label)
            one, two = map(ascii if same else repr, (other, label))
            pair = (
                f"labels {one} (row {first[other]}) and {two} (row {row}), which differ only by case, space or coding"
            )
        else:
            pair = f"label {label!r} (row {row}), which is {other!r} but for case or space"
        raise EmolabError(f"{where} has the {pair}; write them alike")
