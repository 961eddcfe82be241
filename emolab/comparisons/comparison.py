"""Emotion vectors beside the other ways of getting the same: each at its best setting, and all at equal damage.

>>> from emolab.comparisons.comparison import compare_methods
>>> table = compare_methods(model, vectors, responses, queries_select, queries_report, out="runs/x")
>>> table.query("at == 'best' and emotion == 'all' and measure == 'overall'")[["method", "value", "lo", "hi"]]

Nothing is chosen on the queries that are reported, and every method chooses by one rule: the highest mean of the
harmonic score of emotion, adherence and fluency (`emolab.experiments.headline.headline`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emolab.answers.generation import generate
from emolab.answers.logprobs import p95_kl
from emolab.answers.queries import query_table
from emolab.answers.writing import Writing, need_writing
from emolab.base.errors import EmolabError, need_number, need_table
from emolab.base.folders import alone
from emolab.base.labels import NEUTRAL
from emolab.base.progress import tracked
from emolab.base.stats import bootstrap_ci, clusters_of
from emolab.base.storage import digest, user_path, write_table
from emolab.base.tables import noted
from emolab.comparisons.cells import UNSTEERED, Asked, Cells
from emolab.comparisons.damage import dose_at_damage
from emolab.comparisons.methods import METHODS, Method, Run, build_methods, instruction_method
from emolab.experiments.sweeps import vectors_identity
from emolab.judges.judges import judges_of
from emolab.models.model import Model, provenance
from emolab.models.prompts import render_prompts
from emolab.vectors.vectors import EmotionVectors

MEASURES = ("emotion", "adherence", "fluency", "overall", "damage")
COLUMNS = (
    "method", "setting", "at", "emotion", "dose", "measure", "value", "lo", "hi", "n", "seconds", "speed", "can_dose",
    "can_mix",
)  # fmt: skip
BOOT = 300  # draws; every method, dose and place has its own interval
FIRST = 8  # choosing queries on which doses far apart and sites are tried
NEAR = (0.8, 1.0, 1.25)  # what is tried on all of them: the best of these doses, and its neighbours


@alone
def compare_methods(
    model: Model,
    vectors: EmotionVectors,
    responses: pd.DataFrame,
    queries_select: pd.DataFrame,
    queries_report: pd.DataFrame,
    *,
    methods: Sequence[str] = METHODS,
    settings: Sequence[Mapping[str, Any]] | None = None,
    target_kl: float | None = None,
    judges: Any = None,
    max_new_tokens: int = 80,
    writing: Writing = Writing(),
    seed: int = 0,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Every method on the same queries, at its best setting and at equal damage, with 95 % intervals over queries.

    >>> table = compare_methods(model, vectors, responses, chosen, heldout, methods=("instruction", "lora"))

    Args:
        responses: that the vectors came from (`collect_responses`): what PCA, probe, LoRA and examples learn from.
        queries_select: (`load_queries`) choose each method's setting and dose: the first few between settings and doses
            far apart, all of them between the best of these doses and its neighbours.
        queries_report: are reported. No query may be in two of the three.
        methods: of "instruction" (in three wordings), "few_shot", "emotion vector", "pca" and "probe" (directions of
            `vectors.directions`), "lora", "random" (three directions of equal norm, in turn by the queries, chosen
            for like the others).
        settings: fields of `Steering`, of which each direction takes its best; default sites attn and resid.
        target_kl: the damage at which methods are set equal, in nats. None: for each emotion that of the instruction at
            its best wording, since an instruction cannot be dosed to any other. Damage is the 95th percentile of
            `next_token_kl` over the tokens of the model's own neutral answers. It counts every change, the wanted one
            too: it sets methods equally strong, and says nothing about quality.
        judges: as in `score`; the first one counts.
        writing: how every text is written (`emolab.Writing`).
        out: a folder; texts are kept in `baselines/` in it, and the same call goes on where a killed one was.

    Returns:
        One row a method, place, emotion (and "all", their mean), dose and measure: `method, setting, at, emotion, dose,
        measure, value, lo, hi, n, seconds, speed, can_dose, can_mix`. at: "tried" (doses far apart at the setting
        taken, on the first choosing queries), "best" and "equal damage" (on the reported ones). measure: emotion,
        adherence, fluency, overall, all 0..1 (`headline`; fluency is judged under the instruction, which favours the
        instruction), and damage in nats. seconds: to set up for all emotions, with the answers that it learns from.
        speed: tokens a second over those of the unsteered model, measured side by side. Method "unsteered" is the model
        left alone.

    Raises:
        EmolabError: an unknown method, a query in two sets, or `out` of another comparison.
    """
    if target_kl is not None:
        need_number("target_kl", target_kl, 0)
    chosen, reported = Asked("select", queries_select), Asked("report", queries_report)
    emotions = vectors.emotions
    _check(methods, emotions, judges, responses, chosen, reported)
    responses = responses[responses["condition"].isin([NEUTRAL, *emotions])]
    identity = {key: provenance(model)[key] for key in ("model", "fingerprint", "dtype")}
    need_writing(writing)
    identity |= {"max_new_tokens": max_new_tokens, "writing": writing.settings(), "seed": seed}
    identity |= {
        "responses": digest([*responses["condition"], *responses["text"]]),
        "vectors": vectors_identity(vectors),
    }
    identity |= {"queries": digest([*chosen.queries, *reported.queries])}
    folder = None if out is None else user_path(out) / "baselines"
    cells = Cells(folder, identity, max_new_tokens, writing)
    study = _Study(model, emotions, judges, cells, seed)
    plain = Method(UNSTEERED, model, lambda queries, s: iter([Run(model, render_prompts(model, queries))]), (0.0,))
    seconds = sum(cells.unsteered(plain, asked) for asked in (chosen, reported))
    per_answer = seconds / (len(chosen.queries) + len(reported.queries))
    options = {"settings": settings, "max_new_tokens": max_new_tokens, "seed": seed, "out": folder}
    candidates = build_methods(model, vectors, responses, methods, **options)

    first = Asked("first", chosen.table.head(FIRST))
    cells.unsteered(plain, first)
    coarse = study.scored([(m, e, m.doses) for m in candidates if m.can_dose for e in emotions], first)
    candidates, by_setting, near = _narrow(candidates, _by_dose(coarse), emotions)
    fine = study.scored([(m, e, near.get((m.name, e), m.doses)) for m in candidates for e in emotions], chosen)
    means = _by_dose(fine)
    best = {m.name: {e: float(means[m.name, m.setting, e].idxmax()) for e in emotions} for m in candidates}
    if target_kl is not None:
        targets = dict.fromkeys(emotions, target_kl)
    else:
        wording = best.get("instruction", dict.fromkeys(emotions, 1.0))
        targets = dict(zip(emotions, map(p95_kl, cells.kls(study.told, list(wording.items()), chosen)), strict=True))
    equal = {m.name: _equal(m, targets, best[m.name], chosen) for m in tracked(candidates, "equal damage", "method")}
    if target_kl is None and "instruction" in best:
        equal["instruction"] = best["instruction"]
    wanted = [(m, e, (d,)) for m in candidates for doses in (best, equal) for e, d in doses[m.name].items()]
    final = study.scored(wanted, reported)

    rows = []
    for m in [plain, *candidates]:
        own = best.get(m.name, dict.fromkeys(emotions, 0.0))
        facts = {"seconds": m.seconds + m.answers * per_answer, "can_dose": m.can_dose, "can_mix": m.can_mix}
        facts["speed"] = 1.0 if m is plain else _speed(m, plain, chosen.queries, own)
        tried = (coarse, first) if m.can_dose else (fine, chosen)
        cells.kls(m, [(e, d) for d in m.doses for e in emotions], tried[1])
        parts = [study.measured(m, *tried, dict.fromkeys(emotions, d)).assign(at="tried") for d in m.doses]
        parts.append(study.measured(m, final, reported, own).assign(at="best"))
        if equal.get(m.name):
            parts.append(study.measured(m, final, reported, equal[m.name]).assign(at="equal damage"))
        rows += [part.assign(method=m.name, setting=m.setting, **facts) for part in parts]
        cells.write()
    table = pd.concat(rows, ignore_index=True)[list(COLUMNS)]
    params = {"target_kl": {e: round(t, 4) for e, t in targets.items()}, "settings": by_setting}
    n = f"{len(reported.queries)} queries reported, {len(chosen.queries)} to choose with"
    noted(table, provenance(model), n=n, seed=seed, params=params)
    return write_table(table, None if out is None else user_path(out) / "baselines.parquet", identity)


def summary_of(table: pd.DataFrame) -> dict[str, dict]:
    """The table's means over emotions, as summary.json holds them: {method: {at: {measure: [value, lo, hi]}, ...}}.

    >>> summary_of(table)["emotion vector"]["best"]["overall"]
    """
    found: dict[str, dict] = {}
    for method, own in table[table["emotion"] == "all"].groupby("method", sort=False):
        facts = own.iloc[0]
        found[str(method)] = {
            at: {r.measure: [_json(x) for x in (r.value, r.lo, r.hi)] for r in own[own["at"] == at].itertuples()}
            for at in ("best", "equal damage")
            if (own["at"] == at).any()
        } | {"seconds": _json(facts.seconds), "speed": _json(facts.speed), "setting": facts.setting}
        found[str(method)] |= {"can_dose": bool(facts.can_dose), "can_mix": bool(facts.can_mix)}
    return found


def _json(value: Any) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


@dataclass
class _Study:
    """What every step of a comparison needs."""

    model: Model
    emotions: tuple[str, ...]
    judges: Any
    cells: Cells
    seed: int

    def __post_init__(self) -> None:
        self.told = instruction_method(self.model)  # its plain wording is the level of fluency

    def scored(self, jobs: Iterable[tuple[Method, str, Sequence[float]]], asked: Asked) -> pd.DataFrame:
        """Scores of these texts and of unsteered and instructed ones, after what is missing was generated."""
        keys = self.cells.fill([*((self.told, e, (1.0,)) for e in self.emotions), *jobs], asked)
        return self.cells.scored(keys, asked, self.model, self.emotions, self.judges)

    def measured(self, m: Method, scored: pd.DataFrame, asked: Asked, doses: Mapping[str, float]) -> pd.DataFrame:
        """Means and damage of one method at these doses, by emotion and over all, with intervals over queries."""
        emotions, ids = self.emotions, list(asked.table["query_id"])
        columns = [*(f"{x}_score" for x in MEASURES[:3]), "overall"]
        own = scored[(scored["method"] == m.name) & (scored["setting"] == m.setting)]
        kls = dict(zip(doses, self.cells.kls(m, list(doses.items()), asked), strict=True))
        longest = max((len(kl) for kl in chain(*kls.values())), default=0)
        values = np.full((len(ids), len(emotions), 4 + longest), np.nan)
        for i, e in enumerate(emotions):
            if e in doses:
                rows = own[(own["emotion"] == e) & (own["alpha"] == doses[e])].set_index("query_id")
                values[:, i, :4] = rows.loc[ids, columns]
                for j, kl in enumerate(kls[e]):
                    values[j, i, 4 : 4 + len(kl)] = kl

        def statistic(rows):
            tokens = rows[:, :, 4:].swapaxes(0, 1).reshape(len(emotions), -1)
            each = np.column_stack([np.nanmean(rows[:, :, :4], axis=0), [p95_kl([row]) for row in tokens]])
            return np.vstack([each, each.mean(0)])  # over all emotions only where each has a value

        clusters = clusters_of(asked.table).loc[ids]
        found = bootstrap_ci(values, statistic, clusters=clusters, n=BOOT, seed=self.seed)
        labels = [*emotions, "all"]
        table = pd.DataFrame([(e, x) for e in labels for x in MEASURES], columns=["emotion", "measure"])
        table["value"], table["lo"], table["hi"] = (x.ravel() for x in found)
        shared = doses[emotions[0]] if len(set(doses.values())) == 1 else np.nan
        return table.assign(dose=table["emotion"].map({**doses, "all": shared}), n=len(ids))


def _check(methods, emotions, judges, responses: pd.DataFrame, chosen: Asked, reported: Asked) -> None:
    """Raise EmolabError for what would be found out only after hours of generation."""
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not len(methods):
        raise EmolabError(f"unknown method {unknown[:1]}; expected some of {', '.join(METHODS)}")
    judge = judges_of(judges)[0]
    unread = [e for e in emotions if e not in judge.labels]
    if unread:
        known = ", ".join(judge.labels)
        raise EmolabError(f"judge {judge.name!r} cannot tell {', '.join(unread)}, only {known}; give judges= that can")
    for name, table in (("queries_select", chosen.table), ("queries_report", reported.table)):
        need_table(table, ("query_id", "query"), f"emolab.load_queries, as {name}")
        query_table(table)
    need_table(responses, ("query", "condition", "text"), "emolab.collect_responses")
    sets = {"responses": set(responses["query"]) - {""}, "queries_select": set(chosen.queries)}
    sets["queries_report"] = set(reported.queries)
    for one, other in combinations(sets, 2):
        both = sets[one] & sets[other]
        if both:
            raise EmolabError(
                f"{len(both)} queries are in {one} and in {other} ({min(both)!r}); what is learned, chosen and "
                "reported must come from different queries"
            )


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
    pairs = zip(scores.index, scores, strict=True)
    told = {f"{name}, {setting}": round(float(x), 4) for (name, setting), x in pairs if name in dosed}
    return kept, told, near


def _rounded(dose: float) -> float:
    return float(f"{dose:.3g}")


def _equal(m: Method, targets: Mapping[str, float], start: Mapping[str, float], asked: Asked) -> dict[str, float]:
    """Each emotion's dose at which the damage on the choosing queries is the target; without those out of reach."""
    found = {}
    for emotion, target in targets.items() if m.can_dose else ():

        def damage(dose: float, emotion: str = emotion) -> float:
            return p95_kl(m.kl(asked.queries, asked.answers, emotion, dose))

        try:
            found[emotion] = dose_at_damage(damage, target, start=start[emotion], tolerance=0.05)[0]
        except EmolabError as error:
            warnings.warn(f"{m.name} is left out at equal damage for {emotion}: {error}", stacklevel=3)
    return {emotion: _rounded(dose) for emotion, dose in found.items()}


def _speed(m: Method, plain: Method, queries: list[str], doses: Mapping[str, float], rounds: int = 3) -> float:
    """Tokens a second over those of the unsteered model, in turn with it; the best of a few rounds."""
    emotion, dose = next(iter(doses.items()))
    queries = queries[:8]
    run, other = (next(iter(x.runs(queries, [{emotion: dose}]))) for x in (m, plain))

    def pace(run: Run) -> float:
        start = time.perf_counter()
        texts = generate(run.model, run.prompts, steering=run.steering, raw=True, max_new_tokens=24)
        steps = max(len(ids) for ids in run.model.tokenizer(texts, add_special_tokens=False).input_ids) + 1
        return min(steps, 24) / (time.perf_counter() - start)

    pace(run)  # the first call warms up
    own, plain_own = zip(*((pace(run), pace(other)) for _ in range(rounds)), strict=True)
    return max(own) / max(plain_own)
