"""The whole study of one model, from queries to a report: what `emolab study` runs.

Choices (site, part, dose) are made on training queries and frozen; results are reported on held-out queries, beside
random directions of equal norm, shuffled labels and the instruction itself, with 95 % intervals over queries.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emolab.answers.queries import load_queries, spread
from emolab.answers.responses import collect_responses
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError, FileError, MismatchError, ResourceError, need_texts, shown
from emolab.base.folders import alone
from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.base.progress import say
from emolab.base.storage import digest, for_json, need_same, read_json, user_path, write_json, write_parquet
from emolab.comparisons.claim_runs import check_claims
from emolab.comparisons.compare import compare_methods, summary_of
from emolab.comparisons.comparison import Comparison
from emolab.comparisons.methods import METHODS, need_methods
from emolab.experiments import selection
from emolab.experiments.sweeps import sweep
from emolab.experiments.wordings import choose_wording, templates_of
from emolab.judges.judges import BlindJudge, default_judge, judges_of, need_labels
from emolab.judges.scoring import kept_score
from emolab.models.load import load_model
from emolab.models.model import Model, provenance
from emolab.models.pretrained import fast_bfloat16
from emolab.models.workers import check_workers
from emolab.steering.steering import at
from emolab.studies.analysis import analyse
from emolab.studies.figures import run_figures
from emolab.studies.numbers import summarise, turned
from emolab.studies.pace import expect, measure_pace, overview
from emolab.studies.plan import FULL, QUICK, Plan
from emolab.studies.rehearsal import rehearse
from emolab.studies.report import write_report
from emolab.vectors.activations import response_means
from emolab.vectors.corpus import corpus_hash
from emolab.vectors.vectors import EmotionVectors, extract_vectors

LORA_LIMIT = 50_000_000  # parameters


@alone
def study(
    model: Model | str = "smollm2",
    *,
    out: str | Path,
    queries: pd.DataFrame | str | None = None,
    emotions: Sequence[str] = EMOTIONS,
    judges: Sequence[Any] | None = None,
    quick: bool = False,
    plan: Plan | None = None,
    seed: int = 0,
) -> dict:
    """Responses, vectors, choice of a setting, dose-response with controls, claims, baselines, figures, report.

    >>> summary = emolab.study("smollm2", out="runs/smollm2", quick=True)
    >>> summary["steering"]["joy"]["target_share"]

    Args:
        out: the folder that holds everything (docs/howto.md, "A run on disk").
        queries: a table with the splits "train" and "heldout", or the name of a set. Default: vectors from the set
            "general", choices and report on "everyday", whose questions evoke nothing, and the emotional ones of
            "general" apart from these.
        emotions: labels to study; what the instruction names ("Answer with joy.").
        judges: the first one is reported, the others are read beside it. Default: `default_judge`, and the same blind
            to the names of emotions. Settings and doses are chosen by the first one, made blind.
        quick: five minutes on two cores for the default model: dose-response with its controls, maps, heads and
            report, without claims and baselines.
        model: one given by name is read in bfloat16 where the processor multiplies that fast, else in float32.
        plan: how much is asked; default FULL, or QUICK.

    Returns:
        What `summary.json` holds: `model, instruction_following{emotion: share}, neutral_share, setting, wording,
        steering{emotion: {best_alpha, target_share, random_share, shuffled_share, adherence_ratio, ...}},
        dose_response{emotion: {alpha: {...}}}, evoking, trend, claims, baselines, geometry, heads, expected, timings`
        (seconds). A ratio that does not exist (a model that writes nothing) is None, in the file null.

    It says beforehand how many texts it will write and how long that takes on this machine. A call with the same
    arguments goes on where a killed one was. Raises EmolabError for too few queries of a split, and where another
    process writes in `out`.
    """
    out, timings = user_path(out), {}
    plan = _plan(plan, quick)

    def stage(name: str):
        return _stage(name, timings)

    with stage("load"):
        model = load_model(model, dtype="bfloat16" if fast_bfloat16() else "float32")
        check_workers(model)
        emotions = _emotions(emotions)
        extract, choosing, report, evoking = _questions(queries, emotions, plan)
        judges = [default_judge(emotions), BlindJudge(default_judge(emotions))] if judges is None else judges_of(judges)
        if plan.methods is None:
            affordable = [name for name in METHODS if name != "lora" or _n_parameters(model) <= LORA_LIMIT]
            plan = replace(plan, methods=affordable)
        methods = list(plan.methods or ())
        if methods:  # what would else be found out only after hours
            need_methods(methods)
        need_labels(judges, (*emotions, NEUTRAL))
        chooser = judges[0] if isinstance(judges[0], BlindJudge) else BlindJudge(judges[0])
    with stage("rehearsal"):
        sites = rehearse(model, emotions, (extract, choosing, report, evoking), judges, plan)
    with stage("pace"):
        sizes = {"extract": len(extract), "choose": len(choosing), "report": len(report), "evoking": len(evoking)}
        expected = expect(model, plan, sizes, len(emotions), measure_pace(model))
    say(overview(model, out, plan, sizes, len(emotions), expected))
    wording, templates = None, None
    if isinstance(plan.wordings, str):
        templates = templates_of(plan.wordings, emotions)
    elif plan.wordings:
        with stage("wording"):
            wording = _wording(model, choosing, emotions, judges[0], out, plan.max_new_tokens)
        templates = wording["templates"]
    instructing = Writing(templates=templates)
    with stage("responses"):
        asked = pd.concat([extract, choosing, report])
        responses = collect_responses(
            model, asked, emotions=emotions, out=out, max_new_tokens=plan.max_new_tokens, writing=instructing
        )
        of = [responses[responses["query_id"].isin(part["query_id"])] for part in (extract, choosing, report)]
    with stage("vectors"):
        vectors = _vectors(model, of[0], sites, out)
    with stage("selection"):
        given = {"judge": chooser, "out": out / "selection", "search": plan.search}
        setting, best, vectors = selection.select(model, vectors, choosing, of[1], **given)
        vectors.save(out / "vectors.safetensors")  # with where they break
    with stage("sweep"):
        table = sweep(
            model,
            at(vectors, setting),
            report,
            alphas=sorted({*plan.search.doses, 0.0}),
            out=out,
            max_new_tokens=plan.max_new_tokens,
            writing=Writing(seed=seed),
        )
    with stage("scores"):
        scored = kept_score(table, out / "scores.parquet", judges=judges, model=model, writing=instructing)
        told = of[2].assign(emotion=of[2]["condition"])
        answers = kept_score(told, out / "instructed_scores.parquet", judges=judges, model=model, writing=instructing)
    summary = {"model": model.name, "fingerprint": model.fingerprint, "seed": seed, "dtype": str(model.dtype)[6:]}
    summary["n_queries"] = {"extract": len(extract), "select": len(choosing), "report": len(report)}
    summary |= summarise(scored, answers, vectors.emotions, best, judges)
    summary["setting"] = selection.setting_row(setting)
    if wording is not None:
        summary["wording"] = {key: wording[key] for key in ("name", "following", "not_followed", "sentence")}
    if len(evoking):
        with stage("evoking"):
            summary["evoking"] = turned(
                model, vectors, evoking, setting, best, judges[0], out / "evoking", plan.max_new_tokens
            )
    # Claims and methods know no breaking alphas: they get vectors of which one is where text breaks, in the mean.
    broken = [alpha for one in at(vectors, setting) for alpha in one.in_vectors().values()]
    long = float(np.mean(broken)) * vectors
    where = replace(setting, unit="vector")
    if plan.n_claims:
        with stage("claims"):
            comparison = Comparison(model, long, where, seed=seed, out=out / "claims")
            summary["claims"] = _claims(comparison, report, of[2], scored, judges[0], plan.n_claims)
    if methods:
        with stage("baselines"):
            comparison = Comparison(model, long, where, seed=seed, out=out)
            sets = (of[0], choosing, report)
            summary["baselines"] = _baselines(comparison, sets, methods, judges[0], plan.max_new_tokens)
    with stage("analysis"):
        summary |= analyse(model, vectors, of[0], of[2], judge=judges[0], out=out, seed=seed, quick=plan.quick)
    manifest = {**provenance(model), "seed": seed, "vectors": dict(sorted(vectors.meta.items()))}
    manifest["setting"] = summary["setting"]
    manifest["writing"] = Writing().settings()
    summary["expected"] = expected
    write_json(out / "manifest.json", manifest)
    write_json(out / "summary.json", summary | {"timings": timings})
    with stage("figures"):
        run_figures(out)
        write_report(out)
    summary["timings"] = timings
    write_json(out / "summary.json", summary)
    took, meant = sum(timings.values()) / 60, sum(expected.values()) / 60
    say(
        f"study of {model.name}: {took:.1f} minutes (expected {meant:.1f}); results in {out}, "
        f"figures in {out / 'figures'}, report in {out / 'report.html'}"
    )
    return summary


CLAIM_DOSES = (0.25, 0.5, 1.0, 2.0)  # in breaking alphas, averaged over emotions


def _plan(plan: Plan | None, quick: bool) -> Plan:
    if plan is None:
        return QUICK if quick else FULL
    if not isinstance(plan, Plan):
        raise EmolabError(f"plan is {shown(plan)}; expected an emolab.studies.plan.Plan, such as FULL or QUICK")
    return plan


def _emotions(emotions: Sequence[str]) -> list[str]:
    """Each one once, without neutral, which every study has."""
    named = need_texts("emotions", [emotions] if isinstance(emotions, str) else emotions, filled=True)
    found = [emotion for emotion in dict.fromkeys(named) if emotion != NEUTRAL]
    if not found:
        raise EmolabError(f"emotions are {shown(emotions)}; expected labels beside neutral (at least one emotion)")
    return found


def _questions(queries: pd.DataFrame | str | None, emotions: Sequence[str], plan: Plan) -> list[pd.DataFrame]:
    """Questions to extract, to choose and to report with, and such as evoke one of these emotions themselves."""
    selection.need_sizes(plan.n_queries)
    if queries is not None:
        table = queries if isinstance(queries, pd.DataFrame) else load_queries(queries)
        return [*selection.split_queries(table, plan.n_queries), table.head(0)]
    n_extract, n_choose, n_report = plan.n_queries
    heldout = load_queries("general", split="heldout")
    evoking = heldout[heldout["emotion"].isin(emotions)]
    return [
        load_queries("general", split="train", n=n_extract),
        load_queries("everyday", split="train", n=n_choose),
        load_queries("everyday", split="heldout", n=n_report),
        spread(evoking).head(plan.n_evoking),
    ]


def _wording(
    model: Model, queries: pd.DataFrame, emotions: Sequence[str], judge: Any, out: Path, max_new_tokens: int
) -> dict:
    """The wording of the instruction that this model follows best, kept in `wording.json`."""
    path = out / "wording.json"
    of = {"fingerprint": model.fingerprint, "emotions": list(emotions), "queries": digest(list(queries["query"]))}
    of |= {"judge": judge.name, "max_new_tokens": max_new_tokens, "writing": Writing().settings()}
    if path.exists():
        found = read_json(path, "remove it, and it is chosen again")
        need_same(path, found["of"], of)
        return found
    choice = choose_wording(model, queries, emotions, judges=judge, max_new_tokens=max_new_tokens)
    shares = choice.chosen.set_index("emotion")[["following", "lo", "hi"]].to_dict("index")
    following = for_json({emotion: list(row.values()) for emotion, row in shares.items()}, decimals=4)
    told = {"name": choice.wording, "following": following, "not_followed": list(choice.not_followed)}
    found = {"of": of, "templates": choice.templates, **told, "sentence": str(choice)}
    write_json(path, found)
    return found


def _claims(
    comparison: Comparison, queries: pd.DataFrame, answers: pd.DataFrame, scored: pd.DataFrame, judge: Any, n: int
) -> dict:
    """Verdict, condition and evidence of each claim; "not tested" with the reason where a claim cannot be asked."""
    try:
        claims = check_claims(comparison, queries, answers, scored, judge=judge, doses=CLAIM_DOSES, n_queries=n)
    except (FileError, MismatchError, ResourceError):
        raise
    except EmolabError as error:  # too few doses or queries: the rest of the study stands without it
        say(f"claims not tested: {error}")
        lost = {"verdict": "not tested", "condition": str(error), "evidence": {}}
        return dict.fromkeys(("monotone", "preservation", "linear", "additive"), lost)
    summary = {}
    for name, claim in claims.items():
        if comparison.folder is not None:
            write_parquet(comparison.folder / f"{name}.parquet", claim.table)
        summary[name] = {"verdict": claim.verdict, "condition": claim.condition, "evidence": claim.evidence}
    return summary


def _baselines(
    comparison: Comparison, sets: Sequence[pd.DataFrame], methods: list[str], judge: Any, max_new_tokens: int
) -> dict:
    responses, choosing, report = sets
    try:
        table = compare_methods(
            comparison,
            responses,
            choosing,
            report,
            methods=methods,
            judges=judge,
            max_new_tokens=max_new_tokens,
        )
    except (FileError, MismatchError, ResourceError):
        raise
    except EmolabError as error:
        say(f"baselines not compared: {error}")
        return {}
    return summary_of(table)


def _n_parameters(model: Model) -> int:
    return sum(p.numel() for p in model.hf.parameters())


def _vectors(model: Model, responses: pd.DataFrame, sites: Sequence[str], out: Path) -> EmotionVectors:
    path = out / "vectors.safetensors"
    if path.exists():
        vectors = EmotionVectors.load(path)
        if (
            vectors.meta.get("corpus_hash") == corpus_hash(responses)
            and vectors.meta.get("fingerprint") == model.fingerprint
        ):
            return vectors
    means = response_means(model, responses, sites=sites)
    return extract_vectors(model, responses, sites=sites, means=means, out=out)


@contextlib.contextmanager
def _stage(name: str, timings: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 2)
    say(f"{name}: {timings[name]:.1f} s")
