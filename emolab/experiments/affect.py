"""What steering along an affect axis does to texts: by dose and direction, beside random directions of equal norm.

>>> axes = emolab.geometry.affect_axes(vectors)                                          # doctest: +SKIP
>>> swept = emolab.sweep(model, emolab.at(axes, setting), queries, alphas=(-1, 0, 1))  # doctest: +SKIP
>>> scored = emolab.score(swept)  # doctest: +SKIP
>>> measured = emolab.judges.affect_measures(scored["text"]).set_index(scored.index)            # doctest: +SKIP
>>> affect_shifts(scored.assign(**measured))                                                    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from emolab.base.errors import need_table
from emolab.base.stats import clusters_of, interval
from emolab.base.tables import noted
from emolab.experiments.dose_response import dose_curves


def circle(n: int = 8, first: str = "valence", second: str = "arousal") -> list[dict[str, float]]:
    """Directions of equal length around the circle of two axes, as mixtures for `emolab.at`.

    >>> circle(4)
    [{'valence': 1.0}, {'arousal': 1.0}, {'valence': -1.0}, {'arousal': -1.0}]
    """
    turns = 2 * np.pi * np.arange(n) / n
    weights = np.round(np.stack([np.cos(turns), np.sin(turns)], axis=1), 4).tolist()
    return [{axis: w for axis, w in zip((first, second), pair, strict=True) if w} for pair in weights]


def affect_shifts(scored: pd.DataFrame, measures: Sequence[str] = ("valence", "arousal", "adherence")) -> pd.DataFrame:
    """The mean of each measure by axis, control and dose, and its difference to unsteered answers to the same queries.

    >>> shifts = affect_shifts(scored)  # doctest: +SKIP
    >>> shifts.query("emotion == 'valence'")[["control", "alpha", "shift", "lo", "hi"]]  # doctest: +SKIP

    scored: a sweep's texts with these columns (`judges.affect_measures`, `emolab.score`). One row for each `emotion`
    (axis or direction), `control`, `alpha` and `measure`: `value`, `unsteered`, `shift`, and `lo`, `hi`, the 95 %
    interval of the shift over queries.
    """
    need_table(scored, ("query_id", "emotion", "control", "alpha", *measures), "emolab.sweep and affect_measures")
    clusters = clusters_of(scored)
    curves = {measure: dose_curves(scored.assign(value=scored[measure])) for measure in measures}
    cells = scored.loc[scored["alpha"] != 0, ["emotion", "control", "alpha"]].drop_duplicates()
    rows = []
    for emotion, control, alpha in cells.itertuples(index=False):
        for measure, by_direction in curves.items():
            curve = by_direction[emotion, control]
            shift = curve[alpha] - curve[0.0]
            lo, hi = interval(shift, clusters=clusters[shift.index])
            rows.append(
                {
                    "emotion": emotion, "control": control, "alpha": alpha, "measure": measure,
                    "value": curve[alpha].mean(), "unsteered": curve[0.0].mean(), "shift": shift.mean(),
                    "lo": lo, "hi": hi, "n": len(shift),
                }
            )  # fmt: skip
    return noted(pd.DataFrame(rows), scored)
