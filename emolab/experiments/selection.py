"""Choices made before the report: which queries serve which purpose, and on which setting and dose to freeze."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emolab.answers.queries import query_table, spread
from emolab.base.errors import EmolabError, FileError, MismatchError, ResourceError, need_number, need_numbers
from emolab.base.labels import NEUTRAL
from emolab.base.storage import write_json
from emolab.experiments.breaking import find_breaking
from emolab.experiments.headline import headline
from emolab.experiments.sweeps import sweep
from emolab.judges.scoring import score
from emolab.models.model import Model
from emolab.steering.settings import Setting, where_measured
from emolab.steering.steering import at
from emolab.vectors.vectors import EmotionVectors

# Of the breaking alpha: eight doses, from what is hardly seen to well past the first damage. Text of a small chat model
# shows an emotion where the worst tokens pay one to two nats, so that the ladder does not end at 1.
DOSES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
WINDOWS = ("all", "late", "thirds", "single")
PARTS = ("whole", "specific")
AS_GOOD = 0.98  # of the best score: what a few queries cannot tell from it
_BROKEN_ON = 4  # unsteered texts on which the breaking alpha of a setting is found


@dataclass(frozen=True)
class Round:
    """One round of the search: every setting left, at these doses, on the first `n_queries`; the best `keep` go on.

    Of the last round one setting goes on, whatever its keep.
    """

    n_queries: int
    alphas: tuple[float, ...]
    keep: int


@dataclass(frozen=True)
class Search:
    """What the search tries: sites, windows of layers and parts, coarse to fine.

    >>> Search().settings(30, ("resid", "attn"))[1].part
    'specific'

    windows: "all", "late" (the second half), "thirds" (early, middle, late), "single" (one layer, at five depths).
    doses, in breaking alphas: of the last step, in which one setting meets all questions. max_new_tokens: of each
    text that is written to choose by. Raises EmolabError for an unknown window or part, and for a dose that is no
    positive number.
    """

    windows: tuple[str, ...] = WINDOWS
    parts: tuple[str, ...] = PARTS
    rounds: tuple[Round, ...] = (Round(3, (0.75, 1.5), 6), Round(6, (0.5, 1.0, 1.5, 2.0), 1))
    doses: tuple[float, ...] = DOSES
    max_new_tokens: int = 40

    def __post_init__(self) -> None:
        for kind, values, known in (("window", self.windows, WINDOWS), ("part", self.parts, PARTS)):
            unknown = [value for value in values if value not in known]
            if unknown or not values:
                problem = f"unknown {kind} {unknown[0]!r}" if unknown else f"there is no {kind}"
                raise EmolabError(f"{problem}; expected some of {', '.join(known)}")
        for alphas in (self.doses, *(one.alphas for one in self.rounds)):
            if min(need_numbers("doses", alphas)) <= 0:
                raise EmolabError(f"doses are {alphas}; expected positive numbers, in breaking alphas")

    def settings(self, n_layers: int, sites: Sequence[str], n_emotions: int = 2) -> list[Setting]:
        """The settings in the order of preference: of those that score alike the first is taken, the paper's own.

        One emotion alone has no specific part.
        """
        parts = self.parts if n_emotions > 1 else ("whole",)
        sites = [site for site in ("attn", "resid") if site in sites]
        settings = [
            Setting(site=site, layers=layers, part=part, unit="breaking")
            for window in self.windows
            for site in sites
            for layers in _windows(window, n_layers)
            for part in parts
        ]
        return list(dict.fromkeys(settings))

    def n_texts(self, n_layers: int, sites: Sequence[str], n_emotions: int, n_queries: int) -> int:
        """How many texts the search writes: its budget, known beforehand.

        Unsteered texts are the same in every setting, and written once.
        """
        n, total = len(self.settings(n_layers, sites, n_emotions)), n_queries
        for one in self.rounds:
            total += n * n_emotions * len(set(one.alphas)) * min(one.n_queries, n_queries)
            n = min(n, one.keep)
        return total + n_emotions * len(set(self.doses)) * n_queries


QUICK = Search(windows=("all", "late"), rounds=(Round(4, (1.0, 1.75), 1),), max_new_tokens=32)


def _windows(window: str, n_layers: int) -> list[Any]:
    layers = np.arange(n_layers)
    if window == "all":
        return ["all"]
    if window == "late":
        return [layers[n_layers // 2 :].tolist()]
    if window == "thirds":
        return [part.tolist() for part in np.array_split(layers, 3) if len(part)]
    return [[int(layer)] for layer in dict.fromkeys((np.linspace(0.2, 0.9, 5) * n_layers).astype(int))]


def split_queries(queries: pd.DataFrame, sizes: tuple[int, int, int]) -> list[pd.DataFrame]:
    """Queries to extract from, to choose with and to report on; the first two share no situation.

    >>> extract, choosing, report = split_queries(load_queries("general"), (40, 20, 26))
    """
    queries = query_table(queries, ("query_id", "query", "emotion", "situation", "split"))
    need_sizes(sizes)
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


def need_sizes(sizes: Sequence[int]) -> None:
    """EmolabError unless these are three numbers of questions."""
    if len(sizes) != 3:
        raise EmolabError(f"n_queries are {sizes}; expected three numbers: to extract, to choose and to report")
    for size in sizes:
        need_number("one of n_queries", size, 1, whole=True)


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
    chosen = []
    for _, doses in cells.groupby(keys, sort=False):
        plateau = doses[doses["score"] >= 0.95 * doses["score"].max()].sort_values("alpha")
        chosen.append(plateau.iloc[len(plateau) // 2])
    return pd.DataFrame(chosen).reset_index(drop=True)


def select(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame,
    answers: pd.DataFrame,
    *,
    judge: Any,
    out: Path,
    search: Search = Search(),
) -> tuple[Setting, dict[str, float], EmotionVectors]:
    """Site, layers and part, then with these each emotion's dose in breaking alphas; all on training queries.

    >>> chosen = select(model, vectors, choosing, answers, judge=judge, out=folder)  # doctest: +SKIP
    >>> setting, doses, vectors = chosen  # doctest: +SKIP
    >>> setting.site, setting.unit, doses  # doctest: +SKIP
    ('attn', 'breaking', {'joy': 1.25, ...})

    answers: the model's own to these queries, neutral and instructed (`collect_responses`). judge: reads the texts; a
    blind one does not take the name of an emotion for the emotion. Also returns the vectors, which now know where every
    setting tried breaks; one that breaks at no alpha, since it changes nothing, is left out. Scores are `headline`'s,
    fluency without perplexity: the unit bounds the damage already. A search that was stopped goes on where it was.

    Raises EmolabError where the model answers none of these questions with a text, and where no setting breaks text.
    """
    asked, tokens = query_table(queries), search.max_new_tokens
    instructed = score(answers.assign(emotion=answers["condition"]), judges=judge)
    plain = sweep(model, vectors, asked, alphas=(0.0,), controls=(), out=out / "unsteered", max_new_tokens=tokens)
    settings = where_measured(vectors, search.settings(model.n_layers, vectors.sites, len(vectors.emotions)))
    if not settings:
        raise EmolabError("no setting can be steered with; the vectors are zero at every site that is searched")
    settings, vectors = _breaking(model, vectors, settings, asked, answers, out)

    def doses_of(setting: Setting, n: int, alphas: Sequence[float], folder: Path) -> pd.DataFrame:
        few, directions = asked.head(n), at(vectors, setting)
        steered = sweep(model, directions, few, alphas=alphas, controls=(), out=folder, max_new_tokens=tokens)
        both = pd.concat([plain[plain["query_id"].isin(few["query_id"])], steered], ignore_index=True)
        return choose(score(both, judges=judge), instructed)

    rounds = []
    for k, one in enumerate(search.rounds):
        folder = out / f"round-{k + 1}"
        doses = pd.concat(
            {i: doses_of(tried, one.n_queries, one.alphas, folder / str(i)) for i, tried in enumerate(settings)}
        )
        rounds.append(doses.to_dict("records"))
        means = doses.groupby(level=0)["score"].mean().to_numpy(dtype=float)  # in the order of the settings
        if one.keep == 1 or k == len(search.rounds) - 1:
            # As good as the best: the first of them, since the list begins with the paper's own setting.
            settings = [settings[int(np.flatnonzero(means >= AS_GOOD * means.max())[0])]]
        else:
            best = np.argsort(-means, kind="stable")[: one.keep]
            settings = [settings[number] for number in sorted(best.tolist())]
    last = doses_of(settings[0], len(asked), search.doses, out / "doses" / "0")
    rounds.append(last.to_dict("records"))
    write_json(out / "choice.json", {"setting": setting_row(settings[0]), "rounds": rounds})
    return settings[0], dict(zip(last["emotion"], map(float, last["alpha"]), strict=True)), vectors


def setting_row(setting: Setting) -> dict[str, Any]:
    """What JSON files say of a chosen setting.

    >>> setting_row(Setting(site="attn", layers=[3, 4], unit="breaking"))
    {'site': 'attn', 'layers': [3, 4], 'part': 'whole', 'unit': 'breaking'}
    """
    layers = setting.layers if isinstance(setting.layers, str) else list(setting.layers)
    return {"site": setting.site, "layers": layers, "part": setting.part, "unit": setting.unit}


def _breaking(
    model: Model,
    vectors: EmotionVectors,
    settings: list[Setting],
    asked: pd.DataFrame,
    answers: pd.DataFrame,
    out: Path,
) -> tuple[list[Setting], EmotionVectors]:
    """Those of the settings that break text at some alpha, and the vectors, which know at which.

    Read on the model's own neutral answers, the first few that hold a text.
    """
    neutral = answers[(answers["condition"] == NEUTRAL) & (answers["text"].str.strip() != "")]
    written = neutral.set_index("query_id")["text"]
    queries = asked[asked["query_id"].isin(written.index)].head(_BROKEN_ON)
    if not len(queries):
        raise EmolabError(
            f"{model.name!r} answers none of the {len(asked)} questions to choose with: the texts are empty, and "
            "nothing can be steered"
        )
    texts = [str(written[query]) for query in queries["query_id"]]
    breaking, reasons = [], []
    for setting in settings:
        steerings = at(vectors, replace(setting, unit="vector"))
        try:
            vectors = find_breaking(model, steerings, queries, texts=texts, out=out / "breaking")
            breaking.append(setting)
        except (FileError, MismatchError, ResourceError):
            raise
        except EmolabError as error:  # breaks text at no alpha
            reasons.append(error)
    if not breaking:
        raise EmolabError(f"no setting can be steered with; {reasons[0]}")
    return breaking, vectors
