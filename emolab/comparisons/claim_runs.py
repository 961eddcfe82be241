"""The runs that put the paper's four claims to the test: drift, log-odds and two-emotion grids, beside their controls.

>>> drift = drift_runs(model, vectors, queries, responses, site="attn", out="runs/x/claims")
>>> claims = check_claims(model, vectors, queries, responses, scored, setting={"site": "attn"}, out="runs/x/claims")
>>> claims["preservation"].verdict, claims["preservation"].condition

responses: the model's own answers (`collect_responses`, pairing="all"), neutral and under every emotion, to queries
that the vectors were not extracted from; else the vectors would be tested on the texts that made them. The log-odds
need no generated text, so they change smoothly with the dose, where a greedy text jumps:

    log-odds = mean over tokens of log p(emotional answer | query, steering)
             - mean over tokens of log p(neutral answer | query, steering)            nats per token

both answers teacher-forced after the same uninstructed prompt. Whole texts are compared, not two words in one place:
of two words the log-odds are linear in the logits, of two texts they need not be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emolab.answers.queries import query_table
from emolab.base.errors import EmolabError, need_number, need_numbers, shown
from emolab.base.folders import alone
from emolab.base.stats import clusters_of
from emolab.base.storage import read_table, write_table
from emolab.comparisons import claims
from emolab.comparisons.bench import Bench
from emolab.experiments.headline import is_unsteered
from emolab.judges import judges as judging
from emolab.judges.scoring import score
from emolab.models.model import Model
from emolab.vectors.vectors import EmotionVectors

DRIFT_ALPHAS = (0.25, 0.5, 1.0, 2.0, 4.0)
LOGODDS_ALPHAS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
PAIR_DOSES = (0.5, 1.0)
QUERIES = 10  # that `check_claims` takes, of different situations first


def drift_runs(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame,
    responses: pd.DataFrame,
    *,
    alphas: Sequence[float] = DRIFT_ALPHAS,
    site: str = "resid",
    layers: str | Sequence[int] = "all",
    part: str = "whole",
    max_new_tokens: int = 80,
    seed: int = 0,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """How far steered answers move from the unsteered ones, with every emotion and with controls of equal norm.

    >>> drift_runs(model, vectors, queries, responses).groupby(["control", "alpha"])[["answer", "topic", "kl"]].mean()

    Controls: "random" and "shuffled" as in `sweep`; "shared", the direction that all emotions share; all as long as the
    emotion's vector at every layer. "prompt" is the instructed answer (alpha 0): what the emotion itself costs.

    Returns:
        One row a text: `query_id, situation, emotion, control, alpha, seed, text` and
        answer: embedding distance (1 - cosine) of the steered greedy answer to the unsteered one, over the mean of
        unsteered answers to different queries: 0 is the same answer, 1 an answer to some other query;
        topic: the loss of cosine with the query, over what an answer to another query loses: 0 as near to the query as
        the unsteered text, 1 no nearer than an answer to another query;
        kl: KL(steered || unsteered) of the next token in nats, mean over the neutral answer's tokens, teacher-forced.

    Raises:
        EmolabError: fewer than two queries with all answers, no response means for shuffled labels, `out` of another
            run, and as `Steering`.
    """
    bench = Bench.of(model, vectors, queries, responses, site, layers, seed, out)
    sources = bench.sources(part, ("random", "shuffled", "shared"))
    doses = sorted({a for a in need_numbers("alphas", alphas) if a})
    if not doses:
        raise EmolabError(f"alphas are {shown(alphas)}; expected a dose other than 0")
    cells = [
        ((emotion, control, alpha), bench.steer(variants, {emotion: alpha}))
        # Dose by dose: texts of one dose are about as long, so that no batch waits for a broken one that never ends.
        for alpha, emotion, (control, variants) in product(doses, vectors.emotions, sources.items())
    ]
    prompted = [((emotion, "prompt", 0.0), [(-1, None)]) for emotion in vectors.emotions]
    plain = [(("", "unsteered", 0.0), [(-1, None)])]
    table = bench.rows(plain + cells + prompted, ("emotion", "control", "alpha"))
    settings = bench.settings(table, part=part, max_new_tokens=max_new_tokens)
    if (done := read_table(bench.path("drift"), settings)) is not None:
        return done
    table["text"] = bench.texts("drift_texts", table, settings)
    told = table["control"] == "prompt"
    keys = zip(table["query_id"][told], table["emotion"][told], strict=True)
    table.loc[told, "text"] = [bench.answers[key][1] for key in keys]
    plain, table = table[: len(bench.asked)], table[len(bench.asked) :].reset_index(drop=True)
    table["answer"], table["topic"] = _distances(table, plain, bench.asked)
    table["kl"] = bench.kl("drift_kl", table, settings)
    return write_table(table.drop(columns="steering"), bench.path("drift"), settings)


def logodds_runs(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame,
    responses: pd.DataFrame,
    *,
    alphas: Sequence[float] = LOGODDS_ALPHAS,
    site: str = "resid",
    layers: str | Sequence[int] = "all",
    part: str = "whole",
    seed: int = 0,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """The log-odds of emotional against neutral answers (see the head of this module) at every dose, with controls.

    >>> logodds_runs(model, vectors, queries, responses).groupby(["control", "alpha"])["value"].mean()

    Returns:
        `query_id, situation, emotion, control, alpha, seed, value`, value in nats per token. Control "none" is the
        vector, dose 0 among its doses; "random" and "shuffled" as in `sweep`; "prompt" (alpha 0) is unsteered, after
        the instructed prompt.

    Raises:
        EmolabError: as `drift_runs`.
    """
    bench = Bench.of(model, vectors, queries, responses, site, layers, seed, out)
    sources = bench.sources(part, ("random", "shuffled"))
    cells = [
        ((emotion, control, alpha), bench.steer(variants, {emotion: alpha}))
        for emotion, (control, variants), alpha in product(vectors.emotions, sources.items(), sorted(set(alphas)))
        if alpha
    ]
    zero = [((e, control, 0.0), [(-1, None)]) for e, control in product(vectors.emotions, ("none", "prompt"))]
    table = bench.rows(zero + cells, ("emotion", "control", "alpha"))
    settings = bench.settings(table, part=part)
    if (done := read_table(bench.path("logodds"), settings)) is not None:
        return done
    table["value"] = bench.logodds("logodds_texts", table.assign(target=table["emotion"]), settings)
    return write_table(table.drop(columns="steering"), bench.path("logodds"), settings)


def pair_runs(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame,
    responses: pd.DataFrame,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    doses: Sequence[float] = PAIR_DOSES,
    site: str = "resid",
    layers: str | Sequence[int] = "all",
    max_new_tokens: int = 80,
    seed: int = 0,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Two emotions at once, every dose of one with every dose of the other: whole vectors, specific parts, random ones.

    >>> grid = pair_runs(model, vectors, queries, responses, pairs=[("anger", "joy")])

    pairs: default each emotion with the next one, round in their order. doses: those of either emotion, besides 0. The
    random pair are two Gaussian directions, each as long as one of the two whole vectors.

    Returns:
        `query_id, situation, first, second, a, b, part, control, seed, text, target, value`: text is the greedy answer
        at doses a and b, value the log-odds of `target`, either of the two emotions, against neutral. `part` is "whole"
        or "specific" for control "none" and "whole" for "random".

    Raises:
        EmolabError: no pair of two different emotions, and as `drift_runs`.
    """
    names, levels = vectors.emotions, sorted({0.0, *map(float, doses)})
    if pairs is None:
        ring = zip(names, names[1:] + names[:1], strict=True)
        pairs = list(dict.fromkeys((a, b) if names.index(a) < names.index(b) else (b, a) for a, b in ring))
    if not pairs or any(len(set(pair)) != 2 or not set(pair) <= set(names) for pair in pairs):
        raise EmolabError(f"pairs are {pairs!r}; expected pairs of two different ones of {', '.join(names)}")
    bench = Bench.of(model, vectors, queries, responses, site, layers, seed, out)
    sources = {("whole", control): v for control, v in bench.sources("whole", ("random",)).items()}
    sources[("specific", "none")] = bench.sources("specific", ())["none"]
    cells = [
        ((*pair, a, b, *kind), bench.steer(variants, dict(zip(pair, (a, b), strict=True))))
        for (kind, variants), pair, a, b in product(sources.items(), pairs, levels, levels)
    ]
    table = bench.rows(cells, ("first", "second", "a", "b", "part", "control"))
    settings = bench.settings(table, max_new_tokens=max_new_tokens)
    if (done := read_table(bench.path("pairs"), settings)) is not None:
        return done
    table["text"] = bench.texts("pairs_texts", table, settings)
    table = pd.concat([table.assign(target=table[side]) for side in ("first", "second")], ignore_index=True)
    table["value"] = bench.logodds("pairs_logodds", table, settings)
    return write_table(table.drop(columns="steering"), bench.path("pairs"), settings)


@alone
def check_claims(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame,
    responses: pd.DataFrame,
    scored: pd.DataFrame,
    *,
    setting: Mapping[str, Any],
    judge: Any = None,
    doses: Sequence[float] = DRIFT_ALPHAS,
    n_queries: int = QUERIES,
    out: str | Path | None = None,
    seed: int = 0,
) -> dict[str, claims.Claim]:
    """The paper's four claims on this model at one setting: monotone, preservation, linear, additive.

    >>> claims = check_claims(model, vectors, queries, responses, scored, setting={"site": "attn", "layers": "all"})

    scored: the scored sweep at that setting, with control "random". setting: site, layers and part of `Steering`; other
    fields are left aside. doses: at least three positive multiples of the vectors; drift is measured at all of them,
    log-odds at all but the lowest, of both signs, and two emotions together at the second and third. judge: the one of
    `scored` (default that of `score`), for the texts of two emotions. n_queries: so many of the queries are run, of
    different situations first. One emotion alone has no claim "additive".
    Raises EmolabError as the runs and the functions of `emolab.comparisons.claims` do.
    """
    if not isinstance(setting, Mapping):
        raise EmolabError(f"setting is {shown(setting)}; expected fields of Steering, such as {{'site': 'resid'}}")
    need_number("n_queries", n_queries, 2, whole=True)
    is_unsteered(scored, needed=True)  # not after the runs
    ladder = sorted({float(dose) for dose in need_numbers("doses", doses)})
    if len(ladder) < 3 or ladder[0] <= 0:
        raise EmolabError(f"doses are {shown(doses)}; expected at least three positive numbers")
    signed = [-dose for dose in ladder[:0:-1]] + [0.0] + ladder[1:]
    queries = query_table(queries)
    turn = queries.groupby(queries["query_id"].map(clusters_of(queries)), sort=False).cumcount()
    chosen = queries.loc[turn.sort_values(kind="stable").index].head(n_queries)
    place = {key: setting[key] for key in ("site", "layers") if key in setting}
    part = {"part": setting["part"]} if "part" in setting else {}
    run = {"seed": seed, "out": out, **place}
    smooth = logodds_runs(model, vectors, chosen, responses, alphas=signed, **part, **run).assign(scale="log-odds")
    both = pd.concat([claims.judge_logits(scored), smooth])
    drift = drift_runs(model, vectors, chosen, responses, alphas=ladder, **part, **run)
    found = [claims.monotone(both, seed=seed), claims.preservation(drift, seed=seed), claims.linear(both, seed=seed)]
    if len(vectors.emotions) > 1:
        pairs = pair_runs(model, vectors, chosen, responses, doses=ladder[1:3], **run).assign(scale="log-odds")
        read = claims.judge_logits(score(pairs.assign(emotion=pairs["target"]), judges=judge))
        found.append(claims.additive(pd.concat([pairs, read]), seed=seed))
    return {claim.name: claim for claim in found}


def _distances(table: pd.DataFrame, plain: pd.DataFrame, asked: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """answer and topic of `drift_runs` for each row; NaN where unsteered answers do not differ between queries."""
    before, queries, after = (judging.embed(list(texts)) for texts in (plain["text"], asked["query"], table["text"]))
    own = table["query_id"].map({query: i for i, query in enumerate(plain["query_id"])}).to_numpy()
    different = ~np.eye(len(plain), dtype=bool)
    kept = (before * queries).sum(1)
    away, lost = 1 - (after * before[own]).sum(1), kept[own] - (after * queries[own]).sum(1)
    units = (1 - before @ before.T)[different].mean(), kept.mean() - (before @ queries.T)[different].mean()
    away, lost = (
        x / unit if unit > 1e-6 else np.full(len(x), np.nan) for x, unit in zip((away, lost), units, strict=True)
    )
    return away, lost
