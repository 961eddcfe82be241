"""The runs that put the paper's four claims to the test: drift, log-odds and two-emotion grids, beside their controls.

responses: the model's own answers (`collect_responses`, pairing="all"), neutral and under every emotion, to queries
that the vectors were not extracted from; else the vectors would be tested on the texts that made them. The log-odds
need no generated text, so they change smoothly with the dose, where a greedy text jumps:

    log-odds = mean over tokens of log p(emotional answer | query, steering)
             - mean over tokens of log p(neutral answer | query, steering)            nats per token

both answers teacher-forced after the same uninstructed prompt. Whole texts are compared, not two words in one place:
of two words the log-odds are linear in the logits, of two texts they need not be.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from emolab.answers.queries import query_table
from emolab.base.errors import EmolabError, need_number, need_numbers, shown
from emolab.base.folders import writing
from emolab.base.stats import clusters_of
from emolab.comparisons import claims
from emolab.comparisons.comparison import Comparison
from emolab.comparisons.steered_runs import Cell, SteeredRuns
from emolab.experiments.headline import is_unsteered
from emolab.judges import judges as judging
from emolab.judges.scoring import score

DRIFT_ALPHAS = (0.25, 0.5, 1.0, 2.0, 4.0)
LOGODDS_ALPHAS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
PAIR_DOSES = (0.5, 1.0)
QUERIES = 10  # that `check_claims` takes, of different situations first


def drift_runs(
    comparison: Comparison,
    queries: pd.DataFrame,
    responses: pd.DataFrame,
    *,
    alphas: Sequence[float] = DRIFT_ALPHAS,
    max_new_tokens: int = 80,
) -> pd.DataFrame:
    """How far steered answers move from the unsteered ones, with every emotion and with controls of equal norm.

    >>> drift_runs(comparison, queries, responses).groupby(["control", "alpha"])[["answer", "topic", "kl"]].mean()

    Controls: "random" and "shuffled" as in `sweep`; "shared", the direction that all emotions share; all as long as the
    emotion's vector at every layer. "prompt" is the instructed answer (alpha 0): what the emotion itself costs.

    Returns:
        One row per text: `query_id, situation, emotion, control, alpha, seed, text` and
        answer: embedding distance (1 - cosine) of the steered greedy answer to the unsteered one, over the mean of
        unsteered answers to different queries: 0 is the same answer, 1 an answer to some other query;
        topic: the loss of cosine with the query, over what an answer to another query loses: 0 as near to the query as
        the unsteered text, 1 no nearer than an answer to another query;
        kl: KL(steered || unsteered) of the next token in nats, mean over the neutral answer's tokens, teacher-forced.

    Raises:
        EmolabError: fewer than two queries with all answers, several settings, no response means for shuffled labels,
            `out` of another run, and as `Steering`.
    """
    runs = SteeredRuns(comparison, queries, responses)
    sources = runs.sources(comparison.settings[0].part, ("random", "shuffled", "shared"))
    doses = sorted({alpha for alpha in need_numbers("alphas", alphas) if alpha})
    if not doses:
        raise EmolabError(f"alphas are {shown(alphas)}; expected a dose other than 0")
    emotions = comparison.vectors.emotions
    cells = [Cell({"emotion": "", "control": "unsteered", "alpha": 0.0})]
    cells += [
        Cell({"emotion": emotion, "control": control, "alpha": alpha}, sources[control], {emotion: alpha})
        # Dose by dose: texts of one dose are about as long, so that no batch waits for a broken one that never ends.
        for alpha, emotion, control in product(doses, emotions, sources)
    ]
    cells += [Cell({"emotion": emotion, "control": "prompt", "alpha": 0.0}) for emotion in emotions]
    return runs.kept("drift", cells, _drift, {"max_new_tokens": max_new_tokens})


def _drift(runs: SteeredRuns, table: pd.DataFrame, settings: dict) -> pd.DataFrame:
    table["text"] = runs.texts("drift_texts", table, settings)
    prompted = table["control"] == "prompt"
    keys = zip(table["query_id"][prompted], table["emotion"][prompted], strict=True)
    table.loc[prompted, "text"] = [runs.answers[key][1] for key in keys]
    plain = table[: len(runs.asked)]
    table = table[len(runs.asked) :].reset_index(drop=True)
    table["answer"], table["topic"] = _distances(table, plain, runs.asked)
    table["kl"] = runs.kl("drift_kl", table, settings)
    return table


def logodds_runs(
    comparison: Comparison,
    queries: pd.DataFrame,
    responses: pd.DataFrame,
    *,
    alphas: Sequence[float] = LOGODDS_ALPHAS,
) -> pd.DataFrame:
    """The log-odds of emotional against neutral answers (see the head of this module) at every dose, with controls.

    >>> logodds_runs(comparison, queries, responses).groupby(["control", "alpha"])["value"].mean()

    Returns `query_id, situation, emotion, control, alpha, seed, value`, value in nats per token. Control "none" is the
    vector, dose 0 among its doses; "random" and "shuffled" as in `sweep`; "prompt" (alpha 0) is unsteered, after the
    instructed prompt. Raises EmolabError as `drift_runs`.
    """
    runs = SteeredRuns(comparison, queries, responses)
    sources = runs.sources(comparison.settings[0].part, ("random", "shuffled"))
    emotions = comparison.vectors.emotions
    cells = [
        Cell({"emotion": emotion, "control": control, "alpha": 0.0})
        for emotion, control in product(emotions, ("none", "prompt"))
    ]
    cells += [
        Cell({"emotion": emotion, "control": control, "alpha": alpha}, sources[control], {emotion: alpha})
        for emotion, control, alpha in product(emotions, sources, sorted(set(alphas)))
        if alpha
    ]
    return runs.kept("logodds", cells, _logodds, {})


def _logodds(runs: SteeredRuns, table: pd.DataFrame, settings: dict) -> pd.DataFrame:
    return table.assign(value=runs.logodds("logodds_texts", table.assign(target=table["emotion"]), settings))


def pair_runs(
    comparison: Comparison,
    queries: pd.DataFrame,
    responses: pd.DataFrame,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    doses: Sequence[float] = PAIR_DOSES,
    max_new_tokens: int = 80,
) -> pd.DataFrame:
    """Two emotions at once, every dose of one with every dose of the other: whole vectors, specific parts, random ones.

    >>> grid = pair_runs(comparison, queries, responses, pairs=[("anger", "joy")])

    pairs: default each emotion with the next one, round in their order. doses: those of either emotion, besides 0. The
    random pair are two Gaussian directions, each as long as one of the two whole vectors.

    Returns:
        `query_id, situation, first, second, a, b, part, control, seed, text, target, value`: text is the greedy answer
        at doses a and b, value the log-odds of `target`, either of the two emotions, against neutral. `part` is "whole"
        or "specific", for control "none", and "whole" for "random", whatever that of the setting.

    Raises:
        EmolabError: no pair of two different emotions, and as `drift_runs`.
    """
    emotions = comparison.vectors.emotions
    if pairs is None:
        ring = zip(emotions, emotions[1:] + emotions[:1], strict=True)
        number = emotions.index
        pairs = list(dict.fromkeys((a, b) if number(a) < number(b) else (b, a) for a, b in ring))
    if not pairs or any(len(set(pair)) != 2 or not set(pair) <= set(emotions) for pair in pairs):
        raise EmolabError(f"pairs are {pairs!r}; expected pairs of two different ones of {', '.join(emotions)}")
    runs = SteeredRuns(comparison, queries, responses)
    sources = {("whole", control): made for control, made in runs.sources("whole", ("random",)).items()}
    sources["specific", "none"] = runs.sources("specific")["none"]
    levels = sorted({0.0, *map(float, doses)})
    cells = [
        Cell(
            {"first": first, "second": second, "a": a, "b": b, "part": part, "control": control},
            sources[part, control],
            {first: a, second: b},
        )
        for (part, control), (first, second), a, b in product(sources, pairs, levels, levels)
    ]
    return runs.kept("pairs", cells, _pairs, {"max_new_tokens": max_new_tokens})


def _pairs(runs: SteeredRuns, table: pd.DataFrame, settings: dict) -> pd.DataFrame:
    table["text"] = runs.texts("pairs_texts", table, settings)
    table = pd.concat([table.assign(target=table[side]) for side in ("first", "second")], ignore_index=True)
    return table.assign(value=runs.logodds("pairs_logodds", table, settings))


def check_claims(
    comparison: Comparison,
    queries: pd.DataFrame,
    responses: pd.DataFrame,
    scored: pd.DataFrame,
    *,
    judge: Any = None,
    doses: Sequence[float] = DRIFT_ALPHAS,
    n_queries: int = QUERIES,
) -> dict[str, claims.Claim]:
    """The paper's four claims on this model at one setting: monotone, preservation, linear, additive.

    >>> comparison = Comparison(model, vectors, emolab.Setting(site="attn"), out="runs/x/claims")
    >>> claims = emolab.check_claims(comparison, queries, responses, scored)
    >>> claims["preservation"].verdict, claims["preservation"].condition

    scored: the scored sweep at that setting, with control "random". doses: at least three positive multiples of the
    vectors; drift is measured at all of them, log-odds at all but the lowest, of both signs, and two emotions together
    at the second and third. judge: the one of `scored` (default that of `score`), for the texts of two emotions.
    n_queries: so many of the queries are run, of different situations first. One emotion alone has no claim "additive".
    Raises EmolabError as the runs and the functions of `emolab.comparisons.claims` do.
    """
    need_number("n_queries", n_queries, 2, whole=True)
    is_unsteered(scored, needed=True)  # not after the runs
    ladder = sorted({float(dose) for dose in need_numbers("doses", doses)})
    if len(ladder) < 3 or ladder[0] <= 0:
        raise EmolabError(f"doses are {shown(doses)}; expected at least three positive numbers")
    signed = [-dose for dose in ladder[:0:-1]] + [0.0] + ladder[1:]
    queries = query_table(queries)
    turn = queries.groupby(queries["query_id"].map(clusters_of(queries)), sort=False).cumcount()
    chosen = queries.loc[turn.sort_values(kind="stable").index].head(n_queries)
    seed = comparison.seed
    with writing(comparison.out):
        smooth = logodds_runs(comparison, chosen, responses, alphas=signed).assign(scale="log-odds")
        both = pd.concat([claims.judge_logits(scored), smooth])
        drift = drift_runs(comparison, chosen, responses, alphas=ladder)
        checked = [
            claims.monotone(both, seed=seed),
            claims.preservation(drift, seed=seed),
            claims.linear(both, seed=seed),
        ]
        if len(comparison.vectors.emotions) > 1:
            pairs = pair_runs(comparison, chosen, responses, doses=ladder[1:3]).assign(scale="log-odds")
            read = claims.judge_logits(score(pairs.assign(emotion=pairs["target"]), judges=judge))
            checked.append(claims.additive(pd.concat([pairs, read]), seed=seed))
    return {claim.name: claim for claim in checked}


def _distances(table: pd.DataFrame, plain: pd.DataFrame, asked: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """answer and topic of `drift_runs` for each row; NaN where unsteered answers do not differ between queries."""
    before, queries, after = (judging.embed(list(texts)) for texts in (plain["text"], asked["query"], table["text"]))
    number = pd.Index(plain["query_id"]).get_indexer(pd.Index(table["query_id"]))
    different = ~np.eye(len(plain), dtype=bool)
    near = (before * queries).sum(1)
    moved = 1 - (after * before[number]).sum(1)
    lost = near[number] - (after * queries[number]).sum(1)
    apart = (1 - before @ before.T)[different].mean()  # an answer to another query
    off = near.mean() - (before @ queries.T)[different].mean()
    return moved / (apart if apart > 1e-6 else np.nan), lost / (off if off > 1e-6 else np.nan)
