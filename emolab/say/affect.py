"""What the results of affect say: the circumplex, ratings read off by layer, steering along axes."""

from __future__ import annotations

import pandas as pd

from emolab.say.sentences import Sentences, bounded, listed, measured, number, smallest_row, where_largest


@measured
def circumplex(points: pd.DataFrame) -> Sentences:
    """How far words lie where people put them, from `emolab.geometry.affect_points`.

    >>> emolab.say.circumplex(emolab.geometry.affect_points(means, layer=18))  # doctest: +SKIP
    """
    r, null, clusters = points.attrs["r"], points.attrs["null_hi"], points.attrs["clusters"]
    parts = [f"{name} r = {number(value)} (ratings permuted: up to {number(null[name])})" for name, value in r.items()]
    found = [name for name in r if r[name] > null[name]]
    end = "" if len(found) == len(r) else f" Of {listed(set(r) - set(found))} no more is read than by chance."
    return Sentences(
        f"People's ratings of {len(points)} words are read off the vectors of other words: {listed(parts)}.{end}",
        f"Of {clusters['n']} clusters found on half of the frames, those of the other half agree with Rand index "
        f"{number(clusters['rand'])} (0 by chance).",
    )


@measured
def affect_curve(table: pd.DataFrame) -> Sentences:
    """From which layer on ratings can be read, and what the words alone give, from `emolab.geometry.affect_fit`.

    >>> emolab.say.affect_curve(emolab.geometry.affect_fit(means, embeddings))  # doctest: +SKIP
    """
    said = []
    for dimension, rows in table.groupby("dimension", sort=False):
        by_method = {method: some.set_index("layer") for method, some in rows.groupby("method")}
        ridge = by_method["ridge"]
        layer = where_largest(ridge["r"])
        best = ridge.loc[layer]
        sentence = f"{str(dimension).capitalize()} is read best at layer {layer}: r = {bounded(best, 'r')}, "
        sentence += f"permuted ratings {number(best['null_hi'])} at most"
        if layer != ridge.index.min():
            sentence += f"; at layer {ridge.index.min()} r = {number(ridge['r'].iloc[0])}"
        if "ridge, other frames" in by_method:
            sentence += f"; from other frames {number(by_method['ridge, other frames'].loc[layer, 'r'])}"
        if "component" in by_method:
            component = by_method["component"].loc[layer]
            sentence += f"; component {int(component['component'])} alone gives {number(component['r'])}"
        if "word embedding" in by_method:
            words = by_method["word embedding"]["r"].iloc[0]
            verdict = "lies within that interval: no more than the word was found"
            verdict = "is less" if best["lo"] > words else verdict
            sentence += f"; the word's input embedding gives {number(words)}, which {verdict}"
        said.append(f"{sentence}.")
    return Sentences(*said)


@measured
def affect_shift(shifts: pd.DataFrame) -> Sentences:
    """What steering along each axis moved in the texts, against random directions, from `experiments.affect_shifts`.

    >>> emolab.say.affect_shift(emolab.experiments.affect_shifts(scored))  # doctest: +SKIP
    """
    said = []
    for axis in dict.fromkeys(shifts["emotion"]):
        rows = shifts[(shifts["emotion"] == axis) & (shifts["measure"] == axis)]
        own, random = (rows[rows["control"] == name].set_index("alpha").sort_index() for name in ("none", "random"))
        if own.empty:
            continue
        ends = [own.index[0], own.index[-1]]
        parts = listed(f"{bounded(own.loc[a], 'shift', signed=True)} at dose {a:g}" for a in ends)
        beside = listed((number(random.loc[a, "shift"], signed=True) for a in ends if len(random)), nothing="")
        beside = f" (random directions {beside})" if beside else ""
        apart = own.loc[ends[1], "lo"] > own.loc[ends[0], "hi"]
        verdict = "" if apart else ": no difference between the ends was found"
        said.append(f"Steering along {axis} moves the texts' {axis} by {parts}{beside}{verdict}.")
        kept = shifts[(shifts["emotion"] == axis) & (shifts["measure"] == "adherence") & (shifts["control"] == "none")]
        if len(kept):
            worst = smallest_row(kept, kept["value"])
            said.append(
                f"Adherence to the topic is {number(worst['value'])} at the dose that keeps least ({worst['alpha']:g}; "
                f"unsteered {number(worst['unsteered'])})."
            )
    return Sentences(*said)
