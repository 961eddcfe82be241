"""Texts longer than what a judge reads at a time, in windows: what it says of these, averaged by their tokens.

>>> pieces, text_of, n_tokens = cut(model.tokenizer, ["the sea", "the sea and the sun"], room=3)
>>> averaged(EmbeddingJudge()(pieces), text_of, n_tokens).shape          # one row a text
(2, 6)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from emolab.base.errors import EmolabError


def cut(tokenizer: Any, texts: Sequence[str], room: int) -> tuple[list[str], Int[np.ndarray, " piece"], list[int]]:
    """Texts in pieces of at most `room` tokens: the pieces, which text each is of, and its tokens.

    >>> cut(model.tokenizer, ["a park", "the sea and the sun"], 3)[0]
    ['a park', 'the sea and', ' the sun']

    A text that fits is one piece, as it is. Of others, the pieces are about as long as each other, end where a word
    ends, and together are the text. Raises EmolabError where there is no room for a token.
    """
    if room < 1:
        raise EmolabError(f"beside what is asked of them texts have {room} tokens; ask with shorter sentences")
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids if len(texts) else []
    pieces, text_of, n_tokens = [], [], []
    for number, (text, tokens) in enumerate(zip(texts, ids, strict=True)):
        ends = [0, len(tokens)] if len(tokens) <= room else _ends(tokenizer, text, len(tokens), room)
        lengths = np.diff(ends).tolist()
        pieces += [text] if len(lengths) == 1 else _pieces(tokenizer, text, tokens, ends)
        text_of += [number] * len(lengths)
        n_tokens += lengths
    return pieces, np.array(text_of, int), n_tokens


def _ends(tokenizer: Any, text: str, n: int, room: int) -> list[int]:
    """The tokens before which pieces begin, and the last one's end."""
    size = math.ceil(n / math.ceil(n / room))
    words = range(n)
    if tokenizer.is_fast:
        words = tokenizer(text, add_special_tokens=False, verbose=False).word_ids()
    ends = [0]
    while n - ends[-1] > room:
        last = ends[-1]
        begins = [i for i in range(last + 1, last + size + 1) if words[i] is None or words[i] != words[i - 1]]
        ends.append(begins[-1] if begins else last + size)
    return [*ends, n]


def _pieces(tokenizer: Any, text: str, ids: list[int], ends: list[int]) -> list[str]:
    spans = zip(ends, ends[1:], strict=False)
    if not tokenizer.is_fast:  # knows no places
        return [tokenizer.decode(ids[start:stop]) for start, stop in spans]
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False).offset_mapping
    places = [0, *(offsets[end - 1][1] for end in ends[1:-1]), len(text)]
    return [text[start:stop] for start, stop in zip(places, places[1:], strict=False)]


def averaged(
    values: Float[np.ndarray, "piece ..."], text_of: Int[np.ndarray, " piece"], n_tokens: Sequence[int]
) -> Float[np.ndarray, "text ..."]:
    """The mean of each text's pieces, weighted by their tokens; of one piece exactly what it has.

    >>> averaged(np.array([[1.0], [4.0], [0.0]]), np.array([0, 1, 1]), [9, 1, 3])
    array([[1.], [1.]])
    """
    if len(values) == len(set(text_of.tolist())):
        return values
    weights = np.array(n_tokens, float)
    rows = [np.flatnonzero(text_of == number) for number in range(text_of[-1] + 1)]
    return np.stack([values[r[0]] if len(r) == 1 else np.average(values[r], axis=0, weights=weights[r]) for r in rows])
