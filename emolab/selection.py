"""Choices made before the report: which queries serve which purpose, and on which setting and dose to freeze.

>>> extract, choosing, report = split_queries(load_queries("general"), (40, 20, 26))
>>> setting, best, vectors = select(model, vectors, choosing, answers, judge=judge, out=Path("runs/x/selection"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emolab.breaking import find_breaking
from emolab.emotions import NEUTRAL
from emolab.errors import EmolabError, need_number
from emolab.experiments import sweep
from emolab.models import Model
from emolab.queries import query_table, spread
from emolab.scored import headline
from emolab.scoring import score
from emolab.steering import Steering
from emolab.storage import read_json, write_json
from emolab.vectors import EmotionVectors

# Of the breaking alpha: eight doses, from what is hardly seen to well past the first damage. Text of a small chat model
# shows an emotion where the worst tokens pay one to two nats, so that the ladder does not end at 1.
DOSES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
AS_GOOD = 0.98  # of the best score: what a few queries cannot tell from it
_BROKEN_ON = 4  # unsteered texts on which the breaking alpha of a setting is found
_TOKENS = 40  # of each text that is written to choose by


@dataclass(frozen=True)
class Round:
    """One round of the search: every setting left, at these doses, on the first `n_queries`; the best `keep` go on."""

    n_queries: int
    alphas: tuple[float, ...]
    keep: int


@dataclass(frozen=True)
class Search:
    """What the search tries: sites, windows of layers and parts, coarse to fine.

    >>> Search().settings(30, ("resid", "attn"))[0]
    {'site': 'attn', 'layers': 'all', 'part': 'whole'}

    windows: "all", "late" (the second half), "thirds" (early, middle, late), "single" (one layer, at five depths).
    """

    windows: tuple[str, ...] = ("all", "late", "thirds", "single")
    parts: tuple[str, ...] = ("whole", "specific")
    rounds: tuple[Round, ...] = (Round(3, (0.75, 1.5), 6), Round(6, (0.5, 1.0, 1.5, 2.0), 1))
    doses: tuple[float, ...] = DOSES

    def settings(self, n_layers: int, sites: Sequence[str]) -> list[dict[str, Any]]:
        """The settings in the order of preference: of those that score alike the first is taken, the paper's own."""
        found: dict[str, dict[str, Any]] = {}
        for window in self.windows:
            for site in [site for site in ("attn", "resid") if site in sites]:
                for layers in _windows(window, n_layers):
                    for part in self.parts:
                        setting = {"site": site, "layers": layers, "part": part}
                        found.setdefault(str(setting), setting)
        return list(found.values())

    def n_texts(self, n_layers: int, sites: Sequence[str], n_emotions: int, n_queries: int) -> int:
        """How many texts the search writes: its budget, known beforehand."""
        n, total = len(self.settings(n_layers, sites)), 0
        for one in self.rounds:
            total += n * n_emotions * len(one.alphas) * min(one.n_queries, n_queries)
            n = min(n, one.keep)
        return total + n * n_emotions * len(self.doses) * n_queries


QUICK = Search(windows=("all", "late"), rounds=(Round(4, (1.0, 1.75), 1),))


def _windows(window: str, n_layers: int) -> list[Any]:
    layers = np.arange(n_layers)
    if window == "all":
        return ["all"]
    if window == "late":
        return [layers[n_layers // 2 :].tolist()]
    if window == "thirds":
        return [part.tolist() for part in np.array_split(layers, 3) if len(part)]
    if window == "single":
        return [[int(layer)] for layer in dict.fromkeys((np.linspace(0.2, 0.9, 5) * n_layers).astype(int))]
    raise EmolabError(f"unknown window {window!r}; expected all, late, thirds or single")


def split_queries(queries: pd.DataFrame, sizes: tuple[int, int, int]) -> list[pd.DataFrame]:
    """Queries to extract from, to choose with and to report on; the first two share no situation."""
    queries = query_table(queries, ("query_id", "query", "emotion", "situation", "split"))
    if len(sizes) != 3:
        raise EmolabError(f"n_queries are {sizes}; expected three numbers: to extract, to choose and to report")
    for size in sizes:
        need_number("one of n_queries", size, 1, whole=True)
    lone = queries["situation"] == ""  # a user's queries: each its own situation
    queries = queries.assign(situation=queries["situation"].mask(lone, queries["query_id"]))
    train, heldout = (spread(queries[queries["split"] == s]) for s in ("train", "heldout"))
    n_extract, n_select, n_report = sizes
    situations = train["situation"].iloc[:n_extract]
    extract = train.iloc[:n_extract]
    select = train[~train["situation"].isin(situations)].iloc[:n_select]
    if len(extract) < n_extract or len(select) < 1 or not len(heldout):
        raise EmolabError(
            f"{len(train)} training and {len(heldout)} held-out queries are too few for {sizes}; both splits are "
            "needed, and training situations left over for choosing the dose: use a larger set or smaller n_queries"
        )
    return [extract, select, heldout.iloc[:n_report]]


def choose(tried: pd.DataFrame, instructed: pd.DataFrame) -> pd.DataFrame:
    """The dose of each setting and emotion, by the harmonic mean of emotion, adherence and fluency (`headline`).

    tried: scored texts of a sweep. instructed: scored answers to the same queries under instruction. Of the doses that
    score within 5 % of the best the middle one is taken: the edge of a plateau would not hold on other queries. One row
    a setting and emotion: `site, layers, part, emotion, alpha, score, target, adherence, fluency`, means over texts.
    """
    keys = ["site", "layers", "part", "emotion"]
    scores = {"overall": "score", "emotion_score": "target", "adherence_score": "adherence", "fluency_score": "fluency"}
    steered = headline(tried, instructed).query("alpha != 0").groupby([*keys, "alpha"], sort=False)
    # NaN: empty texts, which are no fluent ones
    cells = steered[list(scores)].mean().fillna(0).rename(columns=scores).reset_index()
    rows = []
    for _, doses in cells.groupby(keys, sort=False):
        doses = doses.sort_values("alpha")
        plateau = doses[doses["score"] >= 0.95 * doses["score"].max()]
        rows.append(plateau.iloc[len(plateau) // 2])
    return pd.DataFrame(rows).reset_index(drop=True)


def select(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame,
    answers: pd.DataFrame,
    *,
    judge: Any,
    out: Path,
    search: Search = Search(),
    progress: bool = True,
) -> tuple[dict[str, Any], dict[str, float], EmotionVectors]:
    """Site, layers and part, then with these each emotion's dose in breaking alphas; all on training queries.

    >>> setting, best, vectors = select(model, vectors, choosing, answers, judge=judge, out=folder)
    >>> setting, best
    ({'site': 'attn', 'layers': [15, ...], 'part': 'whole', 'unit': 'breaking'}, {'joy': 1.25, ...})

    answers: the model's own to these queries, neutral and instructed (`collect_responses`). judge: reads the texts; a
    blind one does not take the name of an emotion for the emotion. search: what is tried, in rounds in which many
    settings meet few questions, and few settings many. Also returns the vectors, which now know where every setting
    tried breaks. Scores are the harmonic mean of emotion, topic and fluency (`headline`), fluency without perplexity:
    the unit bounds the damage already. A search that was stopped goes on where it was.
    """
    asked = query_table(queries)
    told = answers.assign(emotion=answers["condition"])
    instructed = score(told, judges=judge)
    neutral = answers[answers["condition"] == NEUTRAL].set_index("query_id")["text"]
    broken_on = asked.head(_BROKEN_ON)
    texts = [str(neutral[query]) for query in broken_on["query_id"]]
    every = dict.fromkeys(vectors.emotions, 1.0)
    path = out / "breaking.json"
    known = _known(path, vectors)

    def tried(settings: list[dict], n: int, alphas: Sequence[float], folder: str) -> pd.DataFrame:
        nonlocal vectors
        tables = []
        for setting in settings:
            where = Steering(vectors, every, **setting)
            if where.setting not in known:
                found = find_breaking(model, where, broken_on, texts=texts)
                known[where.setting] = found.meta["breaking"][where.setting]
                write_json(path, {"of": _identity(vectors), "alphas": known})
        vectors = _with_breaking(vectors, known)
        for number, setting in enumerate(settings):
            grid = {name: [value] for name, value in {**setting, "unit": "breaking"}.items()}
            options = {"controls": (), "progress": progress, "max_new_tokens": _TOKENS}
            place = out / folder / str(number)
            table = sweep(model, vectors, asked.head(n), alphas=(0.0, *alphas), grid=grid, out=place, **options)
            tables.append(choose(score(table, judges=judge), instructed).assign(number=number))
        return pd.concat(tables, ignore_index=True)

    settings = search.settings(model.n_layers, vectors.sites)
    rounds = []
    for k, one in enumerate(search.rounds):
        found = tried(settings, one.n_queries, one.alphas, f"round-{k + 1}")
        rounds.append(found.drop(columns="number").to_dict("records"))
        means = found.groupby("number", sort=False)["score"].mean()
        if one.keep == 1:  # as good as the best: the first of them, since the list begins with the paper's own setting
            settings = [settings[int(means.index[np.flatnonzero(means >= AS_GOOD * means.max())[0]])]]
        else:
            settings = [settings[int(number)] for number in sorted(means.nlargest(one.keep).index)]
    setting = settings[0]
    last = tried([setting], len(asked), search.doses, "doses")
    rounds.append(last.drop(columns="number").to_dict("records"))
    setting = {**setting, "unit": "breaking"}
    write_json(out / "choice.json", {"setting": setting, "rounds": rounds})
    return setting, dict(zip(last["emotion"], map(float, last["alpha"]), strict=True)), vectors


def _with_breaking(vectors: EmotionVectors, known: dict[str, dict[str, float]]) -> EmotionVectors:
    return replace(vectors, meta={**vectors.meta, "breaking": {**vectors.meta.get("breaking", {}), **known}})


def _identity(vectors: EmotionVectors) -> list:
    return [vectors.meta.get(key) for key in ("fingerprint", "corpus_hash", "token_rule")] + list(vectors.emotions)


def _known(path: Path, vectors: EmotionVectors) -> dict[str, dict[str, float]]:
    """Breaking alphas that a stopped search has found for these vectors."""
    if not path.exists():
        return {}
    found = read_json(path, "remove it, and the search starts again")
    return found["alphas"] if isinstance(found, dict) and found.get("of") == _identity(vectors) else {}
