"""Figures of the vectors themselves: how long they are, and which way they point, layer by layer."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_vectors
from emolab.base.labels import order, styles
from emolab.plot.style import (
    GREY,
    INK,
    emotion_kwargs,
    finish,
    layer_axis,
    log_axis,
    name_ticks,
    new_figure,
    side_legend,
    text_on,
    theme,
)

_PARTS = {"whole": "whole vectors", "specific": "specific part", "shared": "shared"}


def norms(vectors, *, site: str = "resid", model=None, seed: int | None = None):
    """Length of each emotion vector by layer, beside the median length of the residual stream, and as a share of it.

    >>> fig = norms(vectors)
    >>> list(fig.emolab_data)
    ['emotion', 'layer', 'norm', 'resid_norm', 'relative']

    vectors: EmotionVectors. site: "resid", "attn" or "mlp". Norms in units of the residual stream, on a log axis.
    The right panel is what alpha 1 with unit="residual" would be worth; imported vectors, which do not know that
    norm, have none. Raises EmolabError for site "head".
    """
    from emolab.geometry.similarity import part_array

    ev, labels = part_array(vectors, site), list(vectors.emotions)
    length = np.linalg.norm(ev, axis=-1)  # [emotion, layer]
    reference = vectors.resid_norm.double().numpy()  # [layer]
    known = bool((reference > 0).all())
    reference = np.where(reference > 0, reference, np.nan)
    layers = np.arange(ev.shape[1])
    with theme():
        fig, axes = new_figure(1, 2 if known else 1, width=1.0 if known else 0.7, height=3.4)
        left, right = axes[0, 0], axes[0, -1]
        if known:
            left.plot(layers, reference, color=GREY, linestyle="--", label="residual stream\n(median, neutral)")
        for label, kwargs in emotion_kwargs(labels).items():
            values = length[labels.index(label)]
            left.plot(layers, values, label=label, **kwargs)
            if known:
                right.plot(layers, values / reference, **kwargs)
        log_axis(left)
        left.set(ylabel="norm", title=f"Norm of the vectors ({site})")
        if known:
            right.set(ylabel="norm / residual norm", title="As a share of the residual stream")
            right.set_ylim(bottom=0)
        for ax in axes[0]:
            layer_axis(ax, len(layers))
        side_legend(fig, *left.get_legend_handles_labels())
        data = pd.DataFrame(
            {
                "emotion": np.repeat(labels, len(layers)),
                "layer": np.tile(layers, len(labels)),
                "norm": length.ravel(),
                "resid_norm": np.tile(reference, len(labels)),
                "relative": (length / reference).ravel(),
            }
        )
        return _finish(fig, data, vectors, "norms", {"site": site}, model, seed)


def cosine_by_layer(vectors, *, site: str = "resid", part: str | None = None, model=None, seed: int | None = None):
    """Cosine of every pair of emotions by layer: of the whole vectors, and beside them of their specific parts.

    >>> fig = cosine_by_layer(vectors, site="attn")
    >>> fig.emolab_data.query("pair == 'mean'")

    part: None for both panels, or "whole" or "specific" for one. The specific parts of k emotions sum to zero, so that
    their mean cosine lies near -1/(k-1) whatever the model does: the dotted line. A pair's line has both colours; more
    than fifteen pairs (seven emotions) are drawn as a band.
    """
    from emolab.geometry.similarity import cosines

    need_vectors(vectors)
    parts = ("whole", "specific") if part is None else (part,)
    labels = order(vectors.emotions)
    if len(labels) < 2:
        raise EmolabError(f"a cosine needs two emotions; these vectors hold {', '.join(labels)}")
    pairs = list(combinations(labels, 2))
    colors = {label: color for label, (color, _) in styles(labels).items()}
    rows = []
    with theme():
        fig, axes = new_figure(1, len(parts), width=1.0 if len(parts) > 1 else 0.7, height=3.6, grid={"sharey": True})
        for ax, name in zip(axes[0], parts, strict=True):
            cosine = cosines(vectors, site=site, part=name)  # [layer, emotion, emotion]
            layers = np.arange(len(cosine))
            ax.axhline(0, color=INK, linewidth=0.6)
            index = {label: list(vectors.emotions).index(label) for label in labels}
            curves = {f"{a} · {b}": cosine[:, index[a], index[b]] for a, b in pairs}
            if len(pairs) > 15:
                low, high = np.quantile(list(curves.values()), [0.05, 0.95], axis=0)
                ax.fill_between(layers, low, high, color=GREY, alpha=0.3, linewidth=0, label="middle 90 % of pairs")
            else:
                for (a, b), (pair, values) in zip(pairs, curves.items(), strict=True):
                    ax.plot(layers, values, color=colors[a], gapcolor=colors[b], linestyle=(0, (3, 3)), label=pair)
            curves["mean"] = np.mean(list(curves.values()), axis=0)
            ax.plot(layers, curves["mean"], color=INK, marker="o", zorder=3, label="mean of all pairs")
            if name == "specific":
                label = "expected of any vectors\nthat sum to zero"
                ax.axhline(-1 / (len(labels) - 1), color=INK, linestyle=":", label=label)
            for pair, values in curves.items():
                rows.append(pd.DataFrame({"part": name, "pair": pair, "layer": layers, "cosine": values}))
            ax.set(ylim=(-1.03, 1.03), title=f"{_title(vectors, name).capitalize()} ({site})")
            layer_axis(ax, len(layers))
        axes[0, 0].set_ylabel("cosine")
        side_legend(fig, *axes[0, -1].get_legend_handles_labels())
        data = pd.concat(rows)
        return _finish(fig, data, vectors, "cosine_by_layer", {"site": site, "parts": list(parts)}, model, seed)


def cosine_map(vectors, layer: int, *, site: str = "resid", part: str = "whole", model=None, seed: int | None = None):
    """Cosine between all emotions at one layer, as a heat map with fixed limits -1 and 1.

    >>> fig = cosine_map(vectors, layer=3, part="specific")

    Values are printed for up to eight emotions. Raises EmolabError for a layer that does not exist.
    """
    from emolab.base.tables import some_layers
    from emolab.geometry.similarity import cosine_matrix

    (layer,) = some_layers(vectors.n_layers, layer)
    labels = order(vectors.emotions)
    cosine = cosine_matrix(vectors, site=site, layer=layer, part=part).loc[labels, labels].to_numpy()
    k = len(labels)
    with theme():
        fig, axes = new_figure(1, 1, width=0.55, height=4.4)
        ax = axes[0, 0]
        image = ax.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1)
        ax.grid(False)
        ax.spines[:].set_visible(False)
        name_ticks(ax, labels, labels, rotation=35)
        if k <= 8:
            text_on(ax, cosine, dark=(-0.6, 0.6), fmt="{:.2f}")
        ax.set_title(f"Cosine of the {_title(vectors, part)}, layer {layer} ({site})", loc="center", pad=10)
        fig.colorbar(image, ax=ax, shrink=0.85, label="cosine", ticks=[-1, -0.5, 0, 0.5, 1])
        data = pd.DataFrame(
            {"emotion": np.repeat(labels, k), "other": np.tile(labels, k), "layer": layer, "cosine": cosine.ravel()}
        )
        return _finish(fig, data, vectors, "cosine_map", {"site": site, "part": part, "layer": layer}, model, seed)


def _title(vectors, part: str) -> str:
    """What is shown; `vectors` may themselves be a part already."""
    return _PARTS[vectors.meta.get("part", "whole") if part == "whole" else part]


def _finish(fig, data, vectors, function, params, model, seed):
    meta = vectors.meta
    if model is None:
        keys = {"name": "model", "revision": "revision", "fingerprint": "fingerprint"}
        model = {key: meta.get(name) for key, name in keys.items()}
    seed = meta.get("seed") if seed is None else seed
    return finish(fig, data, function=function, model=model, n=meta.get("n_responses"), seed=seed, params=params)
