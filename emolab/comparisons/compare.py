"""Emotion vectors beside the other ways of getting the same: each at its best setting, and all at equal damage.

Nothing is chosen on the queries that are reported, and every method chooses by one rule: the highest mean of the
harmonic score of emotion, adherence and fluency (`emolab.experiments.headline.headline`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, combinations
from typing import Any

import numpy as np
import pandas as pd

from emolab.answers.generation import generate
from emolab.answers.logprobs import p95_kl
from emolab.answers.queries import query_table
from emolab.answers.writing import Writing, need_writing
from emolab.base.errors import EmolabError, need_table
from emolab.base.folders import writing as writing_in
from emolab.base.labels import NEUTRAL
from emolab.base.progress import tracked
from emolab.base.stats import bootstrap_ci, clusters_of
from emolab.base.storage import digest, for_json, need_same, read_json, stable, write_json
from emolab.base.tables import noted
from emolab.comparisons.asked import Asked, Asking
from emolab.comparisons.comparison import Comparison
from emolab.comparisons.damage import dose_at_damage
from emolab.comparisons.methods import (
    METHODS,
    UNSTEERED,
    Method,
    Run,
    build_methods,
    instruction_method,
    need_methods,
    plain_method,
)
from emolab.judges.judges import judges_of, need_labels
from emolab.models.prompts import text_ids

MEASURES = ("emotion", "adherence", "fluency", "overall", "damage")
COLUMNS = (
    "method", "setting", "at", "emotion", "dose", "measure", "value", "lo", "hi", "n", "seconds", "speed", "can_dose",
    "can_mix",
)  # fmt: skip
BOOT = 300  # draws; every method, dose and place has its own interval
FIRST = 8  # choosing queries on which doses far apart and sites are tried
NEAR = (0.8, 1.0, 1.25)  # what is tried on all of them: the best of these doses, and its neighbours


def compare_methods(
    comparison: Comparison,
    responses: pd.DataFrame,
    queries_select: pd.DataFrame,
    queries_report: pd.DataFrame,
    *,
    methods: Sequence[str] = METHODS,
    judges: Any = None,
    max_new_tokens: int = 80,
    writing: Writing = Writing(),
) -> pd.DataFrame:
    """Every method on the same queries, at its best setting and at equal damage, with 95 % intervals over queries.

    >>> comparison = Comparison(model, vectors, emolab.Setting(site="attn"), out="runs/x")
    >>> table = compare_methods(comparison, responses, chosen, heldout, methods=("instruction", "lora"))
    >>> table.query("at == 'best' and emotion == 'all' and measure == 'overall'")[["method", "value", "lo", "hi"]]

    Args:
        comparison: the vectors of a model, and the settings of which each direction takes its best (default: at attn
            and at resid). With `out`, everything is kept in `baselines/` in it: the same call goes on where a killed
            one was, and finds its table again.
        responses: that the vectors came from (`collect_responses`): what PCA, probe, LoRA and examples learn from.
        queries_select: (`load_queries`) choose each method's setting and dose: the first few between settings and doses
            far apart, all of them between the best of these doses and its neighbours.
        queries_report: are reported. No query may be in two of the three.
        methods: of "instruction" (in three wordings), "few_shot", "emotion vector", "pca" and "probe" (directions of
            `vectors.directions`), "lora", "random" (three directions of equal norm, in turn by the queries, chosen
            for like the others).
        judges: as in `score`; the first one counts.
        writing: how every text is written (`emolab.Writing`).

    Returns:
        One row per method, place, emotion (and "all", their mean), dose and measure: `method, setting, at, emotion,
        dose, measure, value, lo, hi, n, seconds, speed, can_dose, can_mix`. at: "tried" (doses far apart at the setting
        taken, on the first choosing queries), "best" and "equal damage" (on the reported ones). measure: emotion,
        adherence, fluency, overall, all 0..1 (`headline`; fluency is judged under the instruction, which favours the
        instruction), and damage in nats. seconds: to set up for all emotions, with the answers that it learns from.
        speed: tokens a second over those of the unsteered model, measured side by side. Method "unsteered" is the model
        left alone.

        Damage is the 95th percentile of `next_token_kl` over the tokens of the model's own neutral answers. It counts
        every change, the wanted one too: it sets methods equally strong, and says nothing about quality. It is equal
        where it is that of the instruction at its best wording, by emotion, since an instruction cannot be dosed to any
        other.

    Raises:
        EmolabError: an unknown method, a query in two sets, or `out` of another comparison.
    """
    need_writing(writing)
    emotions = comparison.vectors.emotions
    need_methods(methods)
    need_labels(judges_of(judges)[0], emotions)
    _need_apart(responses, queries_select, queries_report)
    responses = responses[responses["condition"].isin([NEUTRAL, *emotions])]
    settings = comparison.identity() | {
        "dtype": str(comparison.model.dtype).removeprefix("torch."),
        "max_new_tokens": max_new_tokens,
        "writing": writing.settings(),
        "responses": digest([*responses["condition"], *responses["text"]]),
        "queries": digest([*queries_select["query"], *queries_report["query"]]),
    }
    asking = Asking(comparison, judges, max_new_tokens, writing, settings)
    wanted = {"methods": list(methods), "settings": stable(comparison.settings), "judges": stable(judges_of(judges))}
    with writing_in(comparison.out):
        if comparison.folder is not None:
            path = comparison.folder / "baselines" / "comparison.json"
            if path.exists():  # texts of another comparison took hours
                need_same(path, read_json(path, "remove its folder, and the methods are compared again"), settings)
            else:
                write_json(path, settings)
        make = partial(_compared, asking, responses, queries_select, queries_report, methods)
        return asking.kept("baselines", wanted, make)


def _compared(
    asking: Asking,
    responses: pd.DataFrame,
    queries_select: pd.DataFrame,
    queries_report: pd.DataFrame,
    methods: Sequence[str],
) -> pd.DataFrame:
    comparison = asking.comparison
    emotions = comparison.vectors.emotions
    plain = plain_method(comparison.model)
    chosen, reported = Asked(asking, "select", queries_select), Asked(asking, "report", queries_report)
    per_answer = (chosen.seconds + reported.seconds) / (len(chosen.queries) + len(reported.queries))
    candidates = build_methods(comparison, responses, methods, max_new_tokens=asking.max_new_tokens)

    first = Asked(asking, "first", queries_select.head(FIRST))
    coarse = first.scored([(m, dict.fromkeys(emotions, m.doses)) for m in candidates if m.can_dose])
    candidates, by_setting, near = _narrow(candidates, _by_dose(coarse), emotions)
    fine = chosen.scored([(m, {e: near.get((m.name, e), m.doses) for e in emotions}) for m in candidates])
    means = _by_dose(fine)
    best = {m.name: {e: float(means[m.name, m.setting, e].idxmax()) for e in emotions} for m in candidates}

    told = instruction_method(comparison.model)
    wording = best.get("instruction", dict.fromkeys(emotions, 1.0))
    others = [(e, dose) for dose in told.doses for e in emotions if "instruction" in best]
    chosen.measure_damage(told, [list(wording.items()), others])
    targets = {e: p95_kl(chosen.damage(told, e, dose)) for e, dose in wording.items()}
    equal = {m.name: _equal(m, targets, best[m.name], chosen) for m in tracked(candidates, "equal damage", "method")}
    if "instruction" in best:
        equal["instruction"] = wording
    final = reported.scored(
        [(m, {e: (dose,) for e, dose in doses[m.name].items()}) for m in candidates for doses in (best, equal)]
    )

    tables = []
    for m in [plain, *candidates]:
        at_best, at_equal = best.get(m.name, dict.fromkeys(emotions, 0.0)), equal.get(m.name, {})
        scored, asked = (coarse, first) if m.can_dose else (fine, chosen)
        if m.name != "instruction":
            asked.measure_damage(m, [[(e, dose) for dose in m.doses for e in emotions]])
        reported.measure_damage(m, [list(at_best.items()), list(at_equal.items())])
        parts = [_measured(m, scored, asked, dict.fromkeys(emotions, dose)).assign(at="tried") for dose in m.doses]
        parts.append(_measured(m, final, reported, at_best).assign(at="best"))
        if at_equal:
            parts.append(_measured(m, final, reported, at_equal).assign(at="equal damage"))
        of_method = pd.concat(parts).assign(
            method=m.name,
            setting=m.setting,
            seconds=m.seconds + m.answers * per_answer,
            speed=1.0 if m is plain else _speed(m, plain, chosen.queries, at_best),
            can_dose=m.can_dose,
            can_mix=m.can_mix,
        )
        tables.append(of_method)
    table = pd.concat(tables, ignore_index=True)[list(COLUMNS)]
    params = {"target_kl": for_json(targets, decimals=4), "settings": by_setting}
    n = f"{len(reported.queries)} queries reported, {len(chosen.queries)} to choose with"
    return noted(table, comparison.model, n=n, seed=comparison.seed, params=params)


def summary_of(table: pd.DataFrame) -> dict[str, dict]:
    """The table's means over emotions, as summary.json holds them: {method: {at: {measure: [value, lo, hi]}, ...}}.

    >>> summary_of(table)["emotion vector"]["best"]["overall"]
    """
    summary: dict[str, dict] = {}
    for method, rows in table[table["emotion"] == "all"].groupby("method", sort=False):
        facts = rows.iloc[0][["seconds", "speed", "setting", "can_dose", "can_mix"]].to_dict()
        for at, values in rows[rows["at"] != "tried"].groupby("at", sort=False):
            facts[str(at)] = values.set_index("measure")[["value", "lo", "hi"]].T.to_dict("list")
        summary[str(method)] = for_json(facts, decimals=4)
    return summary


def _need_apart(responses: pd.DataFrame, queries_select: pd.DataFrame, queries_report: pd.DataFrame) -> None:
    """EmolabError for a query that is learned from, chosen with or reported twice."""
    need_table(responses, ("query", "condition", "text"), "emolab.collect_responses")
    sets = {"responses": set(responses["query"]) - {""}}
    for name, table in (("queries_select", queries_select), ("queries_report", queries_report)):
        need_table(table, ("query_id", "query"), f"emolab.load_queries, as {name}")
        query_table(table)
        sets[name] = set(table["query"])
    for one, other in combinations(sets, 2):
        both = sets[one] & sets[other]
        if both:
            raise EmolabError(
                f"{len(both)} queries are in {one} and in {other} ({min(both)!r}); what is learned, chosen and "
                "reported must come from different queries"
            )


def _measured(m: Method, scored: pd.DataFrame, asked: Asked, doses: Mapping[str, float]) -> pd.DataFrame:
    """Means and damage of one method at these doses, by emotion and over all, with intervals over queries."""
    emotions, ids = asked.asking.comparison.vectors.emotions, list(asked.table["query_id"])
    scores = [*(f"{x}_score" for x in MEASURES[:3]), "overall"]
    texts = scored[(scored["method"] == m.name) & (scored["setting"] == m.setting)]
    kls = {e: asked.damage(m, e, dose) for e, dose in doses.items()}
    longest = max((len(kl) for kl in chain(*kls.values())), default=0)
    values = np.full((len(ids), len(emotions), 4 + longest), np.nan)  # the four scores, then KL by token
    for i, e in enumerate(emotions):
        if e in doses:
            rows = texts[(texts["emotion"] == e) & (texts["alpha"] == doses[e])].set_index("query_id")
            values[:, i, :4] = rows.loc[ids, scores]
            for j, kl in enumerate(kls[e]):
                values[j, i, 4 : 4 + len(kl)] = kl

    def statistic(rows: np.ndarray) -> np.ndarray:
        tokens = rows[:, :, 4:].swapaxes(0, 1).reshape(len(emotions), -1)
        each = np.column_stack([np.nanmean(rows[:, :, :4], axis=0), [p95_kl([row]) for row in tokens]])
        return np.vstack([each, each.mean(0)])  # over all emotions only where each has a value

    clusters = clusters_of(asked.table).loc[ids]
    bounds = bootstrap_ci(values, statistic, clusters=clusters, n=BOOT, seed=asked.asking.comparison.seed)
    labels = [(e, measure) for e in (*emotions, "all") for measure in MEASURES]
    table = pd.DataFrame(labels, columns=["emotion", "measure"])
    table["value"], table["lo"], table["hi"] = (x.ravel() for x in bounds)
    shared = doses[emotions[0]] if len(set(doses.values())) == 1 else np.nan
    return table.assign(dose=table["emotion"].map({**doses, "all": shared}), n=len(ids))


def _by_dose(scored: pd.DataFrame) -> pd.Series:
    """Mean overall score by method, setting, emotion and dose."""
    steered = scored[scored["method"] != UNSTEERED]
    return steered.groupby(["method", "setting", "emotion", "alpha"])["overall"].mean().fillna(0)


def _narrow(candidates: list[Method], means: pd.Series, emotions: Sequence[str]) -> tuple[list[Method], dict, dict]:
    """Each method at the setting with the highest mean of its best scores; all settings' scores; doses to look at."""
    scores = means.groupby(["method", "setting", "emotion"]).max().groupby(["method", "setting"]).mean()
    dosed = {m.name: scores[m.name].idxmax() for m in candidates if m.can_dose}
    kept = [m for m in candidates if m.setting == dosed.get(m.name, m.setting)]
    near = {
        (name, e): tuple(_rounded(means[name, setting, e].idxmax() * factor) for factor in NEAR)
        for name, setting in dosed.items()
        for e in emotions
    }
    by_setting = {
        f"{name}, {setting}": x for (name, setting), x in zip(scores.index, scores, strict=True) if name in dosed
    }
    return kept, for_json(by_setting, decimals=4), near


def _rounded(dose: float) -> float:
    return float(f"{dose:.3g}")


def _equal(m: Method, targets: Mapping[str, float], start: Mapping[str, float], asked: Asked) -> dict[str, float]:
    """Each emotion's dose at which the damage on the choosing queries is the target; without those out of reach."""
    doses = {}
    for emotion, target in targets.items() if m.can_dose else ():

        def damage(dose: float, emotion: str = emotion) -> float:
            return p95_kl(m.kls(asked.queries, asked.unsteered, [{emotion: dose}])[0])

        try:
            doses[emotion] = _rounded(dose_at_damage(damage, target, start=start[emotion], tolerance=0.05)[0])
        except EmolabError as error:
            warnings.warn(f"{m.name} is left out at equal damage for {emotion}: {error}", stacklevel=3)
    return doses


def _speed(m: Method, plain: Method, queries: list[str], doses: Mapping[str, float]) -> float:
    """Tokens a second over those of the unsteered model, in turn with it; the best of a few rounds."""
    emotion, dose = next(iter(doses.items()))
    queries = queries[:8]
    run, other = (next(iter(x.runs(queries, [{emotion: dose}]))) for x in (m, plain))

    def pace(run: Run) -> float:
        start = time.perf_counter()
        texts = generate(run.model, run.prompts, steering=run.steering, raw=True, max_new_tokens=24)
        steps = max(map(len, text_ids(run.model, texts))) + 1
        return min(steps, 24) / (time.perf_counter() - start)

    pace(run)  # the first call warms up
    paces = [(pace(run), pace(other)) for _ in range(3)]
    return max(own for own, _ in paces) / max(unsteered for _, unsteered in paces)
