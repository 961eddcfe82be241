"""The figures of a run folder, drawn from its files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from ..errors import EmolabError
from .geometry import cosine_by_layer, norms
from .save import save_figure
from .scores import dose_response, instruction_following


def run_figures(out: str | Path) -> list[Path]:
    """Draw the figures of a study again into `out/figures`; returns the PNG paths.

    >>> run_figures("runs/mini")                                   # doctest: +SKIP
    """
    from ..vectors import EmotionVectors

    out = Path(out)
    summary = read_summary(out)
    vectors = EmotionVectors.load(out / "vectors.safetensors")
    scored, answers = (_table(out / name) for name in ("scores.parquet", "instructed_scores.parquet"))
    steering, setting, name = summary["steering"], summary["setting"], summary["model"]
    best = {emotion: cell["best_alpha"] for emotion, cell in steering.items()}
    reference = answers.groupby("condition")["perplexity_instructed"].median()
    marks = {"model": vectors.meta, "seed": summary["seed"]}
    followed, hit = summary["instruction_following"], {e: cell["target_share"] for e, cell in steering.items()}
    random = max(cell["random_share"] for cell in steering.values())

    def save(fig, figure: str, caption: str, alt: str) -> Path:
        save_figure(fig, figure, caption=caption, alt=alt, directory=out / "figures")
        return out / "figures" / f"{figure}.png"

    return [
        save(
            norms(vectors),
            "norms",
            f"Norm of the emotion vectors of {name} by layer, beside the norm of the residual stream.",
            f"One line an emotion: vector norms by layer, from layer 0 to {vectors.n_layers - 1}.",
        ),
        save(
            cosine_by_layer(vectors),
            "cosine_by_layer",
            f"Cosine between the emotion vectors of {name} by layer, whole and without what all emotions share.",
            "One line a pair of emotions; whole vectors are alike, specific ones are not.",
        ),
        save(
            instruction_following(answers, **marks),
            "instruction_following",
            f"What the judge reads in the answers of {name} to each instruction, held-out queries.",
            f"Share of answers with the wanted emotion on top: {_listed(followed)}.",
        ),
        save(
            dose_response(scored, best=best, reference={e: float(reference[e]) for e in best}, **marks),
            "dose_response",
            f"Dose-response of {name} on held-out queries: {setting['part']} vectors at {setting['site']}, layers "
            f"{setting['layers']}. Doses were chosen on training queries.",
            f"Share with the target on top at the frozen dose: {_listed(hit)}; "
            f"random directions: {random:.2f} at most.",
        ),
    ]


def read_summary(out: str | Path) -> dict:
    """`summary.json` of a run; EmolabError where there is none."""
    path = Path(out) / "summary.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EmolabError(f"{path} is missing or damaged; run `emolab study --out {out}` first") from error


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow raises a zoo of its own
        raise EmolabError(f"{path} is missing or damaged; run `emolab study --out {path.parent}` again") from error


def _listed(shares: dict[str, float]) -> str:
    return ", ".join(f"{emotion} {share:.2f}" for emotion, share in shares.items())
