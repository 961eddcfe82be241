"""Which tokens of a text count: one rule for all texts, and each text's own `start`; position 0 of a sequence never.

The first position of a sequence is a massive activation in most models, the same for all texts and up to a hundred
times as long as any other: where it counts, a mean measures how long the text is.

>>> emolab.extract_vectors(model, responses, tokens="from:8")                 # from the eighth token of a text on
>>> emolab.extract_vectors(model, responses, tokens=lambda tokens: [t.isalpha() for t in tokens])
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool

from emolab.base.errors import EmolabError, shown
from emolab.base.labels import order
from emolab.base.storage import digest
from emolab.models.model import Model
from emolab.models.prompts import prompt_ids, text_ids

TokenRule = str | Callable[[list[str]], Sequence[bool]]
_FROM = re.compile(r"from:([1-9][0-9]*)")
_CHUNK = 64  # texts at a time: a tokenizer keeps far more than ids meanwhile


def rule_name(tokens: TokenRule) -> str:
    """A token rule as provenance names it; a function by its name and a hash of its source, where that is at hand.

    >>> rule_name("from:8")
    'from:8'
    """
    if isinstance(tokens, str) and (tokens in ("response", "last") or _FROM.fullmatch(tokens)):
        return tokens
    if isinstance(tokens, str) or not callable(tokens):
        raise EmolabError(
            f"tokens is {shown(tokens)}; expected 'response', 'last', 'from:8' (from the eighth token on) or a "
            "function that takes a text's tokens (list[str]) and returns True or False for each"
        )
    name = getattr(tokens, "__qualname__", type(tokens).__qualname__)
    try:
        closure = inspect.getclosurevars(tokens).nonlocals  # pyright: ignore[reportArgumentType] (TypeError is caught)
        plain = {key: x for key, x in closure.items() if isinstance(x, str | int | float)}
        source = digest([inspect.getsource(tokens), repr(plain), repr(getattr(tokens, "__defaults__", None))])
    except (OSError, TypeError):  # typed into a prompt, compiled, or an object with __call__
        source = "source unknown"
    return f"{tokens.__module__}.{name} ({source})"


def token_pieces(model: Model, texts: list[str]) -> list[list[str]]:
    """The tokens of each text as pieces of it, with the white space before them; joined, they are the text.

    >>> token_pieces(model, ["so good!"])
    [['so', ' good', '!']]

    Several tokens can share one character: the first has it, the others are empty. Without a fast tokenizer, which
    knows the places, the tokens' own wording.
    """
    try:
        offsets = _offsets(model, texts)
    except NotImplementedError:
        return [[f" {model.tokenizer.decode([i]).strip()}" for i in ids] for ids in text_ids(model, texts)]
    pieces = []
    for text, spans in zip(texts, offsets, strict=True):
        ends = np.maximum.accumulate([0, *(stop for _, stop in spans)])
        pieces.append([text[start:end] for start, end in zip(ends, ends[1:], strict=False)])
    return pieces


def counted_tokens(
    model: Model, responses: pd.DataFrame, tokens: TokenRule
) -> tuple[pd.DataFrame, list[Bool[np.ndarray, " token"]]]:
    """The responses in which some token counts, and for each of them, which of its text's tokens do.

    responses: with `condition`, complete `prompt`, `text` and perhaps `start`. Texts in which nothing counts are left
    out, with a warning that counts them by condition; the others keep their row numbers. Raises EmolabError for a
    condition that loses all of its texts, for a text whose only token that would count stands at position 0, for a
    `start` beyond its text, and for a function that returns something else than True or False for each token.
    """
    starts = None
    if "start" in responses:
        starts = np.array(whole_starts(responses, responses["condition"].tolist()))
    counted: list[np.ndarray] = []
    for some in _chunks(responses):
        texts = some["text"].tolist()
        masks = _by_rule(model, texts, tokens)
        if starts is not None:
            begins = token_begins(model, texts)
            masks = [mask & (x >= start) for mask, x, start in zip(masks, begins, starts[some.index], strict=True)]
        for row, mask, lead in zip(some.index, masks, _prompt_lengths(model, some["prompt"].tolist()), strict=True):
            if not lead and mask.any():
                mask[0] = False
                if not mask.any():
                    raise EmolabError(
                        f"row {row} ({responses['condition'][row]}, {shown(responses['text'][row])}) has no token that "
                        "counts but its first, at position 0 of the sequence, which is the same massive activation for "
                        "all texts and never counts; give the text a prompt, or leave it out"
                    )
            counted.append(mask)
    return _kept(responses, counted, rule_name(tokens))


def prompt_and_text_lengths(model: Model, responses: pd.DataFrame) -> list[int]:
    """Tokens of each row's whole sequence, BOS before a bare text included."""
    lengths: list[int] = []
    for some in _chunks(responses):
        leads = _prompt_lengths(model, some["prompt"].tolist())
        lengths += [lead + len(ids) for lead, ids in zip(leads, text_ids(model, some["text"].tolist()), strict=True)]
    return lengths


def beyond_context(model: Model, lengths: list[int]) -> list[int]:
    """The rows that do not fit the model's context."""
    return [row for row, length in enumerate(lengths) if model.n_ctx is not None and length > model.n_ctx]


def fitted(model: Model, responses: pd.DataFrame, too_long: str) -> tuple[pd.DataFrame, list[int], dict[str, str]]:
    """The responses that fit the model's context, the tokens of each with its prompt, and what provenance says of it.

    too_long: what becomes of the others: "refuse" raises EmolabError that names all of them, "cut" keeps the beginning
    of their text, "drop" leaves them out. Raises EmolabError also where a prompt alone does not fit, and for a
    condition that loses all of its texts.
    """
    if too_long not in ("refuse", "cut", "drop"):
        raise EmolabError(f"too_long is {shown(too_long)}; expected 'refuse', 'cut' (their beginning counts) or 'drop'")
    lengths = prompt_and_text_lengths(model, responses)
    long = beyond_context(model, lengths)
    if not long:
        return responses, lengths, {}
    labels = responses["condition"].tolist()
    if too_long == "refuse":
        first, *others = long
        more = [
            f"{', '.join(str(i) for i in others if labels[i] == x)} ({x})" for x in order(labels[i] for i in others)
        ]
        raise EmolabError(
            f"row {first} ({labels[first]}, {shown(responses['text'][first])}): a sequence of {lengths[first]} tokens "
            f"does not fit {model.name!r} ({model.n_ctx}); shorten or split the text, or give too_long='cut' or 'drop'"
            + (f"; nor do rows {', '.join(more)}" if more else "")
        )
    if too_long == "drop":
        kept = responses.drop(index=long).reset_index(drop=True)
        lost = [label for label in order(labels) if label not in set(kept["condition"])]
        if lost:
            raise EmolabError(
                f"no text under {', '.join(lost)} fits {model.name!r} ({model.n_ctx} tokens); give shorter ones, or "
                "too_long='cut'"
            )
    else:
        kept = responses.assign(text=_cut(model, responses, long))
    note = f"{too_long}: {len(long)} of {len(responses)} texts"
    return kept, prompt_and_text_lengths(model, kept), {"too_long": note}


def _cut(model: Model, responses: pd.DataFrame, long: list[int]) -> list[str]:
    """All texts, those that are too long without the tokens at their end that do not fit."""
    texts = responses["text"].tolist()
    prompts = [responses["prompt"][row] for row in long]
    for row, lead in zip(long, _prompt_lengths(model, prompts), strict=True):
        room = (model.n_ctx or 0) - lead
        pieces = token_pieces(model, [texts[row]])[0][: max(room, 0)]
        while len(text_ids(model, ["".join(pieces)])[0]) > room > 0:  # a last word that ends early may have more tokens
            pieces.pop()
        if not pieces:
            raise EmolabError(
                f"the prompt of row {row} ({responses['condition'][row]}) has {lead} tokens and leaves no room for its "
                f"text in {model.name!r} ({model.n_ctx}); shorten the prompt"
            )
        texts[row] = "".join(pieces)
    return texts


def _by_rule(model: Model, texts: list[str], tokens: TokenRule) -> list[np.ndarray]:
    if not isinstance(tokens, str):
        return [_by_function(tokens, pieces) for pieces in token_pieces(model, texts)]
    lengths = [len(ids) for ids in text_ids(model, texts)]
    if tokens == "last":
        return [np.arange(n) == n - 1 for n in lengths]
    first = _FROM.fullmatch(tokens)
    return [np.arange(n) >= (int(first[1]) - 1 if first else 0) for n in lengths]


def _by_function(rule: Callable[[list[str]], Sequence[bool]], pieces: list[str]) -> np.ndarray:
    answer = rule(list(pieces))
    mask = np.asarray(answer if hasattr(answer, "__len__") else [answer])
    if mask.shape != (len(pieces),) or (len(pieces) and mask.dtype != bool):
        raise EmolabError(
            f"the token rule returned {shown(answer)} for {len(pieces)} tokens {shown(pieces)}; expected True or False "
            "for each of them"
        )
    return mask.astype(bool)  # a copy, and of an empty list, too


def token_begins(model: Model, texts: list[str]) -> list[np.ndarray]:
    """The character at which each token begins; the white space before a word belongs to its token."""
    try:
        offsets = _offsets(model, texts)
    except NotImplementedError as error:
        raise EmolabError(
            "this tokenizer tells no places in a text, which a column 'start' needs; load the model with a fast one"
        ) from error
    return [np.array([begin for begin, _ in spans], dtype=np.int64) for spans in offsets]


def _prompt_lengths(model: Model, prompts: list[str]) -> list[int]:
    """Tokens before the text: the prompt's, or BOS before a bare text (see `prompts.encode`)."""
    return [len(ids) for ids in prompt_ids(model, prompts)]


def _offsets(model: Model, texts: list[str]) -> list[list[tuple[int, int]]]:
    """Where each token stands in its text, (begin, end); NotImplementedError without a fast tokenizer."""
    options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
    return model.tokenizer(texts, **options)["offset_mapping"]


def _chunks(responses: pd.DataFrame) -> Iterator[pd.DataFrame]:
    return (responses.iloc[i : i + _CHUNK] for i in range(0, len(responses), _CHUNK))


def _kept(responses: pd.DataFrame, counted: list[np.ndarray], rule: str) -> tuple[pd.DataFrame, list[np.ndarray]]:
    kept = np.array([mask.any() for mask in counted])
    if kept.all():
        return responses, counted
    lost = [c for c in order(responses["condition"]) if not kept[responses["condition"] == c].any()]
    if lost:
        raise EmolabError(
            f"no text under {', '.join(lost)} holds a token that counts (tokens={rule!r}); a condition needs at least "
            "one: give longer texts, or another rule"
        )
    left = responses["condition"][~kept]
    numbers = ", ".join(f"{c} {(left == c).sum()}" for c in order(left))
    lack = "no token" if rule == "response" and "start" not in responses else f"no token that counts (tokens={rule!r})"
    warnings.warn(f"{len(left)} of {len(kept)} responses hold {lack} and were left out: {numbers}", stacklevel=4)
    return responses[kept], [mask for mask in counted if mask.any()]


def whole_starts(table: pd.DataFrame, labels: Sequence[str | None]) -> list[int]:
    """The column `start` as whole numbers within each text; EmolabError that names the first row of another kind."""
    starts = []
    for row, (text, start) in enumerate(zip(table["text"], table["start"], strict=True)):
        if not re.fullmatch(r"\d+(\.0)?", str(start)) or float(start) > len(text):
            raise EmolabError(
                f"start of row {row} ({labels[row]}) is {shown(start)}; expected a number of characters from 0 to "
                f"{len(text)}, the length of its text {shown(text)}"
            )
        starts.append(int(float(start)))
    return starts
