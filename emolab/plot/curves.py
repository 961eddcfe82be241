"""Curves over layers: what emotions share, how reliable vectors are, and how well probes read emotions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, NullLocator

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.plot.maps import finish_about, no_heads, tables_of
from emolab.plot.style import GREY, INK, emotion_kwargs, layer_axis, new_figure, side_legend, theme, top_legend

_PROBES = {"centroid": ("nearest centroid", INK, "o"), "logistic": ("logistic", "#56B4E9", "s")}


def shared_energy_curve(tables, *, model=None, seed: int | None = None):
    """Share of the vectors' energy that all emotions have in common, by layer, between its two yardsticks.

    >>> tables = {site: geometry.shared_energy(means, site=site) for site in ("resid", "attn")}
    >>> fig = shared_energy_curve(tables)

    tables: from `geometry.shared_energy`, one or {title: table}, one panel each.
    """
    columns = ("layer", "share", "lo", "hi", "null_mean", "null_lo", "null_hi", "floor")
    tables = tables_of(tables, columns, "geometry.shared_energy")
    with theme():
        fig, axes = _row(len(tables))
        for ax, (title, table) in zip(axes, tables.items(), strict=True):
            no_heads(table)
            label = "emotion labels permuted: nothing specific"
            ax.fill_between(table.layer, table.null_lo, table.null_hi, color=GREY, alpha=0.45, linewidth=0, label=label)
            ax.plot(table.layer, table.null_mean, color=GREY)
            ax.fill_between(table.layer, table.lo, table.hi, color=INK, alpha=0.25, linewidth=0)
            ax.plot(table.layer, table.share, color=INK, marker="o", label="shared by all emotions (95 % interval)")
            ax.plot(
                table.layer, table.floor, color=INK, linestyle=":", label=f"orthogonal vectors, 1/k = {_floor(table)}"
            )
            ax.set(ylim=(0, 1.03), title=title or "Shared by all emotions")
            layer_axis(ax, int(table.layer.max()) + 1)
        axes[0].set_ylabel("share of energy")
        _legend(fig, axes[0])
        return _done(fig, tables, "shared_energy_curve", model, seed)


def reliability_curve(tables, *, model=None, seed: int | None = None):
    """Cosine between vectors from two halves of the queries, by layer; the band is the middle 95 % of random halves.

    >>> parts = {p: geometry.split_half(means, part=p) for p in ("whole", "specific")}
    >>> fig = reliability_curve(parts)

    tables: from `reliability.split_half`, one or {title: table}. Grey: with the conditions shuffled within each query.
    """
    columns = ("layer", "emotion", "cosine", "lo", "hi", "null_lo", "null_hi")
    tables = tables_of(tables, columns, "reliability.split_half")
    with theme():
        fig, axes = _row(len(tables))
        for ax, (title, table) in zip(axes, tables.items(), strict=True):
            no_heads(table)
            null = table.groupby("layer")[["null_lo", "null_hi"]].mean()
            ax.fill_between(
                null.index, null.null_lo, null.null_hi, color=GREY, alpha=0.3, linewidth=0, label="shuffled labels"
            )
            ax.axhline(0, color=INK, linewidth=0.6)
            _emotion_lines(ax, table, "layer", _dodge(table["emotion"]))
            ax.set(ylim=(-1.03, 1.03), title=title or "Agreement of two halves of the queries")
            layer_axis(ax, int(table.layer.max()) + 1)
        axes[0].set_ylabel("cosine between halves")
        _legend(fig, axes[0])
        return _done(fig, tables, "reliability_curve", model, seed)


def convergence_curve(tables, *, model=None, seed: int | None = None):
    """Cosine between vectors from n queries and from n others, against n; bands are the middle 95 % of draws.

    >>> fig = convergence_curve(geometry.convergence(means, layer=3))

    tables: from `reliability.convergence`, one or {title: table}.
    """
    columns = ("n", "emotion", "cosine", "lo", "hi")
    tables = tables_of(tables, columns, "reliability.convergence")
    low = np.floor(10 * min(float(table["lo"].min()) for table in tables.values())) / 10
    with theme():
        fig, axes = _row(len(tables))
        for ax, (title, table) in zip(axes, tables.items(), strict=True):
            _emotion_lines(ax, table, "n")
            sizes = sorted(table["n"].unique())
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(FixedLocator(sizes))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.set(ylim=(low - 0.01, 1.01), xlabel="queries in each of two studies", title=title or "Convergence")
        axes[0].set_ylabel("cosine between studies")
        _legend(fig, axes[0])
        return _done(fig, tables, "convergence_curve", model, seed)


def agreement_curve(tables, *, model=None, seed: int | None = None):
    """Cosine between two sets of vectors of the same emotions, by layer: one's own beside imported ones.

    >>> table = geometry.vector_agreement(ours, theirs, site="attn", part="specific")
    >>> fig = agreement_curve({"specific": table})

    tables: from `interop.agreement`, one or {title: table}. Dashed: mean cosine between different emotions, what any
    emotion would give. Grey band: 95 % of random directions.
    """
    columns = ("layer", "emotion", "cosine", "mismatched", "random")
    tables = tables_of(tables, columns, "interop.agreement")
    with theme():
        fig, axes = _row(len(tables))
        for ax, (title, table) in zip(axes, tables.items(), strict=True):
            by_layer = table.groupby("layer")[["mismatched", "random"]].mean()
            band = {"color": GREY, "alpha": 0.3, "linewidth": 0, "label": "random directions"}
            ax.fill_between(by_layer.index, -by_layer["random"], by_layer["random"], **band)
            ax.axhline(0, color=INK, linewidth=0.6)
            if by_layer["mismatched"].notna().any():
                ax.plot(by_layer.index, by_layer["mismatched"], color=INK, linestyle="--", label="different emotions")
            shift = _dodge(table["emotion"])
            for label, kwargs in emotion_kwargs(order(table["emotion"])).items():
                rows = table[table["emotion"] == label].sort_values("layer")
                ax.plot(rows["layer"] + shift[label], rows["cosine"], label=label, **kwargs)
            ax.set(ylim=(-1.03, 1.03), title=title.capitalize() or "Agreement of two sets of vectors")
            layer_axis(ax, int(table["layer"].max()) + 1)
        axes[0].set_ylabel("cosine")
        _legend(fig, axes[0])
        return _done(fig, tables, "agreement_curve", model, seed)


def probe_curve(
    table: pd.DataFrame,
    *,
    words: pd.DataFrame | None = None,
    probe: str | None = None,
    model=None,
    seed: int | None = None,
):
    """Accuracy on held-out queries by layer: all conditions with both probes, and beside it each condition with one.

    >>> fig = probe_curve(geometry.probe_accuracy(means, test=heldout))

    words: from `reliability.word_accuracy`, drawn as a line: what the words of the answers tell without any model.
    probe: which one the right panel shows, default the last of the table. Bands: 95 % intervals over queries.
    """
    columns = ("layer", "probe", "emotion", "accuracy", "lo", "hi", "chance", "p")
    need_table(table, columns, "reliability.probe_accuracy")
    no_heads(table)
    probes = list(dict.fromkeys(table["probe"]))
    probe = str(probes[-1]) if probe is None else probe
    if probe not in probes:
        raise EmolabError(f"no probe {probe!r} in the table; it holds {', '.join(probes)}")
    every, n_layers = table[table["emotion"] == "all"], int(table["layer"].max()) + 1
    with theme():
        fig, axes = new_figure(1, 2, width=1.0, height=3.8, grid={"sharey": True})
        left, right = axes[0]
        for name in probes:
            rows = every[every["probe"] == name]
            label, color, marker = _PROBES.get(name, (name, GREY, "o"))
            left.fill_between(rows.layer, rows.lo, rows.hi, color=color, alpha=0.25, linewidth=0)
            left.plot(rows.layer, rows.accuracy, color=color, marker=marker, label=label)
        chance = every.groupby("layer")["chance"].mean()
        left.plot(chance.index, chance, color=GREY, linestyle="--", label="chance (shuffled labels)")
        if words is not None:
            row = words[words["emotion"] == "all"].iloc[0]
            left.axhline(row.accuracy, color=INK, linestyle="-.", label="words of the answers")
        worst = every["p"].max()
        left.text(
            0.98, 0.06, f"permutation p ≤ {worst:.2g} at every layer", transform=left.transAxes, ha="right",
            color="#6B6B6B", fontsize="small", bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        )  # fmt: skip
        left.set(ylim=(-0.03, 1.04), ylabel="accuracy, held-out queries", title="All conditions")
        own = table[(table["probe"] == probe) & (table["emotion"] != "all")]
        shift = _dodge(own["emotion"])
        for label, kwargs in emotion_kwargs(order(own["emotion"])).items():
            rows = own[own["emotion"] == label]
            x = rows.layer + shift[label]
            right.fill_between(x, rows.lo, rows.hi, color=kwargs["color"], alpha=0.15, linewidth=0)
            right.plot(x, rows.accuracy, label=label, **kwargs)
        right.set_title(f"Recognised answers of each condition ({_PROBES.get(probe, (probe,))[0]})")
        for ax in (left, right):
            layer_axis(ax, n_layers)
        handles = [(h, t) for ax in (left, right) for h, t in zip(*ax.get_legend_handles_labels(), strict=True)]
        side_legend(fig, *zip(*handles, strict=True))
        data = table if words is None else pd.concat([table, words], ignore_index=True)
        return finish_about(fig, data.copy(), table, "probe_curve", model=model, seed=seed)


def denoise_curve(table: pd.DataFrame, *, model=None, seed: int | None = None):
    """What is left of the vectors, and of their specific parts, without the components of neutral answers.

    >>> clean = geometry.denoise(vectors, means)
    >>> fig = denoise_curve(geometry.denoise_effect(vectors, clean))
    """
    need_table(table, ("emotion", "layer", "kept", "specific_kept"), "geometry.denoise_effect")
    panels = {"kept": "Whole vectors: norm left", "specific_kept": "Specific part: norm left"}
    with theme():
        fig, axes = _row(2)
        for ax, (column, title) in zip(axes, panels.items(), strict=True):
            for label, kwargs in emotion_kwargs(order(table["emotion"])).items():
                rows = table[table["emotion"] == label]
                ax.plot(rows.layer, rows[column], label=label, **kwargs)
            ax.set(ylim=(0, 1.03), title=title)
            layer_axis(ax, int(table.layer.max()) + 1)
        axes[0].set_ylabel("share of the norm")
        _legend(fig, axes[0])
        return finish_about(fig, table.copy(), table, "denoise_curve", model=model, seed=seed)


def _row(n: int):
    fig, axes = new_figure(1, n, width=1.0 if n > 1 else 0.75, height=3.8, grid={"sharey": True})
    return fig, axes[0]


def _dodge(labels, width: float = 0.3) -> dict[str, float]:
    """A small step aside for each label, so that equal lines stay visible beside each other."""
    labels = order(labels)
    return dict(zip(labels, np.linspace(-width / 2, width / 2, len(labels)), strict=True))


def _emotion_lines(ax, table: pd.DataFrame, x: str, shift: dict[str, float] | None = None) -> None:
    for label, kwargs in emotion_kwargs(order(table["emotion"])).items():
        rows = table[table["emotion"] == label].sort_values(x)
        at = rows[x] + (shift or {}).get(label, 0)
        ax.fill_between(at, rows.lo, rows.hi, color=kwargs["color"], alpha=0.2, linewidth=0)
        ax.plot(at, rows.cosine, label=label, **kwargs)


def _floor(table: pd.DataFrame) -> str:
    return f"{np.mean(table['floor']):.2g}"


def _legend(fig, ax) -> None:
    handles, labels = ax.get_legend_handles_labels()
    room = 120 if len(fig.axes) > 1 else 80  # letters beside each other
    fits = sum(len(text) + 8 for text in labels) <= room
    columns = len(labels) if fits else 1
    if len(labels) > 6 and not fits:  # many short ones: several rows
        columns = max(1, room // (max(map(len, labels)) + 8))
    top_legend(fig, handles, labels, columns, columnspacing=1.2)


def _done(fig, tables, function, model, seed):
    frames = [t if not title else t.assign(panel=title) for title, t in tables.items()]
    data = pd.concat(frames, ignore_index=True)
    params = {"panels": [title for title in tables if title]}
    return finish_about(fig, data, next(iter(tables.values())), function, model=model, seed=seed, params=params)
