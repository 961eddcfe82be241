"""The figure of choices between given answers: by dose, or by a number in the question."""

from __future__ import annotations

import pandas as pd

from emolab.base.errors import need_table
from emolab.base.labels import NEUTRAL, order
from emolab.base.stats import LEVEL
from emolab.base.tables import about
from emolab.experiments.amounts import number_trends
from emolab.plot.marks import control_key, control_look, key, line
from emolab.plot.panels import figure, grid
from emolab.plot.style import emotion_looks

_SOURCE = "experiments.choice_shifts, or emolab.choices of experiments.number_questions"


@figure
def choice_curve(table: pd.DataFrame, *, title: str | None = None):
    """The probability of one option by dose, with random directions of equal norm; or by the number in the question.

    >>> table = emolab.choices(model, ["Is it late?", "Is it far?"], ["Yes", "No"], steering=emolab.at(vectors))
    >>> fig = choice_curve(experiments.choice_shifts(table[table["option"] == "Yes"]))
    >>> asked = experiments.number_questions({"dog": "Our dog has been away for {n} days."}, [1, 3, 10, 30])
    >>> table = emolab.choices(model, asked, ["worried", "calm"])
    >>> fig = choice_curve(table[table["option"] == "worried"])

    table: from `experiments.choice_shifts`, one panel per emotion: bars are 95 % intervals over questions, and grey
    whiskers reach from the lowest to the highest of the single random directions. Or of `emolab.choices` with questions
    of `experiments.number_questions`, the rows of one option and dose: one panel per situation.
    """
    need_table(table, ("emotion", "control", "alpha"), _SOURCE)
    return _by_dose(table, title) if "shift" in table else _by_number(table, title)


def _by_dose(table: pd.DataFrame, title: str | None):
    need_table(table, ("value", "lo", "hi"), _SOURCE)
    data = table
    if "draws_lo" in table:
        random, plain = table["control"] == "random", table["value"] - table["shift"]
        low, high = plain + table["draws_lo"], plain + table["draws_hi"]
        data = table.assign(lo=table["lo"].mask(random, low), hi=table["hi"].mask(random, high))
    looks = emotion_looks(order(table["emotion"]))
    panels = grid(list(looks), height=12, want=26)
    for emotion, ax, rows in panels.each(data, "emotion"):
        for control, curve in rows.groupby("control", sort=False):
            settings, bounds = (looks[emotion], "bars") if control == "none" else (control_look("random"), "whiskers")
            line(ax, curve, "alpha", "value", settings, tested=curve["alpha"], bounds=bounds)
    option = table["option"].iloc[0] if "option" in table else about(table)["params"].get("option")
    panels.label("dose", f'probability of "{option}"')
    return panels.finish(
        table, title or _moved(table, option),
        legend=[key("emotion vector"), *_random_key(table)],
        interval="bars: 95 % over questions, whiskers: single random directions",
    )  # fmt: skip


def _by_number(table: pd.DataFrame, title: str | None):
    need_table(table, ("situation", "number", "p", "option"), _SOURCE)
    looks = emotion_looks(order(table["emotion"]))
    panels = grid(table["situation"].unique(), height=12, want=26, share="y")
    for _, ax, rows in panels.each(table, "situation"):
        for (emotion, control), cells in rows.groupby(["emotion", "control"], sort=False):
            curve = cells.groupby("number", as_index=False)["p"].mean()
            curve = curve.assign(place=range(len(curve)))  # one step from each number to the next, whatever they are
            settings = control_look("random") if control == "random" else looks[str(emotion)]
            line(ax, curve, "place", "p", settings)
        numbers = sorted(rows["number"].unique())
        ax.set_xticks(range(0, len(numbers), 2), [f"{number:g}" for number in numbers[::2]])
    option = table["option"].iloc[0]
    panels.label("number in the question", f'probability of "{option}"')
    names = {NEUTRAL: "unsteered"}
    handles = [key(names.get(e, e), color=x["color"], marker=x["marker"]) for e, x in looks.items()]
    return panels.finish(table, title or _risen(table, option), legend=[*handles, *_random_key(table)])


def _random_key(table: pd.DataFrame) -> list:
    return [control_key("random")] if "random" in set(table["control"]) else []


def _moved(shifts: pd.DataFrame, option: str) -> str:
    """What the largest dose does, as a sentence."""
    most = shifts[(shifts["alpha"] == shifts["alpha"].max()) & (shifts["control"] == "none")].set_index("emotion")
    moves = ", ".join(f"{emotion} {most.loc[emotion, 'shift']:+.2f}" for emotion in order(most.index))
    moved = f'Dose {shifts["alpha"].max():g} moves the probability of "{option}": {moves}'
    if "draws_lo" not in most or most["draws_lo"].isna().all():
        return moved
    return f"{moved} (single random directions {most['draws_lo'].min():+.2f} to {most['draws_hi'].max():+.2f})"


def _risen(table: pd.DataFrame, option: str) -> str:
    """In how many situations the probability rises with the number, by more than chance."""
    trends = number_trends(table[table["control"] == "none"])
    own = trends[trends["situation"] != "all"]
    rising = ((own["rho"] > 0) & (own["q"] < LEVEL)).sum()
    return f'"{option}" gets likelier with the number in {rising} of {len(own)} situations (q < .05)'
