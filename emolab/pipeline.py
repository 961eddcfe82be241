"""The whole study of one model, from queries to a report: what `emolab study` runs.

Choices (site, part, dose) are made on training queries and frozen; results are reported on held-out queries, beside
random directions of equal norm, shuffled labels and the instruction itself, with 95 % intervals over queries.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from emolab.activations import corpus_hash, response_means
from emolab.analysis import analyse
from emolab.baselines import METHODS, compare_methods, summary_of
from emolab.claim_runs import check_claims
from emolab.cluster import check_client
from emolab.controls import means_of
from emolab.emotions import EMOTIONS, NEUTRAL
from emolab.errors import EmolabError, FileError, MismatchError, ResourceError, need_numbers, need_texts
from emolab.experiments import sweep
from emolab.judges import default_judge, judges_of
from emolab.models import Model, load_model
from emolab.plot.run import run_figures
from emolab.queries import load_queries
from emolab.report import write_report
from emolab.responses import collect_responses
from emolab.runs import alone
from emolab.scoring import kept_score
from emolab.selection import select, split_queries
from emolab.storage import digest, provenance, read_table, user_path, write_json, write_parquet, write_table
from emolab.summary import intensity, summarise
from emolab.vectors import EmotionVectors, extract_vectors
from emolab.writing import Writing

if TYPE_CHECKING:
    from distributed import Client

REPORT_ALPHAS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
SITES = ("resid", "attn", "mlp", "head")
LORA_LIMIT = 50_000_000  # parameters


@alone
def study(
    model: Model | str = "smollm2",
    *,
    out: str | Path,
    queries: pd.DataFrame | str | None = None,
    emotions: Sequence[str] = EMOTIONS,
    judges: Sequence[Any] | None = None,
    n_queries: tuple[int, int, int] = (40, 20, 26),
    alphas: Sequence[float] = REPORT_ALPHAS,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    client: Client | None = None,
) -> dict:
    """Responses, vectors, choice of a setting, dose-response with controls, claims, baselines, figures, report.

    >>> summary = emolab.study("smollm2", out="runs/smollm2")
    >>> summary["steering"]["joy"]["target_share"]

    Args:
        out: the folder that holds everything (design: README, "A run on disk").
        queries: a table with the splits "train" and "heldout", or the name of a set; default "general".
        emotions: labels to study; what the instruction names ("Answer with joy.").
        judges: the first one chooses doses and is reported, the others are read beside it. Default: `default_judge`.
        n_queries: how many queries extract the vectors (train), choose setting and dose (train, others), and report
            (held out).
        methods: what the vectors are compared with (`emolab.baselines.METHODS`); () for none. Default: all, but LoRA
            only for models of up to 50 million parameters, since it would cost more than all the rest.
        client: of a Dask cluster, whose workers then do the long stages, with the same result (`emolab.cluster`):
            responses, vectors, selection, sweep, scores, heads.

    Returns:
        What `summary.json` holds: `model, instruction_following{emotion: share}, neutral_share, intensity, setting,
        steering{emotion: {best_alpha, target_share, random_share, shuffled_share, adherence_ratio, perplexity_ratio,
        ...}}, dose_response{emotion: {alpha: {...}}}, trend, claims, baselines, agreement, geometry, heads, timings`
        (seconds). A ratio that does not exist (a model that writes nothing) is None, in the file null.

    A call with the same arguments goes on where a killed one was. Raises EmolabError for too few queries of a split,
    and where another process writes in `out`.
    """
    out, timings = user_path(out), {}

    def stage(name: str):
        return _stage(name, timings, progress)

    with stage("load"):
        model = load_model(model)
        check_client(model, client)
        queries = queries if isinstance(queries, pd.DataFrame) else load_queries(queries or "general")
        extract, choosing, report = split_queries(queries, n_queries)
        if judges is None:
            judges = [default_judge(emotions)]
        if methods is None:
            methods = [m for m in METHODS if m != "lora" or _n_parameters(model) <= LORA_LIMIT]
        _check(emotions, judges, alphas, methods)
    if progress:
        print(_overview(model, out, len(emotions), len(alphas), *map(len, (extract, choosing, report))), flush=True)
    options = {"seed": seed, "progress": progress}
    with stage("responses"):
        asked = pd.concat([extract, choosing, report])
        responses = collect_responses(model, asked, emotions=emotions, out=out, client=client, progress=progress)
        of = [responses[responses["query_id"].isin(part["query_id"])] for part in (extract, choosing, report)]
    with stage("vectors"):
        vectors = _vectors(model, of[0], out, progress, client)
    with stage("selection"):
        given = {"judge": judges[0], "out": out / "selection", "progress": progress, "client": client}
        setting, best = select(model, vectors, choosing, of[1], **given)
    with stage("sweep"):
        grid, doses = {key: [value] for key, value in setting.items()}, sorted({*alphas, 0.0, *best.values()})
        table = sweep(model, vectors, report, alphas=doses, grid=grid, out=out, client=client, **options)
    with stage("scores"):
        read = {"judges": judges, "model": model, "client": client, "progress": progress}
        scored = kept_score(table, out / "scores.parquet", **read)
        told = of[2].assign(emotion=of[2]["condition"])
        answers = kept_score(told, out / "instructed_scores.parquet", **read)
    summary = {"model": model.name, "fingerprint": model.fingerprint, "seed": seed}
    summary["n_queries"] = {"extract": len(extract), "select": len(choosing), "report": len(report)}
    summary |= summarise(scored, answers, vectors.emotions, best, judges)
    summary["setting"] = setting
    with stage("intensity"):
        summary["intensity"] = intensity(model, vectors.emotions, report, judges[-1], out, progress)
    with stage("claims"):
        place = {"setting": setting, "judge": judges[0], "out": out / "claims"}
        summary["claims"] = _claims(model, vectors, report, of[2], scored, **place, **options)
    with stage("baselines"):
        summary["baselines"] = {}
        if methods:
            given = {"methods": methods, "judges": judges[0], "out": out}
            summary["baselines"] = _baselines(model, vectors, of[0], choosing, report, **given, **options)
    with stage("analysis"):
        groups = asked.set_index("query_id")["situation"]
        where = {"judge": judges[0], "out": out, "client": client, **options}
        summary |= analyse(model, vectors, means_of(vectors), of[0], of[2], groups, **where)
    manifest = {**provenance(model), "seed": seed, "vectors": dict(sorted(vectors.meta.items())), "setting": setting}
    manifest["writing"] = Writing().settings()
    write_json(out / "manifest.json", manifest)
    write_json(out / "summary.json", summary | {"timings": timings})
    with stage("figures"):
        run_figures(out)
        write_report(out)
    summary["timings"] = timings
    write_json(out / "summary.json", summary)
    if progress:
        print(f"study of {model.name}: results in {out}, figures in {out / 'figures'}, report in {out / 'report.html'}")
    return summary


def _overview(model: Model, out: Path, n_emotions: int, n_doses: int, *n_queries: int) -> str:
    """What lies ahead, and where it will lie."""
    answers, steered = sum(n_queries) * (n_emotions + 1), 3 * n_emotions * n_doses * n_queries[-1]
    size = f"{_n_parameters(model) / 1e6:,.1f} million parameters on {model.device}"
    return (
        f"study of {model.name} ({size}): results in {out}\n"
        f"{answers:,} answers for the vectors, about {steered:,} steered texts in the sweep with controls, and more "
        "for selection, claims, baselines and heads. A study that was stopped goes on where it was."
    )


def _check(emotions: Sequence[str], judges: Sequence[Any], alphas: Sequence[float], methods: Sequence[str]) -> None:
    """EmolabError for what would be found out only after hours."""
    need_texts("emotions", emotions, filled=True)
    need_numbers("alphas", alphas)
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise EmolabError(f"unknown method {unknown[0]!r}; expected some of {', '.join(METHODS)}")
    for judge in judges_of(judges):
        unread = [e for e in (*emotions, NEUTRAL) if e not in judge.labels]
        if unread:
            known = ", ".join(judge.labels)
            raise EmolabError(f"judge {judge.name!r} cannot tell {unread[0]}, only {known}; give another one")


def _claims(model, vectors, queries, answers, scored, *, out: Path, progress: bool, **options) -> dict:
    """Verdict, condition and evidence of each claim; "not tested" with the reason where a claim cannot be asked."""
    try:
        found = check_claims(model, vectors, queries, answers, scored, out=out, progress=progress, **options)
    except (FileError, MismatchError, ResourceError):
        raise
    except EmolabError as error:  # too few doses or queries: the rest of the study stands without it
        if progress:
            print(f"claims not tested: {error}")
        lost = {"verdict": "not tested", "condition": str(error), "evidence": {}}
        return dict.fromkeys(("monotone", "preservation", "linear", "additive"), lost)
    for name, claim in found.items():
        write_parquet(out / f"{name}.parquet", claim.table)
    told = ("verdict", "condition", "evidence")
    return {name: {key: getattr(claim, key) for key in told} for name, claim in found.items()}


def _baselines(model, vectors, responses, choosing, report, *, methods, out: Path, seed: int, **options) -> dict:
    # Kept whole, since it holds times, which a second run would measure anew.
    settings = {"fingerprint": model.fingerprint, "responses": corpus_hash(responses), "methods": list(methods)}
    settings |= {"queries": digest([*choosing["query"], *report["query"]]), "seed": seed}
    table = read_table(out / "baselines.parquet", settings)
    if table is None:
        given = {"methods": methods, "out": out, "seed": seed}
        try:
            table = compare_methods(model, vectors, responses, choosing, report, **given, **options)
        except (FileError, MismatchError, ResourceError):
            raise
        except EmolabError as error:
            if options["progress"]:
                print(f"baselines not compared: {error}")
            return {}
        write_table(table, out / "baselines.parquet", settings)
    return summary_of(table)


def _n_parameters(model: Model) -> int:
    return sum(p.numel() for p in model.hf.parameters())


def _vectors(model: Model, responses: pd.DataFrame, out: Path, progress: bool, client: Any) -> EmotionVectors:
    path = out / "vectors.safetensors"
    if path.exists():
        vectors = EmotionVectors.load(path)
        if (
            vectors.meta.get("corpus_hash") == corpus_hash(responses)
            and vectors.meta.get("token_rule") == "response"
            and vectors.meta.get("fingerprint") == model.fingerprint
        ):
            return vectors
    means = response_means(model, responses, sites=SITES, progress=progress, client=client)
    return extract_vectors(model, responses, sites=SITES, means=means, out=out)


@contextlib.contextmanager
def _stage(name: str, timings: dict[str, float], progress: bool) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 2)
    if progress:
        print(f"{name}: {timings[name]:.1f} s", flush=True)
