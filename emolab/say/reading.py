"""What reading says: texts that turn, passages of a corpus, scenarios that name no emotion."""

from __future__ import annotations

import pandas as pd

from emolab.base.stats import interval
from emolab.say.sentences import Sentences, listed, measured, number, where_largest


@measured
def turning_curve(curve: pd.DataFrame) -> Sentences:
    """Whether the two halves of a text are told apart, and how soon, from `emolab.experiments.turning_curve`.

    >>> emolab.say.turning_curve(emolab.experiments.turning_curve(scores))  # doctest: +SKIP
    """
    told, chance, lag = curve.attrs["told"], curve.attrs["chance"], curve.attrs["lag"]
    found = told["none"][1] > max(chance, told["random"][2])
    halves = f"{number(*told['none'])} of the halves point most to their own emotion (random directions "
    halves += f"{number(*told['random'])}, chance {number(chance)})"
    apart = "the new emotion does not come to lead for good"
    if lag is not None:
        apart = "the new emotion leads from the first token on" if lag == 0 else f"the new one leads after {lag} tokens"
    return Sentences(
        f"Where texts change their emotion, {halves}{'' if found else ': no more than by chance was found'}.",
        f"Behind the turn {apart}." if found else "",
    )


@measured
def passages(table: pd.DataFrame) -> Sentences:
    """Whether the passages that point most along an emotion come from texts of it; `emolab.experiments.top_passages`.

    >>> emolab.say.passages(emolab.experiments.top_passages(scores, n=3))  # doctest: +SKIP
    """
    shares = {}
    for control, rows in table.groupby("control"):
        clusters = rows["topic"] if "topic" in rows else None
        hits = rows["hit"].astype(float)
        shares[control] = number(hits.mean(), *interval(hits, clusters=clusters))
    return Sentences(
        f"Of the passages that point most along an emotion, {shares['none']} come from texts of it "
        f"(along random directions {shares['random']})."
    )


@measured
def rank_curve(curve: pd.DataFrame) -> Sentences:
    """Where the state before an answer points to the emotion that is meant, from `emolab.experiments.rank_curve`.

    >>> emolab.say.rank_curve(emolab.experiments.rank_curve(ranks))  # doctest: +SKIP
    """
    own, random = (curve[curve["control"] == control].set_index("layer") for control in ("none", "random"))
    best, chance = where_largest(own["value"]), curve.attrs["chance"]
    beyond = own.index[(own["lo"] > chance) & (own["lo"] > random["hi"])]
    told = "Before a word is written, the emotion that a situation evokes and does not name ranks first in "
    told += f"{number(*own.loc[best, ['value', 'lo', 'hi']])} of them at layer {best} (random directions "
    told += f"{number(*random.loc[best, ['value', 'lo', 'hi']])}, chance {number(chance)})"
    where = f"Beyond both lie the layers {listed(beyond)}." if len(beyond) > 1 else ""
    return Sentences(f"{told}{'' if len(beyond) else ': no layer was found beyond both'}.", where)
