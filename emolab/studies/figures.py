"""The figures of a run folder, drawn from its files alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pandas as pd

from emolab.base.errors import EmolabError, FileError
from emolab.base.storage import read_json, user_path
from emolab.base.tables import span
from emolab.comparisons.claims import Claim
from emolab.plot.baselines import tradeoff
from emolab.plot.causal import ablation_curve, head_forest
from emolab.plot.claims import claim_additive, claim_linear, claim_monotone, claim_preservation
from emolab.plot.curves import probe_curve, reliability_curve
from emolab.plot.effects import effect_forest, wrong_way
from emolab.plot.geometry import cosine_by_layer, norms
from emolab.plot.heads import head_map
from emolab.plot.judges import judge_agreement
from emolab.plot.maps import cosine_grid, layer_map
from emolab.plot.points import response_map
from emolab.plot.save import save_figure
from emolab.plot.scores import dose_response, instruction_following

T = TypeVar("T")
_CLAIMS = {  # drawn by, what is shown
    "monotone": (claim_monotone, "Monotone gain: the target's logit over the dose"),
    "preservation": (claim_preservation, "Semantic preservation: how far texts and predictions drift with the dose"),
    "linear": (claim_linear, "Linear control: a line and curves fitted within three ranges of the dose"),
    "additive": (claim_additive, "Additivity: what two emotions at once do beyond the sum of either alone"),
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
    from emolab.experiments.dose_response import compare
    from emolab.experiments.dose_response import wrong_way as moved
    from emolab.judges.calibration import agreement
    from emolab.vectors.vectors import EmotionVectors

    out, drawn = user_path(out), []
    summary = read_summary(out)
    vectors = EmotionVectors.load(out / "vectors.safetensors")
    scored, answers = (_table(out / name) for name in ("scores.parquet", "instructed_scores.parquet"))
    steering, setting, name = summary["steering"], summary["setting"], summary["model"]
    best = {emotion: cell["best_alpha"] for emotion, cell in steering.items()}
    marks = {"model": vectors.meta, "seed": summary["seed"]}
    followed, hit = summary["instruction_following"], {e: cell["target_share"] for e, cell in steering.items()}
    random = max(cell["random_share"] for cell in steering.values())
    place = f"{setting['part']} vectors at {setting['site']}, layers {span(setting['layers'])}"

    def save(fig, figure: str, caption: str, alt: str) -> None:
        save_figure(fig, figure, caption=caption, alt=alt, directory=out / "figures")
        drawn.append(out / "figures" / f"{figure}.png")

    save(
        norms(vectors),
        "norms",
        f"Norm of the emotion vectors of {name} by layer, beside the norm of the residual stream.",
        f"One line an emotion: vector norms by layer, from layer 0 to {vectors.n_layers - 1}.",
    )
    save(
        cosine_by_layer(vectors),
        "cosine_by_layer",
        f"Cosine between the emotion vectors of {name} by layer, whole and without what all emotions share.",
        "One line a pair of emotions, for whole vectors and for their specific part.",
    )
    save(
        cosine_grid(vectors, site=setting["site"], part="specific"),
        "cosine_grid",
        f"Cosine between the specific parts of the emotion vectors of {name} at {setting['site']}, layer by layer.",
        "Heat maps of cosines between emotions, at layers spread over the model.",
    )
    save(
        layer_map(vectors, part="specific"),
        "layer_map",
        f"Cosine of each emotion's specific part with itself at other layers; {name}, residual stream.",
        "One heat map an emotion, layer by layer.",
    )
    for figure, drawing in _where(out).items():
        fig, caption, alt = drawing
        save(fig, figure, f"{caption}; {name}.", alt)
    save(
        instruction_following(answers, **marks),
        "instruction_following",
        f"What the judge reads in the answers of {name} to each instruction, held-out queries.",
        f"Share of answers with the wanted emotion on top: {_listed(followed)}.",
    )
    save(
        dose_response(scored, best=best, reference=answers, **marks),
        "dose_response",
        f"Dose-response of {name} on held-out queries: {place}. Doses were chosen on training queries.",
        f"Share with the target on top at the frozen dose: {_listed(hit)}; random directions: {random:.2f} at most.",
    )
    against = compare(scored)
    at = against[[best[e] == a for e, a in zip(against["emotion"], against["alpha"], strict=True)]]
    save(
        effect_forest(against, **marks),
        "effect_forest",
        f"Target probability of {name} steered, minus that of random directions of equal norm; {place}.",
        f"Differences at the frozen dose: {_listed(dict(zip(at['emotion'], at['difference'], strict=True)))}.",
    )
    save(
        wrong_way(moved(scored), **marks),
        "wrong_way",
        f"Share of queries whose target moved against the sign of the dose; {name}, {place}.",
        "One panel an emotion: the share by dose, beside a random direction.",
    )
    if len([c for c in answers.columns if c == "top" or c.endswith("_top")]) > 1:
        save(
            judge_agreement(agreement(answers), **marks),
            "judge_agreement",
            f"Agreement of the judges on answers of {name}, instructed and not: Cohen's kappa.",
            "A matrix of judges with kappa and its interval.",
        )
    for claim, (draw, what) in _CLAIMS.items():
        told = summary.get("claims", {}).get(claim)
        if told and told["verdict"] != "not tested":
            table = _table(out / "claims" / f"{claim}.parquet")
            found = Claim(claim, told["verdict"], told["condition"], told["evidence"], table)
            caption = f"{what}; {name}, {place}. Verdict: {told['verdict']}. {told['condition']}"
            save(draw(found, **marks), f"claim_{claim}", caption, f"{what}: {told['verdict']}.")
    if summary.get("baselines"):
        save(
            tradeoff(_table(out / "baselines.parquet"), **marks),
            "tradeoff",
            f"Emotion against damage to next-token predictions, for every method over its doses; {name}.",
            f"Curves of {len(summary['baselines'])} methods; the dose chosen for each is marked.",
        )
    return drawn


def _where(out: Path) -> dict[str, tuple]:
    """{figure: (Figure, caption, alt)} of geometry and heads, as far as the study measured them."""
    found = {}
    if all((out / "geometry" / f"{table}.parquet").exists() for table in ("points", "maps", "probe", "words")):
        tables = {path.stem: _table(path) for path in (out / "geometry").glob("*.parquet")}
        found["response_map"] = (
            response_map(tables["points"], tables["maps"]),
            "Answers as points, PCA above UMAP, at four layers",
            "Maps of answers, coloured by condition.",
        )
        found["probe"] = (
            probe_curve(tables["probe"], words=tables["words"]),
            "Accuracy of probes on held-out answers by layer, beside the words alone and chance",
            "Probe accuracy by layer beside the accuracy of a probe that sees the words alone.",
        )
        halves = {"whole": tables["split_half"], "specific": tables["split_half_specific"]}
        found["reliability"] = (
            reliability_curve(halves),
            "Cosine between vectors from two halves of the questions, by layer, beside shuffled labels",
            "Split-half cosine by layer for whole vectors and their specific parts.",
        )
    if (out / "heads.parquet").exists() and (out / "ablation.parquet").exists():
        effects, curve = _table(out / "heads.parquet"), _table(out / "ablation.parquet")
        found["head_map"] = (
            head_map(effects, "attribution"),
            "Attribution of every head: the first-order estimate by which heads are screened",
            "Layers by heads, one map an emotion.",
        )
        found["head_effects"] = (
            head_forest(effects, top=6),
            "Effect of patching single heads, the largest of those screened, beside random directions",
            "The largest effects of single heads with their intervals.",
        )
        found["ablation"] = (
            ablation_curve(curve),
            "Emotion kept against the number of heads ablated: ranked heads beside random ones",
            "Emotion kept as heads are ablated, for ranked and random heads.",
        )
    return found


def read_summary(out: str | Path) -> dict:
    """`summary.json` of a run; EmolabError where there is none."""
    path, advice = user_path(out) / "summary.json", f"run `emolab study --out {out}` first"
    if not path.is_file():
        raise FileError(f"{path} is missing or damaged; {advice}")
    found = read_json(path, advice)
    if not isinstance(found, dict):
        raise FileError(f"{path} holds no summary, but a {type(found).__name__}; {advice}")
    return found


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow raises a zoo of its own
        raise FileError(f"{path} is missing or damaged; run `emolab study --out {path.parent}` again") from error


def _listed(shares: dict[str, float]) -> str:
    return ", ".join(f"{emotion} {share:.2f}" for emotion, share in shares.items())
