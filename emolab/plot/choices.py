"""The figure of choices between given answers: by dose, or by a number in the question."""

from __future__ import annotations

import pandas as pd

from emolab.base.errors import need_table
from emolab.base.labels import NEUTRAL, order
from emolab.base.tables import about
from emolab.plot.marks import control_key, control_look, key, line
from emolab.plot.panels import figure, finish, grid
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
    by_dose = "shift" in table
    need_table(table, ("value", "lo", "hi") if by_dose else ("situation", "number", "p"), _SOURCE)
    panel, x, y = ("emotion", "alpha", "value") if by_dose else ("situation", "number", "p")
    names = order(table[panel]) if by_dose else list(dict.fromkeys(table[panel]))
    looks = emotion_looks(order(table["emotion"]))
    panels = grid(names, height=12, want=26, share="xy" if by_dose else "y")
    for name, ax in panels.columns():
        own = table[table[panel] == name]
        if by_dose and "draws_lo" in own:
            random, plain = own["control"] == "random", own["value"] - own["shift"]
            own = own.assign(
                lo=own["lo"].mask(random, plain + own["draws_lo"]), hi=own["hi"].mask(random, plain + own["draws_hi"])
            )
        for (emotion, control), rows in own.groupby(["emotion", "control"], sort=False):
            if not by_dose:  # one step from each number to the next, whatever they are
                rows = rows.groupby(x, as_index=False)[y].mean().assign(**{x: lambda curve: range(len(curve))})
            settings = control_look("random") if control == "random" else looks[str(emotion)]
            bounds = "" if not by_dose else "whiskers" if control == "random" else "bars"
            line(ax, rows, x, y, settings, tested=rows[x], bounds=bounds)
        if not by_dose:
            shown = sorted(own[x].unique())
            ax.set_xticks(range(0, len(shown), 2), [f"{number:g}" for number in shown[::2]])
    option = list(dict.fromkeys(table["option"])) if "option" in table else [about(table)["params"].get("option")]
    panels.label("dose" if by_dose else "number in the question", f'probability of "{option[0]}"')
    names = {e: "unsteered" if e == NEUTRAL else e for e in looks}
    handles = [key(names[e], color=x["color"], marker=x["marker"]) for e, x in looks.items() if not by_dose]
    handles = handles or [key("emotion vector")]
    if "random" in set(table["control"]):
        handles.append(control_key("random"))
    said = {"interval": "bars: 95 % over questions, whiskers: single random directions"} if by_dose else {}
    return finish(
        panels, table, source=table, function="choice_curve", legend=handles, said=said,
        title=title or (_moved(table, option[0]) if by_dose else _risen(table, option[0])),
    )  # fmt: skip


def _moved(shifts: pd.DataFrame, option: str) -> str:
    """What the largest dose does, as a sentence."""
    most = shifts[(shifts["alpha"] == shifts["alpha"].max()) & (shifts["control"] == "none")].set_index("emotion")
    moves = ", ".join(f"{emotion} {most.loc[emotion, 'shift']:+.2f}" for emotion in order(most.index))
    told = f'Dose {shifts["alpha"].max():g} moves the probability of "{option}": {moves}'
    if "draws_lo" not in most or most["draws_lo"].isna().all():
        return told
    return f"{told} (single random directions {most['draws_lo'].min():+.2f} to {most['draws_hi'].max():+.2f})"


def _risen(table: pd.DataFrame, option: str) -> str:
    """In how many situations the probability rises with the number, by more than chance."""
    from emolab.experiments.amounts import number_trends

    trends = number_trends(table[table["control"] == "none"])
    own = trends[trends["situation"] != "all"]
    rising = ((own["rho"] > 0) & (own["q"] < 0.05)).sum()
    return f'"{option}" gets likelier with the number in {rising} of {len(own)} situations (q < .05)'
