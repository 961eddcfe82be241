"""Figures of reading, not writing: emotions around the turn of a text, and before an answer to a scenario."""

from __future__ import annotations

import pandas as pd

from emolab.base.errors import need_table
from emolab.plot.marks import control_look, key, layer_axis, line
from emolab.plot.panels import figure, grid
from emolab.plot.style import INK, emotion_looks, look
from emolab.say.sentences import largest_row, where_largest

_ROLES = {
    "first": {"color": INK, "marker": None, "linestyle": "--", "label": "emotion of the first half"},
    "second": {"color": INK, "marker": None, "label": "emotion of the second half"},
}


@figure
def turning_curve(curve: pd.DataFrame, *, title: str | None = None):
    """Scores of the first, the second and the other emotions around the turn of texts, token by token.

    >>> turning = experiments.turning_texts(emolab.load_texts("topics", split="heldout", labels=["joy", "fear"]))
    >>> scores = experiments.token_scores(model, turning.head(2), vectors, layer=20)
    >>> fig = turning_curve(experiments.turning_curve(scores))

    The band is the 95 % interval over topics of the second emotion; grey is the same along a random direction for each
    emotion. The text turns at the upright line.
    """
    need_table(curve, ("control", "role", "at", "score", "lo", "hi"), "experiments.turning_curve")
    panels = grid([""], height=18, want=60)
    ax = panels.axes["", ""]
    own, random = (curve[curve["control"] == control] for control in ("none", "random"))
    for role, settings in _ROLES.items():
        line(ax, own[own["role"] == role], "at", "score", settings, bounds="band" if role == "second" else "")
    line(ax, own[own["role"] == "others"], "at", "score", control_look("other", marker=None, label="other emotions"))
    random = random[random["role"] == "second"]
    line(ax, random, "at", "score", control_look("random", marker=None, label="second half, random direction"))
    ax.axvline(-0.5, color=INK, linewidth=0.7)
    panels.label("token, counted from the turn", "score (SD over all tokens)")
    share, chance = curve.attrs["told"]["none"][0], curve.attrs["chance"]
    return panels.finish(
        curve, title or f"{share:.0%} of the halves point most to their own emotion (chance {chance:.0%})",
        control="random directions, one per emotion", interval="band: 95 % over topics",
    )  # fmt: skip


@figure
def rank_curve(curve: pd.DataFrame, *, title: str | None = None):
    """How often the emotion that a scenario evokes ranks first before the answer, by layer, beside random directions.

    >>> queries = emolab.load_queries("general", split="heldout").head(4)
    >>> fig = rank_curve(experiments.rank_curve(experiments.scenario_ranks(model, queries, vectors, layers=[9, 20])))
    """
    need_table(curve, ("layer", "control", "value", "lo", "hi"), "experiments.rank_curve")
    panels = grid([""], height=16, want=52)
    ax = panels.axes["", ""]
    own, random = (curve[curve["control"] == control] for control in ("none", "random"))
    line(ax, own, "layer", "value", {"color": INK, "marker": "o", "label": "emotion vectors"}, bounds="band")
    line(ax, random, "layer", "value", control_look("random"))
    ax.axhline(curve.attrs["chance"], color=INK, linestyle=":", linewidth=0.1 * look().size, label="chance")
    layer_axis(ax, curve)
    ax.set_ylim(0, 1)
    panels.label("layer", "meant emotion ranks first")
    if not title:
        best = largest_row(own, own["value"])
        title = f"Before the answer, the state points to the emotion that is meant in {best['value']:.0%} of scenarios "
        title += f"(layer {best['layer']:g}; chance {curve.attrs['chance']:.0%})"
    return panels.finish(curve, title, control="random directions", interval="band: 95 % over situations")


@figure
def token_trace(scores: pd.DataFrame, *, title: str | None = None):
    """What each answer's tokens point to, token by token, one panel for each arm of a turn.

    >>> fig = token_trace(chat.scores())                                                  # doctest: +SKIP

    scores: `arm, position, emotion, score` of one turn, as of `emolab.widgets.Chat.scores`; a thin line is the mean
    over five tokens, in standard deviations of neutral texts.
    """
    need_table(scores, ("arm", "position", "emotion", "score"), "Chat.scores()")
    arms, looks = list(scores["arm"].unique()), emotion_looks(scores["emotion"])
    panels = grid(arms, height=14, need=16, want=26)
    for _, ax, rows in panels.each(scores.sort_values("position"), "arm"):
        for emotion, settings in looks.items():
            own = rows[rows["emotion"] == emotion]
            own = own.assign(score=own["score"].rolling(5, min_periods=1).mean())
            line(ax, own, "position", "score", {**settings, "marker": None})
        ax.axhline(0, color=INK, linewidth=0.6)
    panels.label("token of the answer", "score (SD of neutral texts)")
    if not title:
        known = scores[scores["score"].notna()]
        best = known.loc[known.groupby(["arm", "position"])["score"].idxmax()]
        counts = best[best["arm"] == ("steered" if "steered" in arms else arms[0])].groupby("emotion").size()
        first = where_largest(counts)
        shares = ", ".join(f"{arm} {(best.loc[best['arm'] == arm, 'emotion'] == first).mean():.0%}" for arm in arms)
        title = f"Tokens that point most to {first}: {shares}"
    return panels.finish(
        scores, title,
        legend=[key(emotion, marker="", color=settings["color"]) for emotion, settings in looks.items()],
        control="the same answer unsteered, and along a random direction" if len(arms) > 2 else "unsteered",
    )  # fmt: skip
