"""Figures of comparisons: methods by what they give and what they damage, and the paper's claims put to the test."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import MaxNLocator

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.tables import about
from emolab.comparisons.claims import MARGIN, Claim
from emolab.plot.marks import (
    control_key,
    control_look,
    dose_curves,
    dose_keys,
    forest,
    key,
    level,
    line,
    log_axis,
    named_rows,
)
from emolab.plot.panels import Grid, figure, grid
from emolab.plot.style import CONTROLS, GREY, INK, MEASURES, emotion_looks, look
from emolab.say.sentences import number

# Colours of petroff10 that no emotion has (nor a neighbour of one), and a marker each; controls have their own look.
METHOD_LOOKS = {
    "emotion vector": ("#832db6", "o"),
    "pca": ("#3f90da", "s"),
    "probe": ("#b9ac70", "D"),
    "lora": ("#bd1f01", "^"),
    "few_shot": ("#a96b59", "P"),
    "instruction": (CONTROLS["prompt"]["color"], CONTROLS["prompt"]["marker"]),
    "random": (CONTROLS["random"]["color"], "X"),
}
_NAMES = {"few_shot": "few-shot", "pca": "PCA", "lora": "LoRA", "random": CONTROLS["random"]["label"]}
_COLUMNS = ("method", "at", "emotion", "dose", "measure", "value", "lo", "hi")
_KINDS = {"whole": "whole vectors", "specific": "without the shared part", "random": "random pair"}
_DRIFTS = {"topic": "drift from the topic", "answer": "drift from the unsteered answer", "kl": "next-token KL (nats)"}


@figure
def tradeoff(table: pd.DataFrame, *, emotion: str = "all", title: str | None = None):
    """What each method gives against what it changes: the emotion, and the overall score, over damage.

    >>> fig = tradeoff(table)                                        # doctest: +SKIP

    table: from `comparisons.compare_methods`. Damage: 95th percentile of the next-token KL on neutral answers, nats,
    log scale. Small markers: doses tried on the choosing queries. Large ones: each method at its best setting on
    held-out queries (hollow: at equal damage), with 95 % intervals over queries. Level line: unsteered text.
    """
    need_table(table, _COLUMNS, "emolab.compare_methods")
    own = table[table["emotion"] == emotion]
    if own.empty:
        raise EmolabError(f"no results for {emotion!r}; the table holds {', '.join(dict.fromkeys(table['emotion']))}")
    methods = [m for m in METHOD_LOOKS if m in set(own["method"])]
    wide = own.pivot(index=["method", "at", "dose"], columns="measure", values=["value", "lo", "hi"]).reset_index()
    measures = ("emotion", "overall")
    panels = grid([MEASURES[m] for m in measures], height=17, need=22, want=46)
    for measure, ax in zip(measures, panels.axes.values(), strict=True):
        for method in reversed(methods):  # the emotion vector on top
            _method(ax, wide[wide["method"] == method], method, measure)
        plain = wide[(wide["method"] == "unsteered") & (wide["at"] == "best")]
        for value in plain["value", measure]:
            level(ax, value, "unsteered")
        if (wide["value", "damage"] > 0).any():
            log_axis(ax, "x")
        ax.set_ylim(-0.03, 1.03)
    panels.label("damage: p95 of next-token KL (nats)", "score")
    handles = [
        *(key(_NAMES.get(m, m), color=METHOD_LOOKS[m][0], marker=METHOD_LOOKS[m][1]) for m in methods),
        key("best setting", color=GREY, linestyle=""),
        key("equal damage", color=GREY, face="white", linestyle=""),
        control_key("unsteered", marker=""),
    ]
    best = own[(own["at"] == "best") & (own["measure"] == "overall") & (own["method"] != "unsteered")]
    best = best.set_index("method")["value"].nlargest(3)
    scores = ", ".join(f"{_NAMES.get(str(method), method)} {number(score)}" for method, score in best.items())
    # Without the times, which no second run gives again.
    data = own[own["measure"].isin([*measures, "damage"])].drop(columns=["seconds", "speed"], errors="ignore")
    return panels.finish(
        data, title or f"Overall score, each method at its best: {scores or 'unknown'}",
        legend=handles, interval="lines: 95 % bootstrap over queries", params={"emotion": emotion},
    )  # fmt: skip


def _method(ax, own: pd.DataFrame, method: str, measure: str) -> None:
    color, marker = METHOD_LOOKS[method]
    tried = own[(own["at"] == "tried") & (own["value", "damage"] > 0)].sort_values("dose")
    if len(tried) > 1:  # thin: between tried doses nothing is known
        ax.plot(
            tried["value", "damage"], tried["value", measure], color=color, marker=marker, linestyle=":", linewidth=0.9,
            markersize=0.28 * look().size, zorder=2.5,
        )  # fmt: skip
    for at, face in (("best", color), ("equal damage", "white")):
        if at == "equal damage" and len(tried) < 2:  # without doses there is one point
            continue
        point = own[own["at"] == at]
        lines = {"color": color, "alpha": 0.6, "linewidth": 1.2, "zorder": 2}
        ax.vlines(point["value", "damage"], point["lo", measure], point["hi", measure], **lines)
        ax.hlines(point["value", measure], point["lo", "damage"], point["hi", "damage"], **lines)
        ax.plot(
            point["value", "damage"], point["value", measure], marker, color=color, markerfacecolor=face,
            markersize=0.65 * look().size, markeredgecolor=color if face == "white" else INK, zorder=4,
        )  # fmt: skip


@figure
def claim_monotone(claim: Claim, *, title: str | None = None):
    """Does the target rise with the dose? One row per scale, one column per emotion, with random and shuffled controls.

    >>> fig = claim_monotone(claims["monotone"])                   # doctest: +SKIP

    claim: from `comparisons.monotone`. Markers are means over queries on their 95 % intervals. Dotted: the first
    significant drop.
    """
    panels = _by_scale(claim, "monotone")
    looks = emotion_looks(panels.names)
    for (scale, emotion), ax in panels.axes.items():
        own = _cell(claim, scale, emotion)
        dose_curves(ax, own, looks[emotion], tested=own["alpha"], controls=("random", "shuffled"))
        drop = claim.evidence[scale]["emotions"][emotion]["first_drop"]
        if drop is not None:
            ax.axvline(drop, color=INK, linestyle=":", linewidth=1, label="first significant drop")
    return _finished(panels, claim, "Does the target emotion rise with the dose?", dose_keys(claim.table), title)


@figure
def claim_preservation(claim: Claim, *, title: str | None = None):
    """How far steered text drifts as the dose grows, and how much further than with controls of equal norm.

    >>> fig = claim_preservation(claims["preservation"])           # doctest: +SKIP

    claim: from `comparisons.preservation`. Above: the drift of the vector and its controls, mean over emotions; level
    line: the instructed answers. Below: the vector minus each control. Bars: 95 % intervals over queries. The shaded
    strip is what counts as no more than random. KL grows with the square of any small push: it is no evidence alone.
    """
    _check(claim, "preservation")
    table = claim.table
    doses = sorted(table.loc[table["alpha"] > 0, "alpha"].unique())
    names = {"drift": "drift", "minus": "vector minus control"}
    panels = grid(list(_DRIFTS.values()), list(names), height=9, need=17, want=32, share="x")
    for measure, name in _DRIFTS.items():
        top, low = panels.axes["drift", name], panels.axes["minus", name]
        own = table[table["measure"] == measure]
        line(top, own[own["control"] == "none"], "alpha", "value", {"color": INK, "marker": "o"}, bounds="bars")
        for control in ("random", "shuffled", "shared"):
            rows = own[own["control"] == control]
            line(top, rows, "alpha", "value", control_look(control), bounds="whiskers")
            minus = rows.assign(value=rows["minus"], lo=rows["minus_lo"], hi=rows["minus_hi"])
            line(low, minus, "alpha", "value", control_look(control), bounds="whiskers")
        for value in own.loc[own["control"] == "prompt", "value"]:
            level(top, float(value), "prompt")
        low.axhline(0, color=INK, linewidth=0.8)
        if measure == "topic":
            low.axhspan(-MARGIN, MARGIN, color=GREY, alpha=0.2, linewidth=0)
        if measure == "kl":
            log_axis(top)
        for ax in (top, low):
            log_axis(ax, "x", doses)
    panels.label("dose", names)
    question = "Does steering keep the topic as well as a random push of equal norm?"
    return _finished(panels, claim, question, dose_keys(table), title)


@figure
def claim_linear(claim: Claim, *, title: str | None = None):
    """Is the effect a line in the dose? Means on logit scales with the lines fitted within 1, 2 and 4.

    >>> fig = claim_linear(claims["linear"])                       # doctest: +SKIP

    claim: from `comparisons.linear`; R2 of each line with its bounds stands in `claim.evidence`.
    """
    panels = _by_scale(claim, "linear")
    looks = emotion_looks(panels.names)
    reaches = {"1": "-", "2": "--", "4": ":"}
    for (scale, emotion), ax in panels.axes.items():
        own = _cell(claim, scale, emotion)
        dose_curves(ax, own, {**looks[emotion], "linestyle": ""}, tested=own["alpha"], controls=("random",))
        rows = own[own["control"] == "none"]
        for reach, style in reaches.items():
            if reach in claim.evidence[scale][emotion]:
                fitted = rows.dropna(subset=f"line_{reach}").sort_values("alpha")
                name = f"line within {reach}"
                ax.plot(fitted["alpha"], fitted[f"line_{reach}"], color=INK, linestyle=style, label=name)
    handles = [*dose_keys(claim.table), *(key(f"line within {r}", marker="", linestyle=s) for r, s in reaches.items())]
    return _finished(panels, claim, "Is the effect on the logit scale a line in the dose?", handles, title)


@figure
def claim_additive(claim: Claim, *, title: str | None = None):
    """Do two emotions at once do what either does alone, summed?

    >>> fig = claim_additive(claims["additive"])                   # doctest: +SKIP

    claim: from `comparisons.additive`. 0: their effects add. Small points are pairs and targets, in the target's
    colour; large ones their mean on its 95 % interval over queries.
    """
    _check(claim, "additive")
    table = claim.table
    scales = list(dict.fromkeys(table["scale"]))
    panels = grid([MEASURES.get(s, s) for s in scales], height=2.6 * len(_KINDS), need=24, want=44, share="y")
    looks = emotion_looks(table["target"].dropna())
    for scale, ax in zip(scales, panels.axes.values(), strict=True):
        own = table[table["scale"] == scale]
        ax.axvline(0, color=INK, linewidth=0.8)
        for place, kind in enumerate(_KINDS):
            cells = own[(own["kind"] == kind) & (own["pair"] != "all")]
            colors = [GREY if kind == "random" else looks[t]["color"] for t in cells["target"]]
            ax.scatter(cells["coefficient"], [place + 0.27] * len(cells), c=colors, s=1.2 * look().size, linewidth=0)
            mean = own[(own["kind"] == kind) & (own["pair"] == "all")]
            mean = mean.assign(value=mean["coefficient"], lo=mean["coefficient_lo"], hi=mean["coefficient_hi"])
            forest(ax, mean, [place] * len(mean), {"color": GREY if kind == "random" else INK, "marker": "o"})
        named_rows(ax, list(_KINDS.values()))
    panels.label("interaction, per dose times dose")
    handles = [key(t, color=looks[t]["color"], linestyle="") for t in order(table["target"].dropna())]
    return _finished(panels, claim, "Do two emotions at once add up?", handles, title)


def _by_scale(claim: Claim, name: str) -> Grid:
    """Panels by dose: a row per scale, a column per emotion."""
    _check(claim, name)
    panels = grid(order(claim.table["emotion"]), claim.table["scale"].unique(), height=9)
    for ax in panels.axes.values():
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        ax.axhline(0, color=INK, linewidth=0.5)
    panels.label("dose", {scale: MEASURES.get(scale, scale) for scale in panels.rows})
    return panels


def _cell(claim: Claim, scale: str, emotion: str) -> pd.DataFrame:
    return claim.table[(claim.table["scale"] == scale) & (claim.table["emotion"] == emotion)]


def _check(claim, name: str) -> None:
    if getattr(claim, "name", None) != name:
        found = getattr(claim, "name", type(claim).__name__)
        raise EmolabError(f"this figure shows the claim {name!r}, not {found!r}; it takes what claims.{name} returns")


def _finished(panels: Grid, claim: Claim, question: str, handles: list, title: str | None):
    """Question and verdict as title, under it the condition."""
    counts = sorted({int(n) for n in claim.table["n"].dropna()})
    n = f"{counts[0]} queries" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} queries"
    # Not drawn, and a ratio of small numbers, whose last digits another processor does not repeat.
    data = claim.table.drop(columns=["share", "share_lo", "share_hi"], errors="ignore")
    data.attrs["about"] = {**about(claim.table), "n": n}
    return panels.finish(
        data, title or f"{question} {claim.verdict.capitalize()}.",
        legend=handles, control="random directions", interval="bars: 95 % bootstrap over queries", note=claim.condition,
        params={"verdict": claim.verdict, "condition": claim.condition},
    )  # fmt: skip
