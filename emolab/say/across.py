"""What two models side by side say: whether their maps agree beyond chance, and whether steering does as much."""

from __future__ import annotations

import pandas as pd

from emolab.base.labels import order
from emolab.experiments.across import ALL, BEYOND, breaking_dose
from emolab.say.sentences import Sentences, Unmeasured, listed, measured, number

LEVEL = 0.05
_NAMES = {"rsa": "RSA", "cka": "CKA of the answers", "cosine": "cosine of the vectors"}


@measured
def two_models(maps: pd.DataFrame, doses: pd.DataFrame) -> Sentences:
    """Likeness of two models' maps beside its null and ceiling, and the difference of their texts at the breaking dose.

    >>> emolab.say.two_models(geometry.map_agreement(vectors, tuned), experiments.model_doses(scored))  # doctest: +SKIP

    Brackets after a likeness hold the middle 95 % of split halves; after a share the 95 % interval over questions.
    """
    first, second, difference = doses["model"].unique()
    means = maps[maps["layer"].isna()].dropna(subset=["value"]).set_index("measure")
    if means.empty:
        raise Unmeasured
    alike = [_NAMES[measure] for measure in means.index if means["p"][measure] < LEVEL]
    told = [_likeness(_NAMES[str(measure)], row) for measure, row in means.iterrows()]
    verdict = (
        f"are alike beyond permuted labels by {listed(alike)}" if alike else "are not alike beyond permuted labels"
    )
    halves = [_halves(_NAMES[str(measure)], row) for measure, row in means.dropna(subset=["halves"]).iterrows()]
    beside = "Between halves of the questions, one model with the other against each with itself "
    beside += f"(middle 95 % of splits): {'; '.join(halves)}."
    return Sentences(
        f"The maps of emotions of {first} and {second} {verdict}: {'; '.join(told)}, means over layers.",
        beside if halves else "",
        *_steered(doses, first, second, difference),
    )


def _likeness(name: str, row: pd.Series) -> str:
    return f"{name} {number(row['value'])} (permuted up to {number(row['null_hi'])}, p = {row['p']:.3f})"


def _halves(name: str, row: pd.Series) -> str:
    between, within = (number(row[x], row[f"{x}_lo"], row[f"{x}_hi"]) for x in ("halves", "ceiling"))
    return f"{name} {between} against {within}"


def _steered(doses: pd.DataFrame, first: str, second: str, difference: str) -> list[str]:
    """The mean over emotions at the breaking dose, then which emotions differ there, and before any steering."""
    dose = breaking_dose(doses)
    keys = doses[["alpha", "control", "model", "emotion"]].itertuples(index=False, name=None)
    cells = dict(zip(keys, doses[["value", "lo", "hi"]].itertuples(index=False, name=None), strict=True))
    random = [number(*cells[dose, "random", m, ALL]) for m in (first, second) if (dose, "random", m, ALL) in cells]
    shares = [number(*cells[dose, "none", model, ALL]) for model in (first, second)]
    told = f"At dose {dose:g} (1 breaks the text) steering brings {shares[0]} of the texts of {first} and {shares[1]} "
    told += f"of those of {second} to the target" + (f" (random directions {listed(random)})" if random else "")
    said = [f"{told}; {_difference(cells[dose, 'none', difference, ALL])}."]
    if (dose, BEYOND, difference, ALL) in cells:
        gains = [number(*cells[dose, BEYOND, model, ALL], signed=True) for model in (first, second)]
        told = f"Beyond its random direction that is {gains[0]} for {first} and {gains[1]} for {second}"
        said.append(f"{told}; {_difference(cells[dose, BEYOND, difference, ALL])}.")
    for alpha, when in {dose: f"at dose {dose:g}", 0.0: "unsteered"}.items():
        single = {e: cells.get((alpha, "none", difference, e)) for e in order(doses["emotion"]) if e != ALL}
        apart = [f"{e} {number(*cell, signed=True)}" for e, cell in single.items() if cell and _apart(cell)]
        verb = "differ" if len(apart) > 1 else "differs"
        found = f"Of single emotions {when} {listed(apart)} {verb}."
        said.append(found if apart else f"For single emotions {when} no difference was found.")
    return said


def _difference(cell: tuple) -> str:
    return f"difference {number(*cell, signed=True)}" + ("" if _apart(cell) else ": no difference was found")


def _apart(cell: tuple) -> bool:
    """Whether the interval of a difference leaves out 0."""
    _, lo, hi = cell
    return lo > 0 or hi < 0
