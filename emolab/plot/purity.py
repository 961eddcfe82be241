"""Figures of the parts of a vector steered at equal norm: which emotion is read, and how purely."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emolab.base.errors import need_table
from emolab.base.labels import order
from emolab.plot.maps import about, finish_about
from emolab.plot.style import GREY, INK, name_ticks, new_figure, text_on, theme

_PARTS = {
    "unsteered": "unsteered",
    "whole": "whole vector",
    "specific": "specific part",
    "shared": "shared",
    "random": "random direction",
}
_MEASURES = {
    "target": "Read as the target",
    "leak": "Read as another emotion",
    "emotional": "Read as any emotion",
}


def confusion_map(table: pd.DataFrame, *, model=None, seed: int | None = None):
    """Share of texts by emotion steered to and emotion read, one heat map a part, all at equal norm.

    >>> fig = confusion_map(experiments.confusion(scored))

    table: from `purity.confusion`. Unsteered texts are left out: they are the same for all emotions. Above each map:
    the share of texts read as the target, and as another emotion.
    """
    need_table(table, ("part", "emotion", "judged", "share"), "purity.confusion")
    parts = [p for p in _PARTS if p in set(table["part"]) and p != "unsteered"]
    emotions, judged = order(table["emotion"]), order(table["judged"])
    with theme():
        columns = min(2, len(parts))
        rows = -(-len(parts) // columns)
        fig, axes = new_figure(rows, columns, width=1.0, height=0.8 + 3.4 * rows)
        flat = axes.ravel()
        for ax in flat[len(parts) :]:
            ax.set_visible(False)
        for ax, part in zip(flat, parts, strict=False):
            cell = table[table["part"] == part].pivot(index="emotion", columns="judged", values="share")
            matrix = cell.reindex(index=emotions, columns=judged).to_numpy()
            ax.imshow(matrix, vmin=0, vmax=1, cmap="cividis", aspect="auto")
            ax.grid(False)
            ax.spines[:].set_visible(False)
            name_ticks(ax, emotions, judged, rotation=30)
            text_on(ax, matrix, dark=(0.6, 1.0), fmt="{:.2f}")
            hit = [matrix[i, judged.index(e)] for i, e in enumerate(emotions) if e in judged]
            other = [
                matrix[i, j]
                for i, e in enumerate(emotions)
                for j, label in enumerate(judged)
                if label not in (e, "neutral")
            ]
            leak = np.sum(other) / len(emotions)
            ax.set_title(f"{_PARTS[part].capitalize()}: target {np.mean(hit):.2f}, other {leak:.2f}")
        for ax in axes[:, 0]:
            ax.set_ylabel("steered to")
        for ax in axes[-1]:
            ax.set_xlabel("read by the judge")
        image = flat[0].images[0]
        fig.colorbar(image, ax=list(flat[: len(parts)]), shrink=0.6, label="share of texts", ticks=[0, 0.5, 1])
        return finish_about(fig, table.copy(), table, "confusion_map", model=model, seed=seed)


def purity_dots(table: pd.DataFrame, *, model=None, seed: int | None = None):
    """How each part steers at equal norm, over all emotions: target, leak, emotional at all, with 95 % intervals.

    >>> fig = purity_dots(experiments.purity(scored))

    table: from `purity.purity`; shares of texts. Beside each value stands the difference from the whole vector, with
    its interval over the same queries.
    """
    columns = ("part", "emotion", "measure", "value", "lo", "hi", "minus_whole", "minus_whole_lo", "minus_whole_hi")
    need_table(table, columns, "purity.purity")
    own = table[(table["emotion"] == "all") & table["measure"].isin(_MEASURES)]
    parts = [p for p in _PARTS if p in set(own["part"])]
    with theme():
        fig, axes = new_figure(1, 3, width=1.0, height=1.3 + 0.42 * len(parts), grid={"sharey": True})
        for ax, (measure, title) in zip(axes[0], _MEASURES.items(), strict=True):
            for row, part in enumerate(parts):
                cell = own[(own["part"] == part) & (own["measure"] == measure)].iloc[0]
                color = INK if part in ("whole", "specific", "shared") else GREY
                ax.plot([cell.lo, cell.hi], [row, row], color=color, solid_capstyle="butt")
                ax.plot(cell.value, row, "o", color=color)
                if part != "whole":
                    text = f"{cell.minus_whole:+.2f} [{cell.minus_whole_lo:+.2f}, {cell.minus_whole_hi:+.2f}]"
                else:
                    text = "difference from whole"
                ax.text(1.04, row, text, transform=ax.get_yaxis_transform(), va="center", fontsize="small", color=GREY)
            ax.set(xlim=(-0.02, 1.02), title=title, xlabel="share of texts")
        axes[0, 0].set_yticks(range(len(parts)), [_PARTS[p] for p in parts])
        axes[0, 0].set_ylim(len(parts) - 0.5, -0.5)
        params = about(table)["params"]
        site, alpha = params.get("site"), params.get("alpha")
        dose = set(alpha.values()) if isinstance(alpha, dict) else set()
        if site:
            said = f"dose {dose.pop():g}" if len(dose) == 1 else "a dose for each emotion"
            fig.suptitle(f"Steering at {site}, {said}, equal norm", fontweight="bold")
        return finish_about(fig, own.copy(), table, "purity_dots", model=model, seed=seed)
