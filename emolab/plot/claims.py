"""Figures of the paper's four claims put to the test, each with its controls, its verdict and the condition.

>>> claims = check_claims(model, vectors, queries, responses, scored, setting=setting)      # doctest: +SKIP
>>> fig = plot.claim_monotone(claims["monotone"])                                           # doctest: +SKIP
"""

from __future__ import annotations

import textwrap

import matplotlib as mpl
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from emolab.base.errors import EmolabError
from emolab.base.labels import order
from emolab.plot.style import GREY, INK, emotion_grid, emotion_kwargs, finish, log_axis, new_figure, panel_title, theme

_SCALES = {"judge": "judge's logit\nof the target", "log-odds": "log-odds, nats\nper token"}
_LINES = {
    "random": {"color": GREY, "linestyle": "-", "linewidth": 1.2},
    "shuffled": {"color": INK, "linestyle": "--", "linewidth": 1},
    "shared": {"color": "#882255", "linestyle": "-.", "linewidth": 1},
}
_NAMES = {"random": "random direction", "shuffled": "shuffled labels", "shared": "shared", "none": "emotion vector"}
_KINDS = {"whole": "whole vectors", "specific": "without the shared base", "random": "random pair"}
_MEASURES = {
    "topic": "Drift from the topic",
    "answer": "Drift from the unsteered answer",
    "kl": "Next-token KL",
}


def claim_monotone(claim, *, model=None, seed: int | None = None):
    """Does the target rise with the dose? One row a scale, one column an emotion, with random and shuffled controls.

    >>> fig = claim_monotone(claims["monotone"])                   # doctest: +SKIP

    claim: from `claims.monotone`. Lines are means over queries, bands 95 % intervals over queries. The thick segment is
    the slope at 0 (|dose| <= 1); the dotted line the first significant drop.
    """
    with theme():
        fig, panels = _emotion_grid(claim, "monotone")
        looks = emotion_kwargs(emotion for _, emotion in panels)
        for (scale, emotion), (ax, own) in panels.items():
            _curve(ax, own, "none", looks[emotion])
            for control in ("random", "shuffled"):
                _curve(ax, own, control, _LINES[control])
            found = claim.evidence[scale]["emotions"][emotion]
            zero = own[(own["control"] == "none") & (own["alpha"] == 0)]["value"].iloc[0]
            at = [max(-1.0, own["alpha"].min()), min(1.0, own["alpha"].max())]
            rise = [zero + found["slope"][0] * a for a in at]
            ax.plot(at, rise, color=INK, linewidth=2.5, solid_capstyle="butt", label="slope at 0", zorder=4)
            if found["alpha_star"] is not None:
                ax.axvline(found["alpha_star"], color=INK, linestyle=":", label="first significant drop")
        return _finished(fig, claim, "Does the target emotion rise with the dose?", model, seed)


def claim_preservation(claim, *, model=None, seed: int | None = None):
    """How far steered text drifts as the dose grows, and how much further than with controls of equal norm.

    >>> fig = claim_preservation(claims["preservation"])           # doctest: +SKIP

    claim: from `claims.preservation`. Above: the drift of the vector and its controls, mean over emotions, with the
    exponent of its growth up to dose 1; dashed, the instructed answers. Below: the vector minus each control. Bands and
    bars: 95 % intervals over queries. The shaded strip is what counts as no more than random.
    """
    from emolab.comparisons.claims import MARGIN

    _check(claim, "preservation")
    table, controls = claim.table, [c for c in ("none", *_LINES) if c in set(claim.table["control"])]
    doses = sorted(table.loc[table["alpha"] > 0, "alpha"].unique())
    with theme():
        fig, axes = new_figure(2, 3, width=1.0, height=6.4, grid={"sharex": True})
        for (measure, title), (top, low) in zip(_MEASURES.items(), axes.T, strict=True):
            own = table[table["measure"] == measure]
            for control in controls:
                rows = own[own["control"] == control].sort_values("alpha")
                style = _LINES.get(control, {"color": INK, "marker": "o", "linewidth": 1.8, "zorder": 3})
                top.plot(rows["alpha"], rows["value"], label=_NAMES[control], **style)
                if control in ("none", "random"):
                    top.fill_between(
                        rows["alpha"], rows["lo"], rows["hi"], color=style["color"], alpha=0.2, linewidth=0
                    )
                if control != "none":
                    low.plot(rows["alpha"], rows["minus"], **style)
                    low.vlines(rows["alpha"], rows["minus_lo"], rows["minus_hi"], color=style["color"], linewidth=1)
            told = own.loc[own["control"] == "prompt", "value"]
            if len(told):
                top.axhline(told.iloc[0], color=INK, linestyle=":", linewidth=2, label="instructed answers")
            slope = claim.evidence[measure]["slope"]
            note = "\n".join(f"{_NAMES[c]}: {_power(slope[c])}" for c in ("none", "random"))
            note += "\nno evidence alone" if measure == "kl" else ""
            top.text(0.03, 0.97, note, transform=top.transAxes, va="top", fontsize="small", color=INK)
            top.set_title(title)
            low.axhline(0, color=INK, linewidth=0.8)
            if measure == "topic":
                low.axhspan(-MARGIN, MARGIN, color=GREY, alpha=0.2, linewidth=0)
            low_end, high_end = top.get_ylim()  # room for the note
            if measure == "kl":
                top.set_yscale("log")
                top.set_ylim(top=high_end * 500)
                log_axis(top)
            else:
                top.set_ylim(top=high_end + 0.25 * (high_end - low_end))
            for ax in (top, low):
                ax.set_xscale("log")
                ax.xaxis.set_major_locator(FixedLocator(doses))
                ax.xaxis.set_minor_locator(NullLocator())
                ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            low.set_xlabel("dose α")
        axes[0, 0].set_ylabel("drift")
        axes[0, 2].set_ylabel("nats")
        axes[1, 0].set_ylabel("vector minus control")
        question = "Does steering keep the topic as well as a random push of equal norm?"
        return _finished(fig, claim, question, model, seed)


def claim_linear(claim, *, model=None, seed: int | None = None):
    """Is the effect a line in the dose? Means on logit scales with the lines fitted within 1, 2 and 4, and their R2.

    >>> fig = claim_linear(claims["linear"])                       # doctest: +SKIP

    claim: from `claims.linear`. Bars are 95 % intervals over queries; the grey band is the random direction.
    """
    with theme():
        fig, panels = _emotion_grid(claim, "linear")
        looks = emotion_kwargs(emotion for _, emotion in panels)
        for (scale, emotion), (ax, own) in panels.items():
            _curve(ax, own, "random", _LINES["random"])
            rows = own[own["control"] == "none"].sort_values("alpha")
            ax.vlines(rows["alpha"], rows["lo"], rows["hi"], color=looks[emotion]["color"], linewidth=1)
            ax.plot(
                rows["alpha"],
                rows["value"],
                linestyle="none",
                label=_NAMES["none"],
                **looks[emotion],
            )
            notes = []
            for reach, style in (("1", "-"), ("2", "--"), ("4", ":")):
                if reach in claim.evidence[scale][emotion]:
                    fitted = rows.dropna(subset=f"line_{reach}")
                    ax.plot(
                        fitted["alpha"],
                        fitted[f"line_{reach}"],
                        color=INK,
                        linestyle=style,
                        label=f"line within {reach}",
                    )
                    notes.append(f"{reach}: {_number(claim.evidence[scale][emotion][reach]['r2'][0])}")
            note = "R² within " + "\n".join(notes)
            ax.text(0.04, 0.97, note, transform=ax.transAxes, va="top", fontsize="small", color=INK)
            ax.margins(y=0.25)
        return _finished(fig, claim, "Is the effect on the logit scale a line in the dose?", model, seed)


def claim_additive(claim, *, model=None, seed: int | None = None):
    """Do two emotions at once do what either does alone, summed?

    >>> fig = claim_additive(claims["additive"])                   # doctest: +SKIP

    claim: from `claims.additive`. Above, one point a pair and target, in the target's colour; on the line effects add.
    Below, small points are pairs and targets, large ones their mean with its 95 % interval over queries.
    """
    _check(claim, "additive")
    table = claim.table.assign(sum=claim.table["gain"] + claim.table["other"])
    kinds = {"whole": "o", "specific": "s", "random": "X"}
    scales = list(dict.fromkeys(table["scale"]))
    with theme():
        grid = {"gridspec_kw": {"height_ratios": [2.2, 1]}}
        fig, axes = new_figure(2, len(scales), width=min(1.0, 0.3 + 0.35 * len(scales)), height=6.6, grid=grid)
        looks = emotion_kwargs(table["target"].dropna())
        for scale, (top, low) in zip(scales, axes.T, strict=True):
            own = table[(table["scale"] == scale) & (table["pair"] != "all")]
            pooled = table[(table["scale"] == scale) & (table["pair"] == "all")].set_index("kind")
            ends = [min(own["sum"].min(), own["joint"].min()), max(own["sum"].max(), own["joint"].max())]
            top.plot(ends, ends, color=INK, linewidth=1, label="joint = sum")
            for row, (kind, marker) in enumerate(kinds.items()):
                cells = own[own["kind"] == kind]
                colors = [GREY if kind == "random" else looks[t]["color"] for t in cells["target"]]
                top.scatter(
                    cells["sum"], cells["joint"], c=colors, marker=marker, edgecolor=INK, linewidth=0.4, zorder=3
                )
                top.scatter([], [], color="white", marker=marker, edgecolor=INK, label=_KINDS[kind])
                low.scatter(cells["coefficient"], [row] * len(cells), c=colors, s=12, marker=marker, linewidth=0)
                if kind in pooled.index:
                    mean = pooled.loc[kind]
                    low.plot(
                        [mean["coefficient_lo"], mean["coefficient_hi"]], [row, row], color=INK, solid_capstyle="butt"
                    )
                    low.plot(mean["coefficient"], row, marker=marker, color=INK)
            for target in order(own["target"]):
                top.scatter([], [], color=looks[target]["color"], marker="o", label=target)
            title = _SCALES.get(str(scale), str(scale))
            top.set(title=title.replace("\n", " "), xlabel="sum of the two single effects")
            low.axvline(0, color=INK, linewidth=0.8)
            low.set_yticks(range(len(kinds)), [_KINDS[k] for k in kinds])
            low.set(ylim=(len(kinds) - 0.5, -0.5), xlabel="interaction, per dose times dose")
        axes[0, 0].set_ylabel("joint effect")
        return _finished(fig, claim, "Do two emotions at once add up?", model, seed)


def _emotion_grid(claim, name: str):
    """Figure and {(scale, emotion): (axes, rows)}, with titles and labels."""
    _check(claim, name)
    table = claim.table
    scales, emotions = list(dict.fromkeys(table["scale"])), order(table["emotion"])
    shape = {"least": 0.6, "base": 1.9, "each": 2.0, "sharex": "row"}
    fig, axes, side_by_side = emotion_grid(len(scales), len(emotions), **shape)
    panels = {}
    for row, scale in enumerate(scales):
        for column, emotion in enumerate(emotions):
            ax = axes[row, column]
            panels[scale, emotion] = ax, table[(table["scale"] == scale) & (table["emotion"] == emotion)]
            ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            ax.axhline(0, color=INK, linewidth=0.5)
        for ax in axes[row, ::side_by_side]:
            ax.set_ylabel(_SCALES.get(scale, scale))
    for column, emotion in enumerate(emotions):
        panel_title(axes[0, column], emotion, side_by_side)
        axes[-1, column].set_xlabel("dose α")
    return fig, panels


def _curve(ax, own: pd.DataFrame, control: str, style: dict) -> None:
    """Mean and band of one control, or ("none") of the vector itself."""
    rows = own[own["control"] == control].sort_values("alpha")
    if control != "shuffled":
        ax.fill_between(rows["alpha"], rows["lo"], rows["hi"], color=style["color"], alpha=0.25, linewidth=0)
    ax.plot(rows["alpha"], rows["value"], label=_NAMES[control], zorder=3 if control == "none" else 2, **style)


def _check(claim, name: str) -> None:
    if getattr(claim, "name", None) != name:
        found = getattr(claim, "name", type(claim).__name__)
        raise EmolabError(f"this figure shows the claim {name!r}, not {found!r}; it takes what claims.{name} returns")


def _finished(fig, claim, question: str, model, seed: int | None):
    """The question and the verdict as title, under it the condition and the legend of all panels."""
    handles: dict = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    size, columns = mpl.rcParams["font.size"], min(len(handles), 5)
    letters = int(fig.get_figwidth() * 72 / (0.55 * size))
    while columns > 1 and sum(len(label) + 6 for label in list(handles)[:columns]) > letters:
        columns -= 1
    title, told = (
        textwrap.wrap(f"{question} {claim.verdict.capitalize()}.", letters),
        textwrap.wrap(claim.condition, letters),
    )
    rows = len(told) + -(-len(handles) // columns)
    fig.suptitle("\n".join(title) + "\n" * (rows + 1), fontweight="bold")  # the empty lines keep the place
    line = 1.4 * size / 72 / fig.get_figheight()
    below = 0.99 - len(title) * 1.1 * line
    fig.text(0.5, below, "\n".join(told), ha="center", va="top", fontsize="small", linespacing=1.3)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, below - len(told) * line), "borderaxespad": 0.2}
    fig.legend(handles.values(), handles.keys(), ncols=columns, **place)
    params = {"verdict": claim.verdict, "condition": claim.condition}
    counts = sorted({int(n) for n in claim.table["n"].dropna()})
    n = f"{counts[0]} queries" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} queries"
    # Not drawn, and a ratio of small numbers, whose last digits another processor does not repeat.
    data = claim.table.drop(columns=["share", "share_lo", "share_hi"], errors="ignore")
    return finish(fig, data, function=f"claim_{claim.name}", model=model, n=n, seed=seed, params=params)


def _bounds(x) -> str:
    return f"{_number(x[0])} [{_number(x[1])}, {_number(x[2])}]"


def _power(x) -> str:
    """The exponent of the dose with its bounds; drift that is nowhere above zero has none."""
    return "no rise" if x[0] is None else f"dose^{_bounds(x)}"


def _number(x) -> str:
    return "?" if x is None else f"{x:.2g}" if abs(x) >= 1 else f"{x:.2f}"
