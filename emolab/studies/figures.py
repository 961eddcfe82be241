"""The figures of a run folder, drawn from its files alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pandas as pd

from emolab import plot, say
from emolab.base.errors import EmolabError, FileError
from emolab.base.storage import read_json, user_path
from emolab.base.tables import span
from emolab.comparisons.claims import Claim

T = TypeVar("T")
_CLAIMS = {  # drawn by, what is shown
    "monotone": (plot.claim_monotone, "Monotone gain: the target's logit over the dose"),
    "preservation": (
        plot.claim_preservation,
        "Semantic preservation: how far texts and predictions drift with the dose",
    ),
    "linear": (plot.claim_linear, "Linear control: a line fitted within three ranges of the dose"),
    "additive": (plot.claim_additive, "Additivity: what two emotions at once do beyond the sum of either alone"),
}


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
    name, setting = summary["model"], summary["setting"]
    place = f"{name}, {setting['part']} vectors at {setting['site']}, layers {span(setting['layers'])}"
    drawn = []
    for figure, (fig, caption) in {
        **_vector_figures(out, name, setting["site"]),
        **_geometry_figures(out, name),
        **_head_figures(out, name),
        **_steering_figures(out, summary, place),
        **_comparison_figures(out, summary, place),
    }.items():
        plot.save_figure(fig, figure, caption=caption, alt=fig.emolab_info["title"], directory=out / "figures")
        drawn.append(out / "figures" / f"{figure}.png")
    return drawn


def _vector_figures(out: Path, name: str, site: str) -> dict[str, tuple]:
    """{figure: (Figure, caption)}, as in the functions below."""
    from emolab.vectors.vectors import EmotionVectors

    vectors = EmotionVectors.load(out / "vectors.safetensors")
    figures = {
        "norms": (
            plot.norms(vectors),
            f"{say.norms(vectors)} Drawn: norms by layer, beside that of the residual stream; {name}.",
        )
    }
    if len(vectors.emotions) > 1:  # a single emotion has no other to be compared with
        figures |= {
            "cosine_by_layer": (
                plot.cosine_by_layer(vectors),
                f"Cosine between the emotion vectors of {name} by layer, whole and without what all emotions share.",
            ),
            "cosine_grid": (
                plot.cosine_grid(vectors, site=site, part="specific"),
                f"{say.cosine_map(vectors, [0, -1], site=site)} Drawn: specific parts at {site}; {name}.",
            ),
            "layer_map": (
                plot.layer_map(vectors, part="specific"),
                f"{say.layer_map(vectors)} Drawn: each emotion's specific part with itself at other layers; {name}.",
            ),
        }
    return figures


def _geometry_figures(out: Path, name: str) -> dict[str, tuple]:
    """Of what the study measured of the answers; none where it did not."""
    if not all(
        (out / "geometry" / f"{table}.parquet").exists() for table in ("points", "maps", "confounds", "probe", "words")
    ):
        return {}
    tables = {path.stem: run_table(path) for path in (out / "geometry").glob("*.parquet")}
    halves = {"whole": tables["split_half"], "specific": tables["split_half_specific"]}
    return {
        "response_map": (
            plot.response_map(tables["points"], tables["maps"]),
            f"{say.response_map(tables['maps'])} Drawn: answers as points, PCA above UMAP; {name}.",
        ),
        "confounds": (
            plot.confound_curve(tables["confounds"]),
            f"{say.confound_curve(tables['confounds'])} Drawn: shares by layer, beside shuffled rows; {name}.",
        ),
        "probe": (
            plot.probe_curve(tables["probe"], words=tables["words"]),
            f"{say.probe_curve(tables['probe'], words=tables['words'])} Drawn: accuracy by layer; {name}.",
        ),
        "reliability": (
            plot.reliability_curve(halves),
            f"{say.reliability_curve(halves)} Drawn: cosine by layer, beside shuffled labels; {name}.",
        ),
    }


def _head_figures(out: Path, name: str) -> dict[str, tuple]:
    if not all((out / f"{table}.parquet").exists() for table in ("heads", "ablation")):
        return {}
    effects, curve = run_table(out / "heads.parquet"), run_table(out / "ablation.parquet")
    return {
        "head_map": (
            plot.head_map(effects, "attribution"),
            f"Attribution of every head: the first-order estimate by which heads are screened; {name}.",
        ),
        "head_effects": (
            plot.head_forest(effects, top=6),
            f"{say.head_forest(effects)} Drawn: the largest effects, beside random directions; {name}.",
        ),
        "ablation": (
            plot.ablation_curve(curve),
            f"{say.ablation_curve(curve)} Drawn: by the number of heads ablated; {name}.",
        ),
    }


def _steering_figures(out: Path, summary: dict, place: str) -> dict[str, tuple]:
    from emolab.experiments.dose_response import compare
    from emolab.judges.calibration import agreement

    scored, answers = (run_table(out / name) for name in ("scores.parquet", "instructed_scores.parquet"))
    best = {emotion: cell["best_alpha"] for emotion, cell in summary["steering"].items()}
    name, effects = summary["model"], compare(scored)
    figures = {
        "instruction_following": (
            plot.instruction_following(answers),
            f"{say.instruction_following(answers)} Drawn: what the judge reads after each instruction; {name}.",
        ),
        "dose_response": (
            plot.dose_response(scored, best=best, reference=answers),
            f"{say.dose_response(scored, reference=answers)} Held-out queries, {place}; doses chosen on others.",
        ),
        "effect_forest": (
            plot.effect_forest(effects),
            f"{say.effect_forest(effects)} Drawn: target probability, less that of random directions; {place}.",
        ),
    }
    if len([c for c in answers.columns if c == "top" or c.endswith("_top")]) > 1:
        agreed = agreement(answers)
        caption = f"{say.judge_agreement(agreed)} Answers of {name}, instructed and not."
        figures["judge_agreement"] = plot.judge_agreement(agreed), caption
    return figures


def _comparison_figures(out: Path, summary: dict, place: str) -> dict[str, tuple]:
    figures = {}
    for name, (draw, what) in _CLAIMS.items():
        told = summary.get("claims", {}).get(name)
        if told and told["verdict"] != "not tested":
            table = run_table(out / "claims" / f"{name}.parquet")
            claim = Claim(name, told["verdict"], told["condition"], told["evidence"], table)
            caption = f"{what}; {place}. Verdict: {told['verdict']}. {told['condition']}"
            figures[f"claim_{name}"] = draw(claim), caption
    if summary.get("baselines"):
        methods = run_table(out / "baselines.parquet")
        caption = (
            f"{say.tradeoff(methods)} Drawn: emotion against damage to next-token predictions; {summary['model']}."
        )
        figures["tradeoff"] = plot.tradeoff(methods), caption
    return figures


def read_summary(out: str | Path) -> dict:
    """`summary.json` of a run; EmolabError where there is none."""
    path, advice = user_path(out) / "summary.json", f"run `emolab study --out {out}` first"
    if not path.is_file():
        raise FileError(f"{path} is missing or damaged; {advice}")
    found = read_json(path, advice)
    if not isinstance(found, dict):
        raise FileError(f"{path} holds no summary, but a {type(found).__name__}; {advice}")
    return found


def run_table(path: Path) -> pd.DataFrame:
    """A table of a run; FileError where it is missing or damaged."""
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow raises a zoo of its own
        raise FileError(f"{path} is missing or damaged; run `emolab study --out {path.parent}` again") from error
