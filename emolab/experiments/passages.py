"""Where in texts a model's state points to an emotion: token by token, at a turn, and in the passages of a corpus.

>>> texts = turning_texts(emolab.load_texts("topics", split="heldout", labels=emolab.EMOTIONS))
>>> scores = token_scores(model, texts.head(4), vectors, layer=20)
>>> scores[["text_id", "token", "emotion", "score"]].head(1)
>>> curve = turning_curve(scores)
>>> passages = top_passages(scores, n=3)

Source: arXiv 2604.07729, there without random directions.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_number, need_table, need_texts
from emolab.base.stats import bootstrap_ci, interval
from emolab.base.tables import noted
from emolab.models.finite import need_finite
from emolab.models.model import Model
from emolab.models.prompts import encode, plan_batches
from emolab.steering.along import need_readable, read_along
from emolab.vectors.controls import beside_random
from emolab.vectors.corpus import prompted
from emolab.vectors.token_rule import prompt_and_text_lengths, token_begins, token_pieces
from emolab.vectors.vectors import EmotionVectors

_KEPT = ("topic", "label", "first", "second", "turn")  # what a table of texts says of them, beside their words


def turning_texts(texts: pd.DataFrame) -> pd.DataFrame:
    """Texts that change their emotion half-way: of each topic, every text followed by every other one.

    >>> texts = turning_texts(emolab.load_texts("topics", labels=["joy", "fear"]))
    >>> texts.loc[0, ["topic", "first", "second"]].to_list()
    ['train', 'fear', 'joy']

    texts: `topic, label, text`, as of `emolab.load_texts("topics")`. Columns: `topic`, `first` and `second` (labels),
    `text`, and `turn`, the character at which the second one begins. Raises EmolabError where no topic has two labels.
    """
    need_table(texts, ("topic", "label", "text"), 'emolab.load_texts("topics")')
    rows = []
    for topic, versions in texts.groupby("topic", sort=False):
        text = versions.drop_duplicates("label").set_index("label")["text"]
        rows += [(topic, a, b, f"{text[a]} {text[b]}", len(text[a]) + 1) for a, b in permutations(text.index, 2)]
    if not rows:
        raise EmolabError("no topic of these texts has two labels; expected texts that tell one topic in several ways")
    return pd.DataFrame(rows, columns=["topic", "first", "second", "text", "turn"])


def token_scores(
    model: Model, texts: pd.DataFrame, vectors: EmotionVectors, *, site: str = "resid", layer: int, seed: int = 0
) -> pd.DataFrame:
    """How far each token of each text points along each emotion, beside as many random directions.

    >>> scores = token_scores(model, emolab.load_texts("topics", split="heldout").head(2), vectors, layer=20)

    A score is the projection of the activation on the vector's specific part, less its mean over all tokens of these
    texts, in standard deviations of these: what all texts and all emotions share counts for nothing. So give texts of
    several emotions.

    Args:
        texts: a table with `text`, and perhaps `prompt` and `query`, read as `emolab.response_means` reads them; of
            other columns `topic`, `label`, `first`, `second` and `turn` are handed on.
        vectors: of two emotions or more.

    Returns:
        One row a text, token, direction and emotion: `text_id` (the row), `position` (of the token in its text),
        `begin` (its first character), `token`, `control` ("none" or "random"), `emotion`, `score`.

    Raises:
        EmolabError: texts longer than the model's context, site "head", a layer that there is not, and as `Steering`.
    """
    need_table(texts, ("text",), 'emolab.load_texts("topics"), or a column of texts')
    words = need_texts("texts", texts["text"].tolist(), filled=True)
    layers = need_readable(model, vectors, site=site, layers=[layer])
    given = {name: texts[name].to_numpy() if name in texts else None for name in ("prompt", "query")}
    asked = pd.DataFrame({"text": words, **given})
    asked, _ = prompted(model, asked.assign(query=asked["query"].fillna("")))
    prompts, pieces, begins = asked["prompt"].tolist(), token_pieces(model, words), token_begins(model, words)
    directions = beside_random(vectors.part("specific"), seed=seed)
    first = [int(prompt == "" and not model.start_ids) for prompt in prompts]  # position 0 never counts
    counts = [len(of_text) - start for of_text, start in zip(pieces, first, strict=True)]
    dots_by_text: list[Any] = [None] * len(words)
    for some in plan_batches(model, prompt_and_text_lengths(model, asked)):
        batch = encode(model, [prompts[i] for i in some], [words[i] for i in some])
        longest = max(counts[i] for i in some)
        dots = read_along(model, directions, batch, site=site, layers=layers, n=longest)[0][:, :, 0]
        need_finite(model, dots, "the activations")
        for row, i in enumerate(some):
            dots_by_text[i] = dots[row, longest - counts[i] :]
    values = np.concatenate(dots_by_text)
    values = (values - values.mean(0)) / values.std(0).clip(1e-12)
    places = [(i, place) for i, start in enumerate(first) for place in range(start, len(pieces[i]))]
    rows = [i for i, _ in places]
    kept = {name: texts[name].to_numpy()[rows] for name in _KEPT if name in texts}
    index = pd.DataFrame({"text_id": rows, **kept, "position": [place for _, place in places]})
    index["begin"] = [begins[i][place] for i, place in places]
    index["token"] = [pieces[i][place] for i, place in places]
    k = len(vectors.emotions)
    tables = [
        index.assign(control=control, emotion=emotion, score=values[:, place + i])
        for control, place in (("none", 0), ("random", k))
        for i, emotion in enumerate(vectors.emotions)
    ]
    params = {"site": site, "layers": str(layers[0]), "part": "specific"}
    return noted(pd.concat(tables, ignore_index=True), vectors, n=f"{len(words)} texts", seed=seed, params=params)


def turning_curve(scores: pd.DataFrame, *, reach: int = 30) -> pd.DataFrame:
    """Scores around the turn of texts that change their emotion: of the first emotion, the second and the others.

    >>> curve = turning_curve(token_scores(model, turning_texts(texts), vectors, layer=20))  # doctest: +SKIP

    scores: of `token_scores` with `turning_texts`. reach: tokens on either side of the turn.

    Returns:
        One row for each control, role ("first", "second", "others") and `at`, tokens behind the turn: `score`, the mean
        over texts, with its 95 % interval `lo, hi` (topics drawn). In attrs: `told`, by control, the share of halves
        whose own emotion has the highest mean score, with its interval; its `chance`; and `lag`, the tokens behind the
        turn from which on the second emotion leads within `reach`, None where it does not.

    Raises:
        EmolabError: other scores, or emotions of the texts that the vectors lack.
    """
    columns = ("text_id", "topic", "first", "second", "turn", "begin", "position", "control", "emotion", "score")
    need_table(scores, columns, "token_scores of turning_texts")
    need_number("reach", reach, 1, whole=True)
    emotions = set(scores["emotion"])
    lacking = sorted({*scores["first"], *scores["second"]} - emotions)
    if lacking:
        raise EmolabError(f"texts turn to or from {lacking[0]!r}, and the scores are of {', '.join(sorted(emotions))}")
    behind = scores["begin"] >= scores["turn"] - 1  # the space before a word is its token's
    start = scores["position"].where(behind).groupby(scores["text_id"]).transform("min")
    table = scores.assign(at=scores["position"] - start, half=np.where(behind, "second", "first"))
    roles = {name: table["emotion"] == table[name] for name in ("first", "second")}
    table["role"] = np.select(list(roles.values()), list(roles), "others")
    near = table[table["at"].between(-reach, reach - 1)]
    means = near.groupby(["control", "role", "topic", "at"])["score"].mean().unstack("at")
    rows = []
    for (control, role), by_topic in means.groupby(level=["control", "role"], sort=False):
        bounds = bootstrap_ci(by_topic.to_numpy(), lambda x: np.nanmean(x, axis=0))
        rows += [(control, role, int(at), *value) for at, *value in zip(by_topic.columns, *bounds, strict=True)]
    curve = pd.DataFrame(rows, columns=["control", "role", "at", "score", "lo", "hi"])
    curve = noted(curve, scores)
    curve.attrs["told"], curve.attrs["chance"] = _told(table), 1 / len(emotions)
    curve.attrs["lag"] = _lag(curve[(curve["control"] == "none") & (curve["at"] >= 0)])
    return curve


def _told(table: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """By control: the share of halves whose own emotion scores highest, and its interval over topics."""
    means = table.groupby(["control", "topic", "text_id", "half", "role", "emotion"])["score"].mean().reset_index()
    best = means.loc[means.groupby(["control", "text_id", "half"])["score"].idxmax()]
    best = best.assign(hit=(best["half"] == best["role"]).astype(float))
    shares = {}
    for control, halves in best.groupby("control"):
        by_text = halves.groupby(["topic", "text_id"])["hit"].mean()
        low, high = interval(by_text, clusters=by_text.index.get_level_values("topic"))
        shares[str(control)] = (float(by_text.mean()), low, high)
    return shares


def _lag(curve: pd.DataFrame) -> int | None:
    wide = curve.pivot(index="at", columns="role", values="score")
    behind = wide.index[wide["second"] <= wide["first"]]
    lag = 0 if not len(behind) else int(behind.max()) + 1
    return lag if lag in wide.index else None


def top_passages(scores: pd.DataFrame, *, n: int = 3, width: int = 12) -> pd.DataFrame:
    """The passages of a corpus that point most along each emotion, one of a text.

    >>> top_passages(token_scores(model, texts, vectors, layer=20), n=3)                  # doctest: +SKIP

    width: tokens of a passage. Columns: `control`, `emotion`, `rank` (from 1), `text_id`, those of `topic` and `label`
    that the scores have, `passage` and `score`, the mean over its tokens; with labels, `hit`: is the text's label the
    emotion? Raises EmolabError where no text has as many tokens.
    """
    need_table(scores, ("text_id", "position", "token", "control", "emotion", "score"), "token_scores")
    need_number("n", n, 1, whole=True)
    need_number("width", width, 1, whole=True)
    kept = [name for name in ("topic", "label") if name in scores]
    windows = []
    for (control, emotion, text), tokens in scores.groupby(["control", "emotion", "text_id"], sort=False):
        means = tokens["score"].rolling(width).mean().to_numpy()
        if len(means) >= width:
            end = int(np.nanargmax(means)) + 1
            passage = "".join(tokens["token"].iloc[end - width : end]).strip()
            windows.append((control, emotion, text, *tokens[kept].iloc[0], passage, means[end - 1]))
    if not windows:
        raise EmolabError(f"no text has {width} tokens; take a smaller width")
    table = pd.DataFrame(windows, columns=["control", "emotion", "text_id", *kept, "passage", "score"])
    ranks = table.groupby(["control", "emotion"])["score"].rank(ascending=False, method="first").astype(int)
    table.insert(2, "rank", ranks)
    table = table[ranks <= n].sort_values(["control", "emotion", "rank"], ignore_index=True)
    if "label" in table:
        table["hit"] = table["label"] == table["emotion"]
    return noted(table, scores, params={"width": width})
