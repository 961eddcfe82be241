"""Figures of the judges themselves: do they agree, and do their probabilities mean what they say."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emolab.base.errors import need_table
from emolab.base.stats import interval
from emolab.plot.style import GREY, INK, finish, new_figure, theme

_BINS = 10
_STAGES = {"before": (GREY, "s", "as it is"), "after": (INK, "o", "calibrated, held-out folds")}


def judge_agreement(table: pd.DataFrame, *, model=None, seed: int | None = None):
    """How often every two judges name the same emotion, beyond chance: Cohen's kappa with its 95 % interval.

    >>> fig = judge_agreement(judges.agreement(scored))

    table: from `agreement`. Colours run from 0 (as by chance, or worse) to 1 (the same).
    """
    need_table(table, ("judge_a", "judge_b", "kappa", "lo", "hi", "n"), "calibration.agreement")
    names = list(dict.fromkeys([*table["judge_a"], *table["judge_b"]]))
    rows, columns = names[1:], names[:-1]
    matrix = np.full((len(rows), len(columns)), np.nan)
    with theme():
        width = min(1.0, max(0.5, 0.28 + 0.17 * len(columns)))
        fig, axes = new_figure(1, 1, width=width, height=1.5 + 0.72 * len(rows))
        ax = axes[0, 0]
        for cell in table.itertuples():
            matrix[rows.index(cell.judge_b), columns.index(cell.judge_a)] = cell.kappa
        image = ax.imshow(matrix, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for a, b, kappa, lo, hi in zip(*(table[c] for c in ("judge_a", "judge_b", "kappa", "lo", "hi")), strict=True):
            row, column = rows.index(b), columns.index(a)
            color = "white" if kappa <= 0.6 else INK
            text = f"{kappa:.2f}\n[{lo:.2f}, {hi:.2f}]" if np.isfinite(kappa) else "no kappa"
            ax.text(column, row, text, ha="center", va="center", color=color, fontsize="small")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        spoken = [name.replace("_", " ").replace("calibrated ", "calibrated\n") for name in names]
        ax.set_xticks(range(len(columns)), spoken[:-1])
        ax.set_yticks(range(len(rows)), spoken[1:])
        ax.tick_params(length=0)
        ax.set_title("Agreement of judges: kappa [95 % interval]")
        fig.colorbar(image, ax=ax, label="Cohen's kappa", ticks=[0, 0.5, 1])
        n = f"{table['n'].iloc[0]} texts"
        return finish(fig, table.copy(), function="judge_agreement", model=model, n=n, seed=seed, params={})


def calibration_curve(heldout: pd.DataFrame, *, model=None, seed: int | None = None):
    """Share of texts that a judge reads rightly, by how sure it is, before and after calibration.

    >>> fig = calibration_curve(emolab.judges.calibration.calibrated(judge, texts, labels).heldout)

    heldout: of a judge from `calibrated`. On the diagonal a probability of .7 is right in 70 % of the texts. Ten bins
    of equal width; bars are 95 % intervals (Wilson), numbers above them texts in the bin.
    """
    need_table(heldout, ("stage", "confidence", "correct"), "the field heldout of a judge from calibrated")
    place = np.minimum((heldout["confidence"] * _BINS).astype(int), _BINS - 1)
    rows = []
    for (stage, b), cell in heldout.groupby(["stage", place]):
        low, high = interval(cell["correct"].to_numpy(dtype=float))
        rows.append((stage, b, cell["confidence"].mean(), cell["correct"].mean(), low, high, len(cell)))
    data = pd.DataFrame(rows, columns=["stage", "bin", "confidence", "share", "low", "high", "n"])
    stages = [s for s in _STAGES if s in set(data["stage"])]
    with theme():
        fig, axes = new_figure(1, len(stages), width=0.5 * len(stages), height=4.2, grid={"sharey": True})
        for ax, stage in zip(axes[0], stages, strict=True):
            color, marker, title = _STAGES[stage]
            own = data[data["stage"] == stage]
            ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
            ax.vlines(own["confidence"], own["low"], own["high"], color=color)
            ax.plot(own["confidence"], own["share"], marker=marker, color=color, linestyle="none")
            for cell in own.itertuples():
                ax.annotate(
                    str(cell.n), (cell.confidence, cell.high), xytext=(0, 6), textcoords="offset points", ha="center",
                    fontsize="small", color="#6B6B6B",
                )  # fmt: skip
            ece = (own["n"] * (own["share"] - own["confidence"]).abs()).sum() / own["n"].sum()
            ax.set_title(f"{title.capitalize()} (calibration error {ece:.3f})")
            ax.set(xlim=(0, 1.04), ylim=(-0.03, 1.12), xlabel="probability of the judge's top label")
            ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes[0, 0].set_ylabel("share of texts that have it")
        n = f"{len(heldout) // max(1, len(stages))} texts"
        return finish(fig, data, function="calibration_curve", model=model, n=n, seed=seed, params={"bins": _BINS})
