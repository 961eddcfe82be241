"""What two models side by side say: whether their maps agree beyond chance, and whether steering does as much."""

from __future__ import annotations

from typing import Any

import pandas as pd

from emolab.base.labels import order
from emolab.base.stats import LEVEL
from emolab.experiments.across import ALL, BEYOND, breaking_dose
from emolab.say.sentences import Sentences, Unmeasured, bounded, listed, measured, number

_NAMES = {"rsa": "RSA", "cka": "CKA of the answers", "cosine": "cosine of the vectors"}


@measured
def two_models(maps: pd.DataFrame, doses: pd.DataFrame) -> Sentences:
    """Likeness of two models' maps beside its null and ceiling, and the difference of their texts at the breaking dose.

    >>> emolab.say.two_models(geometry.map_agreement(vectors, tuned), experiments.model_doses(scored))  # doctest: +SKIP

    Brackets after a likeness hold the middle 95 % of split halves; after a share the 95 % interval over questions.
    """
    first, second, difference = doses["model"].unique()
    means = maps[maps["layer"].isna()].dropna(subset=["value"]).set_index("measure").rename(index=_NAMES)
    if means.empty:
        raise Unmeasured
    alike = listed(means.index[means["p"] < LEVEL], nothing="")
    verdict = f"are alike beyond permuted labels by {alike}" if alike else "are not alike beyond permuted labels"
    values = [
        f"{name} {number(row['value'])} (permuted up to {number(row['null_hi'])}, p = {row['p']:.3f})"
        for name, row in means.iterrows()
    ]
    halves = [
        f"{name} {number(row['halves'], row['halves_lo'], row['halves_hi'])} against "
        f"{number(row['ceiling'], row['ceiling_lo'], row['ceiling_hi'])}"
        for name, row in means.dropna(subset=["halves"]).iterrows()
    ]
    return Sentences(
        f"The maps of emotions of {first} and {second} {verdict}: {'; '.join(values)}, means over layers.",
        "Between halves of the questions, one model with the other against each with itself (middle 95 % of splits): "
        f"{'; '.join(halves)}."
        if halves
        else "",
        *_steered(doses, first, second, difference),
    )


def _steered(doses: pd.DataFrame, first: str, second: str, difference: str) -> list[str]:
    """The mean over emotions at the breaking dose, then which emotions differ there, and before any steering."""
    dose = breaking_dose(doses)
    cells: Any = doses.set_index(["alpha", "control", "model", "emotion"])
    drawn = [key for key in ((dose, "random", model, ALL) for model in (first, second)) if key in cells.index]
    random = [bounded(cells.loc[key]) for key in drawn]
    shares = [bounded(cells.loc[dose, "none", model, ALL]) for model in (first, second)]
    beside = f" (random directions {listed(random)})" if random else ""
    said = [
        f"At dose {dose:g} (1 breaks the text) steering brings {shares[0]} of the texts of {first} and {shares[1]} of "
        f"those of {second} to the target{beside}; {_difference(cells.loc[dose, 'none', difference, ALL])}."
    ]
    if (dose, BEYOND, difference, ALL) in cells.index:
        gains = [bounded(cells.loc[dose, BEYOND, model, ALL], signed=True) for model in (first, second)]
        said.append(
            f"Beyond its random direction that is {gains[0]} for {first} and {gains[1]} for {second}; "
            f"{_difference(cells.loc[dose, BEYOND, difference, ALL])}."
        )
    for alpha, when in {dose: f"at dose {dose:g}", 0.0: "unsteered"}.items():
        keys = [(alpha, "none", difference, emotion) for emotion in order(doses["emotion"]) if emotion != ALL]
        rows = {key[-1]: cells.loc[key] for key in keys if key in cells.index}
        apart = [f"{emotion} {bounded(row, signed=True)}" for emotion, row in rows.items() if _apart(row)]
        differ = f"Of single emotions {when} {listed(apart)} {'differ' if len(apart) > 1 else 'differs'}."
        said.append(differ if apart else f"For single emotions {when} no difference was found.")
    return said


def _difference(row: pd.Series) -> str:
    return f"difference {bounded(row, signed=True)}" + ("" if _apart(row) else ": no difference was found")


def _apart(row: pd.Series) -> bool:
    """Whether the interval of a difference leaves out 0."""
    return row["lo"] > 0 or row["hi"] < 0
