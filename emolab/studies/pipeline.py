"""The whole study of one model, from queries to a report: what `emolab study` runs.

Choices (site, part, dose) are made on training queries and frozen; results are reported on held-out queries, beside
random directions of equal norm, shuffled labels and the instruction itself, with 95 % intervals over queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emolab.answers.queries import load_queries, spread
from emolab.answers.responses import collect_responses
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError, need_texts, shown
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
from emolab.studies.figures import CLAIMS, NOT_TESTED, run_figures
from emolab.studies.numbers import summarise, turned
from emolab.studies.pace import expect, measure_pace, n_parameters, overview
from emolab.studies.plan import FULL, QUICK, Plan
from emolab.studies.rehearsal import rehearse
from emolab.studies.report import write_report
from emolab.studies.stages import attempt, stage
from emolab.vectors.vectors import extract_vectors

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
    plan = (QUICK if quick else FULL) if plan is None else plan
    if not isinstance(plan, Plan):
        raise EmolabError(f"plan is {shown(plan)}; expected an emolab.studies.plan.Plan, such as FULL or QUICK")

    with stage("load", timings):
        model = load_model(model, dtype="bfloat16" if fast_bfloat16() else "float32")
        check_workers(model)
        emotions = _emotions(emotions)
        questions = _questions(queries, emotions, plan)
        sizes = {purpose: len(asked) for purpose, asked in questions.items()}
        judges = [default_judge(emotions), BlindJudge(default_judge(emotions))] if judges is None else judges_of(judges)
        if plan.methods is None:
            affordable = [name for name in METHODS if name != "lora" or n_parameters(model) <= LORA_LIMIT]
            plan = replace(plan, methods=affordable)
        methods = list(plan.methods or ())
        if methods:  # what would else be found out only after hours
            need_methods(methods)
        need_labels(judges, (*emotions, NEUTRAL))
        judge = judges[0]
        blind = judge if isinstance(judge, BlindJudge) else BlindJudge(judge)
    with stage("rehearsal", timings):
        sites = rehearse(model, emotions, list(questions.values()), judges, plan)
    with stage("pace", timings):
        expected = expect(model, plan, sizes, len(emotions), measure_pace(model))
    say(overview(model, out, plan, sizes, len(emotions), expected))
    wording, templates = None, None
    if isinstance(plan.wordings, str):
        templates = templates_of(plan.wordings, emotions)
    elif plan.wordings:
        with stage("wording", timings):
            wording = _wording(model, questions["choose"], emotions, judge, out, plan.max_new_tokens)
        templates = wording["templates"]
    instructing = Writing(templates=templates)
    with stage("responses", timings):
        asked = pd.concat([questions[purpose] for purpose in ("extract", "choose", "report")])
        responses = collect_responses(
            model, asked, emotions=emotions, out=out, max_new_tokens=plan.max_new_tokens, writing=instructing
        )
        answers = {
            purpose: responses[responses["query_id"].isin(table["query_id"])] for purpose, table in questions.items()
        }
    with stage("vectors", timings):
        vectors = extract_vectors(model, answers["extract"], sites=sites, out=out)
    with stage("selection", timings):
        setting, best, vectors = selection.select(
            model,
            vectors,
            questions["choose"],
            answers["choose"],
            judge=blind,
            out=out / "selection",
            search=plan.search,
        )
        vectors.save(out / "vectors.safetensors")  # with where they break
    with stage("sweep", timings):
        table = sweep(
            model,
            at(vectors, setting),
            questions["report"],
            alphas=sorted({*plan.search.doses, 0.0}),
            out=out,
            max_new_tokens=plan.max_new_tokens,
            writing=Writing(seed=seed),
        )
    with stage("scores", timings):
        score_into = partial(kept_score, judges=judges, model=model, writing=instructing)
        scored = score_into(table, out / "scores.parquet")
        told = answers["report"].assign(emotion=answers["report"]["condition"])
        instructed = score_into(told, out / "instructed_scores.parquet")
    summary = {"model": model.name, "fingerprint": model.fingerprint, "seed": seed, "dtype": str(model.dtype)[6:]}
    summary["n_queries"] = {"extract": sizes["extract"], "select": sizes["choose"], "report": sizes["report"]}
    summary |= summarise(scored, instructed, vectors.emotions, best, judges)
    summary["setting"] = selection.setting_row(setting)
    if wording is not None:
        summary["wording"] = {key: wording[key] for key in ("name", "following", "not_followed", "sentence")}
    if sizes["evoking"]:
        with stage("evoking", timings):
            summary["evoking"] = turned(
                model, vectors, questions["evoking"], setting, best, judge, out / "evoking", plan.max_new_tokens
            )
    # Claims and methods know no breaking alphas: they get vectors of which one is where text breaks, in the mean.
    broken = [alpha for one in at(vectors, setting) for alpha in one.in_vectors().values()]
    long = float(np.mean(broken)) * vectors
    where = replace(setting, unit="vector")
    if plan.n_claims:
        with stage("claims", timings):
            comparison = Comparison(model, long, where, seed=seed, out=out / "claims")
            summary["claims"] = attempt(
                partial(_claims, comparison, questions["report"], answers["report"], scored, judge, plan.n_claims),
                "claims not tested",
                otherwise=_untested,
            )
    if methods:
        with stage("baselines", timings):
            comparison = Comparison(model, long, where, seed=seed, out=out)
            summary["baselines"] = attempt(
                lambda: summary_of(
                    compare_methods(
                        comparison,
                        answers["extract"],
                        questions["choose"],
                        questions["report"],
                        methods=methods,
                        judges=judge,
                        max_new_tokens=plan.max_new_tokens,
                    )
                ),
                "baselines not compared",
                otherwise=lambda reason: {},
            )
    with stage("analysis", timings):
        summary |= analyse(
            model, vectors, answers["extract"], answers["report"], judge=judge, out=out, seed=seed, quick=plan.quick
        )
    summary["expected"] = expected
    vectors_meta = dict(sorted(vectors.meta.items()))
    manifest = {**provenance(model), "seed": seed, "vectors": vectors_meta, "setting": summary["setting"]}
    write_json(out / "manifest.json", manifest | {"writing": Writing().settings()})
    write_json(out / "summary.json", summary | {"timings": timings})
    with stage("figures", timings):
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


def _emotions(emotions: Sequence[str]) -> list[str]:
    """Each one once, without neutral, which every study has."""
    named = need_texts("emotions", [emotions] if isinstance(emotions, str) else emotions, filled=True)
    studied = [emotion for emotion in dict.fromkeys(named) if emotion != NEUTRAL]
    if not studied:
        raise EmolabError(f"emotions are {shown(emotions)}; expected labels beside neutral (at least one emotion)")
    return studied


def _questions(queries: pd.DataFrame | str | None, emotions: Sequence[str], plan: Plan) -> dict[str, pd.DataFrame]:
    """Questions to extract, to choose and to report with, and such as evoke one of these emotions themselves."""
    selection.need_sizes(plan.n_queries)
    if queries is not None:
        table = queries if isinstance(queries, pd.DataFrame) else load_queries(queries)
        extract, choose, report = selection.split_queries(table, plan.n_queries)
        return {"extract": extract, "choose": choose, "report": report, "evoking": table.head(0)}
    n_extract, n_choose, n_report = plan.n_queries
    heldout = load_queries("general", split="heldout")
    return {
        "extract": load_queries("general", split="train", n=n_extract),
        "choose": load_queries("everyday", split="train", n=n_choose),
        "report": load_queries("everyday", split="heldout", n=n_report),
        "evoking": spread(heldout[heldout["emotion"].isin(emotions)]).head(plan.n_evoking),
    }


def _wording(
    model: Model, queries: pd.DataFrame, emotions: list[str], judge: Any, out: Path, max_new_tokens: int
) -> dict:
    """The wording of the instruction that this model follows best, kept in `wording.json`."""
    path = out / "wording.json"
    made_of = {"fingerprint": model.fingerprint, "emotions": emotions, "queries": digest(list(queries["query"]))}
    made_of |= {"judge": judge.name, "max_new_tokens": max_new_tokens, "writing": Writing().settings()}
    if path.exists():
        kept = read_json(path, "remove it, and it is chosen again")
        need_same(path, kept["of"], made_of)
        return kept
    choice = choose_wording(model, queries, emotions, judges=judge, max_new_tokens=max_new_tokens)
    shares = choice.chosen.set_index("emotion")[["following", "lo", "hi"]]
    chosen = {
        "of": made_of,
        "templates": choice.templates,
        "name": choice.wording,
        "following": for_json(shares.T.to_dict("list"), decimals=4),
        "not_followed": list(choice.not_followed),
        "sentence": str(choice),
    }
    write_json(path, chosen)
    return chosen


def _claims(
    comparison: Comparison, queries: pd.DataFrame, answers: pd.DataFrame, scored: pd.DataFrame, judge: Any, n: int
) -> dict[str, dict]:
    """Verdict, condition and evidence of each claim, whose tables are written."""
    claims = check_claims(comparison, queries, answers, scored, judge=judge, doses=CLAIM_DOSES, n_queries=n)
    for name, claim in claims.items():
        write_parquet(Path(str(comparison.out), f"{name}.parquet"), claim.table)
    return {
        name: {"verdict": claim.verdict, "condition": claim.condition, "evidence": claim.evidence}
        for name, claim in claims.items()
    }


def _untested(reason: str) -> dict[str, dict]:
    return dict.fromkeys(CLAIMS, {"verdict": NOT_TESTED, "condition": reason, "evidence": {}})
