"""What reading says: texts that turn, passages of a corpus, scenarios that name no emotion."""

from __future__ import annotations

import pandas as pd

from emolab.base.stats import interval
from emolab.say.sentences import Sentences, bounded, listed, measured, number, where_largest


@measured
def turning_curve(curve: pd.DataFrame) -> Sentences:
    """Whether the two halves of a text are told apart, and how soon, from `emolab.experiments.turning_curve`.

    >>> emolab.say.turning_curve(emolab.experiments.turning_curve(scores))  # doctest: +SKIP
    """
    shares, chance, lag = curve.attrs["told"], curve.attrs["chance"], curve.attrs["lag"]
    beyond = shares["none"][1] > max(chance, shares["random"][2])
    apart = "the new emotion does not come to lead for good"
    if lag is not None:
        apart = "the new emotion leads from the first token on" if lag == 0 else f"the new one leads after {lag} tokens"
    return Sentences(
        f"Where texts change their emotion, {number(*shares['none'])} of the halves point most to their own emotion "
        f"(random directions {number(*shares['random'])}, chance {number(chance)})"
        f"{'' if beyond else ': no more than by chance was found'}.",
        f"Behind the turn {apart}." if beyond else "",
    )


@measured
def passages(table: pd.DataFrame) -> Sentences:
    """Whether the passages that point most along an emotion come from texts of it; `emolab.experiments.top_passages`.

    >>> emolab.say.passages(emolab.experiments.top_passages(scores, n=3))  # doctest: +SKIP
    """
    shares = {}
    for control, rows in table.groupby("control"):
        hits = rows["hit"].astype(float)
        shares[control] = number(hits.mean(), *interval(hits, clusters=rows.get("topic")))
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
    return Sentences(
        "Before a word is written, the emotion that a situation evokes and does not name ranks first in "
        f"{bounded(own.loc[best])} of them at layer {best} (random directions {bounded(random.loc[best])}, chance "
        f"{number(chance)}){'' if len(beyond) else ': no layer was found beyond both'}.",
        f"Beyond both lie the layers {listed(beyond)}." if len(beyond) > 1 else "",
    )
