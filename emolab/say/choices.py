"""What choices say: does a direction make an answer likelier than random directions do?"""

from __future__ import annotations

import pandas as pd

from emolab.base.labels import order
from emolab.base.tables import about
from emolab.say.sentences import Sentences, listed, measured, number


@measured
def choice_curve(shifts: pd.DataFrame) -> Sentences:
    """What the largest dose does to an option, beside random directions, from `emolab.experiments.choice_shifts`.

    >>> emolab.say.choice_curve(emolab.experiments.choice_shifts(table[table["option"] == "Yes"]))

    A difference counts where its interval over questions leaves out 0 and the shift lies beyond those of all single
    random directions.
    """
    dose, option = shifts["alpha"].max(), about(shifts)["params"].get("option")
    rows = shifts[(shifts["alpha"] == dose) & (shifts["control"] == "none")].set_index("emotion")
    moves, nothing = [], []
    for emotion in order(rows.index):
        row = rows.loc[emotion]
        moved = f"{emotion} {number(row['shift'], row['shift_lo'], row['shift_hi'], signed=True)}"
        if "draws_lo" in row and row["draws_lo"] == row["draws_lo"]:
            moved += f" (random directions {row['draws_lo']:+.2f} to {row['draws_hi']:+.2f})"
            beyond = not row["draws_lo"] <= row["shift"] <= row["draws_hi"]
            if not (beyond and row["minus_random_lo"] * row["minus_random_hi"] > 0):
                nothing.append(emotion)
        moves.append(moved)
    named = f'"{option}"' if option else "the option"
    return Sentences(
        f"Dose {dose:g} moves the probability of {named} by {listed(moves)}.",
        f"For {listed(nothing)} no difference from random directions was found." if nothing else "",
    )
