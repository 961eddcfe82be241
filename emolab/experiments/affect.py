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
from emolab.base.tables import about, noted


def circle(n: int = 8, first: str = "valence", second: str = "arousal") -> list[str]:
    """Directions around the circle of two axes, as mixtures: "valence=0.71,arousal=0.71" at 45 degrees.

    >>> circle(4)
    ['valence=1,arousal=0', 'valence=0,arousal=1', 'valence=-1,arousal=0', 'valence=0,arousal=-1']
    """
    angles = 2 * np.pi * np.arange(n) / n
    return [f"{first}={_short(np.cos(angle))},{second}={_short(np.sin(angle))}" for angle in angles]


def affect_shifts(scored: pd.DataFrame, measures: Sequence[str] = ("valence", "arousal", "adherence")) -> pd.DataFrame:
    """The mean of each measure by axis, control and dose, and its difference to unsteered answers to the same queries.

    >>> shifts = affect_shifts(scored)  # doctest: +SKIP
    >>> shifts.query("emotion == 'valence'")[["control", "alpha", "shift", "lo", "hi"]]  # doctest: +SKIP

    scored: a sweep's texts with these columns (`judges.affect_measures`, `emolab.score`). One row for each `emotion`
    (axis or direction), `control`, `alpha` and `measure`: `value`, `unsteered`, `shift`, and `lo`, `hi`, the 95 %
    interval of the shift over queries.
    """
    need_table(scored, ("query_id", "emotion", "control", "alpha", *measures), "emolab.sweep and affect_measures")
    plain = scored[scored["alpha"] == 0].groupby("query_id")[list(measures)].mean()
    steered = scored[scored["alpha"] != 0]
    clusters = clusters_of(scored)
    rows = []
    for (emotion, control, alpha), some in steered.groupby(["emotion", "control", "alpha"], sort=False):
        by_query = some.groupby("query_id")[list(measures)].mean()
        for measure in measures:
            shift = (by_query[measure] - plain[measure]).dropna()
            lo, hi = interval(shift, clusters=clusters[shift.index])
            rows.append(
                {
                    "emotion": emotion, "control": control, "alpha": alpha, "measure": measure,
                    "value": by_query[measure].mean(), "unsteered": plain[measure].mean(), "shift": shift.mean(),
                    "lo": lo, "hi": hi, "n": len(shift),
                }
            )  # fmt: skip
    told = about(scored)
    return noted(pd.DataFrame(rows), scored, n=told["n"], seed=told["seed"], params=told["params"])


def _short(x: float) -> str:
    return f"{round(x, 2) + 0.0:g}"
