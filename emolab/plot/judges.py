"""Figures of the judges themselves: do they agree, and do their probabilities mean what they say."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emolab.base.errors import need_table
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
