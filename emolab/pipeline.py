"""The whole study of one model, from queries to figures: what `emolab study` runs.

Choices (site, part, dose) are made on training queries and frozen; results are reported on held-out queries, beside
random directions of equal norm and shuffled labels, with 95 % bootstrap intervals over queries.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import hmean

from emolab.activations import response_means
from emolab.analysis import analyse
from emolab.controls import means_of
from emolab.emotions import NEUTRAL
from emolab.errors import EmolabError
from emolab.experiments import sweep
from emolab.generation import generate
from emolab.judges import EmbeddingJudge, mini_lexicon, score
from emolab.models import Model, load_model, render_prompts
from emolab.plot.run import run_figures
from emolab.queries import load_queries
from emolab.responses import collect_responses
from emolab.stats import interval
from emolab.storage import atomic, digest, provenance, read_table, write_parquet, write_table
from emolab.vectors import EmotionVectors, extract_vectors

SELECTION_ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
REPORT_ALPHAS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
SITES = ("resid", "attn", "mlp", "head")
ROUND_ONE = 6  # queries that choose between settings


def study(
    model: Model | str = "mini",
    *,
    out: str | Path,
    queries: pd.DataFrame | str | None = None,
    n_queries: tuple[int, int, int] = (40, 20, 26),
    alphas: tuple[float, ...] = REPORT_ALPHAS,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """Responses, vectors, choice of a setting, dose-response with controls, figures, summary; all in the folder `out`.

    >>> summary = emolab.study("mini", out="runs/mini")
    >>> summary["steering"]["joy"]["target_share"]

    Args:
        queries: a table with the splits "train" and "heldout", or the name of a set; default "mini" for the bundled
            model, else "general".
        n_queries: how many queries extract the vectors (train), choose setting and dose (train, others), and report
            (held out).

    Returns:
        What `summary.json` holds: `model, instruction_following{emotion: share}, neutral_share, intensity, setting,
        steering{emotion: {best_alpha, target_share, random_share, shuffled_share, adherence_ratio, perplexity_ratio,
        ...}}, geometry, heads, timings` (seconds). A ratio that does not exist (a model that writes nothing) is None,
        in the file null.

    A call with the same arguments goes on where a killed one was. Raises EmolabError for too few queries of a split.
    """
    out, timings = Path(out), {}
    with _stage("load", timings, progress):
        model = load_model(model)
        name = queries if queries is not None else ("mini" if model.name == "mini" else "general")
        queries = name if isinstance(name, pd.DataFrame) else load_queries(name)
        extract, select, report = _split(queries, n_queries)
        judges = [EmbeddingJudge(), *([mini_lexicon()] if model.name == "mini" else [])]
    with _stage("responses", timings, progress):
        asked = pd.concat([extract, select, report])
        responses = collect_responses(model, asked, out=out, seed=seed, progress=progress)
        of = {
            part: responses[responses["query_id"].isin(q["query_id"])]
            for part, q in (("extract", extract), ("select", select), ("report", report))
        }
    with _stage("vectors", timings, progress):
        vectors = _vectors(model, of["extract"], out, progress)
    with _stage("selection", timings, progress):
        setting, best = _select(model, vectors, select, of["select"], out / "selection", judges[0], progress)
    with _stage("report", timings, progress):
        doses = sorted({*alphas, 0.0, *best.values()})
        table = sweep(
            model,
            vectors,
            report,
            alphas=doses,
            grid={k: [v] for k, v in setting.items()},
            out=out,
            seed=seed,
            progress=progress,
        )
    with _stage("scores", timings, progress):
        scored = score(table, judges=judges, model=model)
        answers = score(of["report"].assign(emotion=of["report"]["condition"]), judges=judges, model=model)
        write_parquet(out / "scores.parquet", scored)
        write_parquet(out / "instructed_scores.parquet", answers)
        intensity = _intensity(model, vectors.emotions, report, judges, out, progress)
    with _stage("analysis", timings, progress):
        groups = asked.set_index("query_id")["situation"]
        options = {"judge": judges[0], "out": out, "seed": seed, "progress": progress}
        found = analyse(model, vectors, means_of(vectors), of["extract"], of["report"], groups, **options)
    instructed = {e: answers[answers["condition"] == e] for e in vectors.emotions}
    summary = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "seed": seed,
        "n_queries": dict(zip(("extract", "select", "report"), map(len, (extract, select, report)), strict=True)),
        "instruction_following": {e: _share(told) for e, told in instructed.items()},
        "neutral_share": _share(answers[answers["condition"] == NEUTRAL]),
        "intensity": intensity,
        "setting": setting,
        "steering": {e: _report(scored, answers, e, best[e]) for e in vectors.emotions},
        **found,
        "timings": timings,
    }
    if len(judges) > 1:
        summary["lexicon"] = {
            "neutral_share": _share(answers[answers["condition"] == NEUTRAL], "lexicon_top"),
            "instruction_following": {e: _share(told, "lexicon_top") for e, told in instructed.items()},
            "target_share": {e: _share(_cell(scored, e, best[e]), "lexicon_top") for e in vectors.emotions},
        }
    _write_json(out / "manifest.json", {**provenance(model), "seed": seed, "vectors": vectors.meta, "setting": setting})
    _write_json(out / "summary.json", summary)
    with _stage("figures", timings, progress):
        run_figures(out)
    _write_json(out / "summary.json", summary)
    if progress:
        print(f"study of {model.name}: results in {out}, figures in {out / 'figures'}")
    return summary


def choose(tried: pd.DataFrame, instructed: pd.DataFrame) -> pd.DataFrame:
    """The dose of each setting and emotion, by the harmonic mean of emotion, adherence and fluency (AxBench's rule).

    tried: scored texts of a sweep. instructed: scored answers to the same queries under instruction. Emotion is the
    share of texts whose top label is the target; adherence that over unsteered texts, at most 1; fluency the median
    perplexity of instructed answers over that of the steered texts, both given the instruction, at most 1. Of the doses
    that score within 5 % of the best the middle one is taken: the edge of a plateau would not hold on other queries.
    One row a setting and emotion: `site, layers, part, emotion, alpha, score, target, adherence, fluency`.
    """
    reference = instructed.groupby("condition")["perplexity_instructed"].median()
    rows = []
    for key, cell in tried.groupby(["site", "layers", "part", "emotion"], sort=False):
        emotion, plain, doses = key[-1], cell.loc[cell["alpha"] == 0, "adherence"].mean(), []
        for alpha, texts in cell[cell["alpha"] != 0].groupby("alpha"):
            parts = np.array(
                [
                    (texts["top"] == emotion).mean(),
                    texts["adherence"].mean() / plain,
                    reference[emotion] / texts["perplexity_instructed"].median(),
                ]
            )
            parts = np.clip(np.nan_to_num(parts, nan=0.0), 0, 1)  # NaN: empty texts, which are no fluent ones
            doses.append((alpha, float(hmean(parts)) if parts.all() else 0.0, *map(float, parts)))
        top = max(dose[1] for dose in doses)
        plateau = [dose for dose in doses if dose[1] >= 0.95 * top]
        rows.append((*key, *plateau[len(plateau) // 2]))
    columns = ["site", "layers", "part", "emotion", "alpha", "score", "target", "adherence", "fluency"]
    return pd.DataFrame(rows, columns=columns)


def _select(model, vectors, queries, responses, out, judge, progress) -> tuple[dict, dict[str, float]]:
    """Site, layers and part on some training queries, then with these each emotion's dose on all of the queries."""
    instructed = score(responses.assign(emotion=responses["condition"]), judges=judge, model=model)

    def tried(queries, grid, folder):
        doses = (0.0, *SELECTION_ALPHAS)
        table = sweep(model, vectors, queries, alphas=doses, controls=(), grid=grid, out=folder, progress=progress)
        return choose(score(table, judges=judge, model=model), instructed)

    late = list(range(model.n_layers // 2, model.n_layers))
    grid = {"site": ["attn", "resid"], "layers": ["all", late], "part": ["whole", "specific"]}
    first = tried(queries.head(ROUND_ONE), grid, out / "settings")
    means = first.groupby(["site", "layers", "part"], sort=False)["score"].mean()
    site, layers, part = means.idxmax()
    setting = {"site": site, "layers": "all" if layers == "all" else late, "part": part}
    second = tried(queries, {key: [value] for key, value in setting.items()}, out / "doses")
    rounds = {"settings": first.to_dict("records"), "doses": second.to_dict("records")}
    _write_json(out / "choice.json", {"setting": setting, **rounds})
    return setting, dict(zip(second["emotion"], map(float, second["alpha"]), strict=True))


def _split(queries: pd.DataFrame, sizes: tuple[int, int, int]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Queries to extract from, to choose with and to report on; the first two share no situation."""
    lone = queries["situation"] == ""  # a user's queries: each its own situation
    queries = queries.assign(situation=queries["situation"].mask(lone, queries["query_id"]))
    train, heldout = (_spread(queries[queries["split"] == s]) for s in ("train", "heldout"))
    n_extract, n_select, n_report = sizes
    situations = train["situation"].iloc[:n_extract]
    extract = train.iloc[:n_extract]
    select = train[~train["situation"].isin(situations)].iloc[:n_select]
    if len(extract) < n_extract or len(select) < 1 or not len(heldout):
        raise EmolabError(
            f"{len(train)} training and {len(heldout)} held-out queries are too few for {sizes}; both splits are "
            "needed, and training situations left over for choosing the dose: use a larger set or smaller n_queries"
        )
    return extract, select, heldout.iloc[:n_report]


def _spread(queries: pd.DataFrame) -> pd.DataFrame:
    """First one query of every situation, then the second ones, and in turn over the emotions."""
    turn = queries.groupby("situation").cumcount()
    place = queries.assign(_t=turn).groupby(["emotion", "_t"]).cumcount()
    return queries.assign(_t=turn, _p=place).sort_values(["_t", "_p"], kind="stable").drop(columns=["_t", "_p"])


def _vectors(model: Model, responses: pd.DataFrame, out: Path, progress: bool) -> EmotionVectors:
    path = out / "vectors.safetensors"
    if path.exists():
        from emolab.activations import corpus_hash

        vectors = EmotionVectors.load(path)
        if (
            vectors.meta.get("corpus_hash") == corpus_hash(responses)
            and vectors.meta.get("fingerprint") == model.fingerprint
        ):
            return vectors
    means = response_means(model, responses, sites=SITES, progress=progress)
    return extract_vectors(model, responses, sites=SITES, means=means, out=out)


def _cell(scored: pd.DataFrame, emotion: str, alpha: float, control: str = "none") -> pd.DataFrame:
    return scored[(scored["emotion"] == emotion) & (scored["alpha"] == alpha) & (scored["control"] == control)]


def _share(texts: pd.DataFrame, column: str = "top") -> float:
    return round(float((texts[column] == texts["emotion"]).mean()), 4)


def _report(scored: pd.DataFrame, answers: pd.DataFrame, emotion: str, alpha: float) -> dict:
    steered, plain = _cell(scored, emotion, alpha), _cell(scored, emotion, 0.0)
    instructed = answers[answers["condition"] == emotion]
    hits = (steered["top"] == emotion).groupby(steered["query_id"]).mean().to_numpy(dtype=float)
    perplexities = [table["perplexity_instructed"].median() for table in (steered, instructed)]
    return {
        "best_alpha": alpha,
        "target_share": _share(steered),
        "target_interval": [round(x, 4) for x in interval(hits)],
        "unsteered_share": _share(plain),
        "random_share": _share(_cell(scored, emotion, alpha, "random")),
        "shuffled_share": _share(_cell(scored, emotion, alpha, "shuffled")),
        "adherence_ratio": _ratio(steered["adherence"].mean(), plain["adherence"].mean()),
        "perplexity_ratio": _ratio(*perplexities),
        "n": len(steered),
    }


def _intensity(
    model: Model, emotions: tuple[str, ...], queries: pd.DataFrame, judges: list, out: Path, progress: bool
) -> dict:
    """Mean probability of the emotion (last judge) under "a little", plain and "great" instructions."""
    words = {"a little": "a little", "plain": None, "great": "great"}
    asked = list(queries["query"])
    table = pd.DataFrame(
        [
            (emotion, label, prompt)
            for emotion in emotions
            for label, word in words.items()
            for prompt in render_prompts(model, asked, emotion, intensity=word)
        ],
        columns=["condition", "intensity", "prompt"],
    )
    settings = {"fingerprint": model.fingerprint, "prompts": digest(list(table["prompt"]))}
    path = out / "intensity.parquet"
    done = read_table(path, settings)
    if done is None:
        texts = generate(model, list(table["prompt"]), raw=True, progress=progress)
        done = write_table(table.assign(text=texts), path, settings)
    values = judges[-1](list(done["text"]))
    own = [values[i, judges[-1].labels.index(emotion)] for i, emotion in enumerate(done["condition"])]
    means = done.assign(p=own).groupby(["condition", "intensity"])["p"].mean()
    return {emotion: {label: round(float(means[emotion, label]), 4) for label in words} for emotion in emotions}


def _ratio(value: float, reference: float) -> float | None:
    """None where there is none, since JSON knows no NaN."""
    ratio = float(value) / float(reference) if reference else np.nan
    return round(ratio, 4) if np.isfinite(ratio) else None


@contextlib.contextmanager
def _stage(name: str, timings: dict[str, float], progress: bool) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 2)
    if progress:
        print(f"{name}: {timings[name]:.1f} s", flush=True)


def _write_json(path: Path, data: dict) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False))
