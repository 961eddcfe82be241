"""Tokens of a text, coloured by how far each token's activation points along an emotion vector."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_texts
from emolab.models.finite import need_finite
from emolab.models.model import Model
from emolab.models.prompts import encode
from emolab.steering.along import need_readable, read_along
from emolab.steering.settings import need_one_of
from emolab.vectors.token_rule import token_pieces
from emolab.vectors.vectors import EmotionVectors
from emolab.widgets.page import SHADES, View, hint, page, signed, signed_shade, small, spaced

MEASURES = {
    "cosine": "Cosine of each token's activation and the vector",
    "projection": "Projection of each token's activation on the vector at unit norm",
}
MAX_TOKENS = 300
_NONE = -128  # the byte of a token without a number
_MAX_NUMBERS = 20_000  # one byte each: keeps a view, tokens and base64 included, below 60 kB


def token_projections(
    model: Model, text: str, vectors: EmotionVectors, *, prompt: str = "", site: str = "resid", layers: Any = "all"
) -> pd.DataFrame:
    """How far the activation at each token of a text points along each emotion vector, from one forward pass.

    >>> token_projections(model, "What a lovely day!", vectors).query("layer == 3 and emotion == 'joy'")

    prompt: a complete prompt (`render_prompts`) that the text answers; its tokens, and BOS, are read but not returned.
    Columns: `position`, `token` (its piece of the text, with white space), `layer`, `emotion`, `cosine` of activation
    and vector, `projection` (dot product with the vector at unit norm); float64. At a token the model works out the
    next one: what it is about to write shows before the word. Activations have a large part that all texts share, so
    compare tokens, texts or layers; the sign alone says little. NaN at position 0, where neither prompt nor BOS stands
    before the text: its activation is massive and the same for all texts. Inside `emolab.steered(...)` activations are
    steered. Raises EmolabError for a text without tokens, or with one that stands at position 0, for site "head", and
    for vectors of another model.
    """
    layers = need_readable(model, vectors, site=site, layers=layers)
    need_texts("prompt and text", [prompt, text])
    (names,), batch = token_pieces(model, [text]), encode(model, [prompt], [text])
    n = int(batch.response_mask.sum())
    first = n == int(batch.attention_mask.sum())  # the text begins the sequence
    if n <= first:
        what = "no token but its first, at position 0, which never counts" if first and n else "no token"
        raise EmolabError(f"the text has {what}; give at least one word more, or a prompt")
    (dots,), (lengths,) = read_along(model, vectors, batch, site=site, layers=layers, n=n, plain=False)
    cosines = dots / lengths[..., None].clip(1e-30)
    index = pd.MultiIndex.from_product([range(n), layers, vectors.emotions], names=["position", "layer", "emotion"])
    need_finite(model, dots, "the activations", prompt=prompt)
    for values in (dots, cosines):
        values[: int(first)] = np.nan
    table = pd.DataFrame({"cosine": cosines.ravel(), "projection": dots.ravel()}, index=index).reset_index()
    table.insert(1, "token", np.repeat(names, len(layers) * len(vectors.emotions)))
    table.attrs["about"] = {"model": {"name": model.name, "fingerprint": model.fingerprint}, "site": site}
    return table


def token_view(
    model: Model,
    text: str,
    vectors: EmotionVectors,
    *,
    prompt: str = "",
    site: str = "resid",
    layers: str | Sequence[int] = "all",
    emotion: str | None = None,
    measure: str = "cosine",
) -> View:
    """The text with each token coloured by its projection on an emotion vector; layer and emotion can be chosen.

    >>> token_view(model, "What a lovely day!", vectors, emotion="joy")
    >>> token_view(model, text, vectors.part("specific"), site="attn", prompt=render_prompts(model, [query])[0])

    Red is along the vector, blue against it, on one scale for all layers and emotions, deepest at the largest number
    of the view, which stands below. emotion: shown first (default
    the vectors' first), in the middle one of `layers`. Mouse or arrow keys on a token show its number; up and down
    change the layer. Long texts of deep models: where the numbers would make the notebook heavy, only every second,
    third ... layer is kept, as the caption says. `.table` holds the exact numbers (see `token_projections`, also for
    what they mean and for the errors). Raises EmolabError, too, for more than 300 tokens.
    """
    need_one_of("measure", measure, list(MEASURES))
    e = 0 if emotion is None else vectors.place(emotion)
    table = token_projections(model, text, vectors, prompt=prompt, site=site, layers=layers)
    names = list(table.drop_duplicates("position")["token"])
    if len(names) > MAX_TOKENS:
        raise EmolabError(f"the text has {len(names)} tokens; a view shows at most {MAX_TOKENS}, pass a part of it")
    every = list(dict.fromkeys(table["layer"]))
    values = table[measure].to_numpy().reshape(len(names), len(every), -1).transpose(2, 1, 0)
    thin = math.ceil(values.size / _MAX_NUMBERS)
    values, kept = values[:, ::thin], every[::thin]
    limit = float(np.nanmax(np.abs(values))) or 1.0
    # One byte a number: cosines to 0.01, projections to a hundredth of the largest.
    step = 0.01 if measure == "cosine" else limit / 100
    coded = np.nan_to_num(np.rint(values / step), nan=_NONE).astype(np.int8)
    digits = 2 if measure == "cosine" else max(0, 1 - math.floor(math.log10(step * 100)))
    at = len(kept) // 2
    data = {"emotions": list(vectors.emotions), "layers": kept, "emotion": e, "layer": at, "limit": limit}
    data |= {"step": step, "digits": digits, "shades": SHADES, "values": base64.b64encode(coded.tobytes()).decode()}
    shown = np.where(coded[e, at] == _NONE, np.nan, coded[e, at] * step)
    spans = [_span(name, value, limit, digits) for name, value in zip(names, shown, strict=True)]
    scale = "".join(
        f'<span style="background-color:{signed_shade(x, 1)};padding:0 0.5em">{signed(x * limit, digits)}</span>'
        for x in (-1, -0.5, 0, 0.5, 1)
    )
    left_out = "" if kept == every else f"; of {len(every)} layers, {len(kept)} are here"
    about = escape(f"{MEASURES[measure]} · {site} · model {model.name}{left_out}")
    body = (
        f'<div class="emolab-where" style="margin:0.2em 0"><b>{escape(vectors.emotions[e])}</b>, layer {kept[at]}</div>'
        '<div class="emolab-text" style="white-space:pre-wrap;line-height:1.9;max-width:56em;padding:0.3em 0">'
        f"{''.join(spans)}</div>{small(f'{about} · {scale}')}{hint('layer and emotion')}"
    )
    summary = f"token_view({len(names)} tokens, {len(kept)} layers, {', '.join(vectors.emotions)}; {measure}, {site})"
    return View(page("tokens", body, data), table, summary)


def _span(piece: str, value: float, limit: float, digits: int) -> str:
    gap, word = spaced(piece)
    number, style = "position 0", ""
    if not math.isnan(value):
        number, style = signed(value, digits), f"background-color:{signed_shade(value, limit)}"
    return f'{gap}<span title="{number}" style="{style}">{word or "·"}</span>'
