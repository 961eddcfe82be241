"""The figures of a run folder, drawn from its files alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TypeVar

import pandas as pd
from matplotlib.figure import Figure

from emolab import plot, say
from emolab.base.errors import EmolabError, FileError
from emolab.base.storage import read_json, user_path
from emolab.base.tables import span
from emolab.comparisons.claims import Claim
from emolab.experiments.dose_response import compare
from emolab.judges.calibration import agreement
from emolab.vectors.vectors import EmotionVectors

T = TypeVar("T")
NOT_TESTED = "not tested"  # in place of a claim's verdict
CLAIMS = {  # drawn by, what is shown
    "monotone": (plot.claim_monotone, "Monotone gain: the target's logit over the dose"),
    "preservation": (
        plot.claim_preservation,
        "Semantic preservation: how far texts and predictions drift with the dose",
    ),
    "linear": (plot.claim_linear, "Linear control: a line fitted within three ranges of the dose"),
    "additive": (plot.claim_additive, "Additivity: what two emotions at once do beyond the sum of either alone"),
}
# What the caption of a figure says behind the sentence of its results. place: the model with the setting of the study.
_CAPTIONS = {
    "norms": "Drawn: norms by layer, beside that of the residual stream; {model}.",
    "cosine_by_layer": (
        "Cosine between the emotion vectors of {model} by layer, whole and without what all emotions share."
    ),
    "cosine_grid": "Drawn: specific parts at {site}; {model}.",
    "layer_map": "Drawn: each emotion's specific part with itself at other layers; {model}.",
    "response_map": "Drawn: answers as points, PCA above UMAP; {model}.",
    "confounds": "Drawn: shares by layer, beside shuffled rows; {model}.",
    "probe": "Drawn: accuracy by layer; {model}.",
    "reliability": "Drawn: cosine by layer, beside shuffled labels; {model}.",
    "head_map": "Attribution of every head: the first-order estimate by which heads are screened; {model}.",
    "head_effects": "Drawn: the largest effects, beside random directions; {model}.",
    "ablation": "Drawn: by the number of heads ablated; {model}.",
    "instruction_following": "Drawn: what the judge reads after each instruction; {model}.",
    "dose_response": "Held-out queries, {place}; doses chosen on others.",
    "effect_forest": "Drawn: target probability, less that of random directions; {place}.",
    "judge_agreement": "Answers of {model}, instructed and not.",
    "tradeoff": "Drawn: emotion against damage to next-token predictions; {model}.",
}
Drawn = Iterator[tuple[str, Figure, str]]  # name, figure, what its results say


def of_run(function: Callable[[str | Path], T]) -> Callable[[str | Path], T]:
    """The function of a run's folder; what its files lack, or hold in another form, ends in one FileError."""

    @functools.wraps(function)
    def run(out: str | Path) -> T:
        try:
            return function(out)
        except (EmolabError, MemoryError):
            raise
        except Exception as error:  # whatever a damaged file makes it stumble over
            what = (str(error).splitlines() or [""])[0][:120]
            raise FileError(
                f"the files in {out} are not those of a finished run ({what}); run `emolab study --out {out}` again"
            ) from error

    return run


@of_run
def run_figures(out: str | Path) -> list[Path]:
    """Draw the figures of a study again into `out/figures`; returns the PNG paths.

    >>> run_figures("runs/smollm2")                                   # doctest: +SKIP
    """
    out = user_path(out)
    summary = read_summary(out)
    model, setting = summary["model"], summary["setting"]
    place = f"{model}, {setting['part']} vectors at {setting['site']}, layers {span(setting['layers'])}"
    paths = []
    for name, fig, sentence in chain(
        _vector_figures(out, setting["site"]),
        _geometry_figures(out, summary),
        _head_figures(out, summary),
        _steering_figures(out, summary),
        _comparison_figures(out, summary, place),
    ):
        caption = f"{sentence} {_CAPTIONS.get(name, '').format(model=model, site=setting['site'], place=place)}".strip()
        plot.save_figure(fig, name, caption=caption, directory=out / "figures")
        paths.append(out / "figures" / f"{name}.png")
    return paths


def _vector_figures(out: Path, site: str) -> Drawn:
    vectors = EmotionVectors.load(out / "vectors.safetensors")
    yield "norms", plot.norms(vectors), say.norms(vectors)
    if len(vectors.emotions) > 1:  # a single emotion has no other to be compared with
        yield "cosine_by_layer", plot.cosine_by_layer(vectors), ""
        cosines = say.cosine_map(vectors, [0, -1], site=site)
        yield "cosine_grid", plot.cosine_grid(vectors, site=site, part="specific"), cosines
        yield "layer_map", plot.layer_map(vectors, part="specific"), say.layer_map(vectors)


def _geometry_figures(out: Path, summary: dict) -> Drawn:
    if "split_half_by_layer" not in summary.get("geometry", {}):  # it could not be measured
        return
    points, maps, confounds, probe, words, whole, specific = (
        run_table(out / "geometry" / f"{name}.parquet")
        for name in ("points", "maps", "confounds", "probe", "words", "split_half", "split_half_specific")
    )
    halves = {"whole": whole, "specific": specific}
    yield "response_map", plot.response_map(points, maps), say.response_map(maps)
    yield "confounds", plot.confound_curve(confounds), say.confound_curve(confounds)
    yield "probe", plot.probe_curve(probe, words=words), say.probe_curve(probe, words=words)
    yield "reliability", plot.reliability_curve(halves), say.reliability_curve(halves)


def _head_figures(out: Path, summary: dict) -> Drawn:
    if "sentence" not in summary.get("heads", {}):  # they could not be measured
        return
    effects, curve = run_table(out / "heads.parquet"), run_table(out / "ablation.parquet")
    yield "head_map", plot.head_map(effects, "attribution"), ""
    yield "head_effects", plot.head_forest(effects, top=6), say.head_forest(effects)
    yield "ablation", plot.ablation_curve(curve), say.ablation_curve(curve)


def _steering_figures(out: Path, summary: dict) -> Drawn:
    scored, answers = (run_table(out / name) for name in ("scores.parquet", "instructed_scores.parquet"))
    best = {emotion: cell["best_alpha"] for emotion, cell in summary["steering"].items()}
    effects = compare(scored)
    yield "instruction_following", plot.instruction_following(answers), say.instruction_following(answers)
    doses = plot.dose_response(scored, best=best, reference=answers)
    yield "dose_response", doses, say.dose_response(scored, reference=answers)
    yield "effect_forest", plot.effect_forest(effects), say.effect_forest(effects)
    if len([c for c in answers.columns if c == "top" or c.endswith("_top")]) > 1:
        agreed = agreement(answers)
        yield "judge_agreement", plot.judge_agreement(agreed), say.judge_agreement(agreed)


def _comparison_figures(out: Path, summary: dict, place: str) -> Drawn:
    for name, told in summary.get("claims", {}).items():
        if told["verdict"] != NOT_TESTED:
            draw, what = CLAIMS[name]
            table = run_table(out / "claims" / f"{name}.parquet")
            claim = Claim(name, told["verdict"], told["condition"], told["evidence"], table)
            yield f"claim_{name}", draw(claim), f"{what}; {place}. Verdict: {claim.verdict}. {claim.condition}"
    if summary.get("baselines"):
        methods = run_table(out / "baselines.parquet")
        yield "tradeoff", plot.tradeoff(methods), say.tradeoff(methods)


def read_summary(out: str | Path) -> dict:
    """`summary.json` of a run; EmolabError where there is none."""
    path, advice = user_path(out) / "summary.json", f"run `emolab study --out {out}` first"
    if not path.is_file():
        raise FileError(f"{path} is missing or damaged; {advice}")
    summary = read_json(path, advice)
    if not isinstance(summary, dict):
        raise FileError(f"{path} holds no summary, but a {type(summary).__name__}; {advice}")
    return summary


def run_table(path: Path) -> pd.DataFrame:
    """A table of a run; FileError where it is missing or damaged."""
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow raises a zoo of its own
        raise FileError(f"{path} is missing or damaged; run `emolab study --out {path.parent}` again") from error
