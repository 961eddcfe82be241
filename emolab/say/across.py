"""What two models side by side say: whether their maps agree beyond chance, and whether steering does as much."""

from __future__ import annotations

import pandas as pd

from emolab.base.labels import order
from emolab.experiments.across import ALL, breaking_dose
from emolab.say.sentences import Sentences, listed, measured, number

LEVEL = 0.05
_NAMES = {"rsa": "RSA", "cka": "CKA of the answers", "cosine": "cosine of the vectors"}


@measured
def two_models(maps: pd.DataFrame, doses: pd.DataFrame) -> Sentences:
    """Likeness of two models' maps beside its null and ceiling, and the difference of their texts at the breaking dose.

    >>> emolab.say.two_models(geometry.map_agreement(vectors, tuned), experiments.model_doses(scored))  # doctest: +SKIP

    Brackets after a likeness hold the middle 95 % of split halves; after a share the 95 % interval over questions.
    """
    first, second, difference = doses["model"].unique()
    means = maps[maps["layer"].isna()].set_index("measure")
    alike = [_NAMES[measure] for measure in means.index if means["p"][measure] < LEVEL]
    told = [_likeness(_NAMES[str(measure)], row) for measure, row in means.iterrows()]
    verdict = (
        f"are alike beyond permuted labels by {listed(alike)}" if alike else "are not alike beyond permuted labels"
    )
    halves = [_halves(_NAMES[str(measure)], row) for measure, row in means.dropna(subset=["halves"]).iterrows()]
    beside = "Between halves of the questions, one model with the other against each with itself: " + "; ".join(halves)
    return Sentences(
        f"The maps of emotions of {first} and {second} {verdict}: {'; '.join(told)}, means over layers.",
        f"{beside}." if halves else "",
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
    cells = doses.set_index(["alpha", "control", "model", "emotion"])[["value", "lo", "hi"]]

    def share(model: str, emotion: str = ALL, control: str = "none", alpha: float = dose) -> str:
        return number(*cells.loc[(alpha, control, model, emotion)], signed=model == difference)

    random = [share(m, control="random") for m in (first, second) if (dose, "random", m, ALL) in cells.index]
    told = f"At dose {dose:g} (1 breaks the text) steering brings {share(first)} of the texts of {first} and "
    told += f"{share(second)} of those of {second} to the target"
    told += f" (random directions {listed(random)})" if random else ""
    said = [f"{told}; difference {share(difference)}{_verdict(cells.loc[(dose, 'none', difference, ALL)])}."]
    for alpha, when in {dose: f"at dose {dose:g}", 0.0: "unsteered"}.items():
        single = cells.loc[(alpha, "none", difference)].drop(ALL)
        apart = [emotion for emotion in order(single.index) if not _verdict(single.loc[emotion])]
        parts = [f"{emotion} {share(difference, emotion, alpha=alpha)}" for emotion in apart]
        verb = "differ" if len(parts) > 1 else "differs"
        said.append(f"Of single emotions {when} {listed(parts)} {verb}.")
    return said


def _verdict(row: pd.Series) -> str:
    """Nothing where the interval leaves out 0."""
    return "" if row["lo"] > 0 or row["hi"] < 0 else ": no difference was found"
