"""Figures of sweeps over settings: the numbers they carry, from tables made by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.plot.style import GREY, theme
from emolab.plot.sweeps import fade_curve, layer_curve, mixture_map, site_map

LABELS = [*EMOTIONS, NEUTRAL]
FIXED = {"site": "attn", "layers": "all", "part": "whole", "op": "add", "unit": "vector"}
FIXED |= {"positions": "generated", "heads": "all", "fade": math.inf}
N = 8


def texts(emotion: str, hits: int, *, alpha=4.0, control="none", **fields) -> list[dict]:
    """N scored texts, the first `hits` of which are read as the target (of a mixture: as its emotions in turn)."""
    own = [w for w in emotion.split() if w in EMOTIONS] or [emotion]
    rows = []
    for q in range(N):
        top = own[q % len(own)] if q < hits else NEUTRAL
        p = {f"p_{label}": 0.9 if label == top else 0.02 for label in LABELS}
        about = {"query_id": f"q{q}", "situation": f"s{q}", "emotion": emotion, "alpha": alpha, "control": control}
        rows.append({**about, **FIXED, **fields, **p, "adherence": 0.5, "distinct2": 0.1 * hits})
    return rows


def layers_table(emotions=EMOTIONS, n_layers=3) -> pd.DataFrame:
    """Layer l hits in 2 l + 1 of 8 texts, a random direction in one, all layers at once in all."""
    rows = []
    for e in emotions:
        for layer in range(n_layers):
            rows += texts(e, 0, alpha=0.0, layers=str(layer))
            rows += texts(e, 2 * layer + 1, layers=str(layer)) + texts(e, 1, control="random", layers=str(layer))
        rows += texts(e, 0, alpha=0.0) + texts(e, N)
    return pd.DataFrame(rows)


def wilson(hits: int) -> tuple[float, float]:
    found = binomtest(hits, N).proportion_ci(method="wilson")
    return found.low, found.high


def test_layer_curve_carries_shares_and_intervals():
    fig = layer_curve(layers_table(), model="mini", seed=0)
    data = fig.emolab_data
    own = data[(data["emotion"] == "joy") & data["layer"].notna()].set_index(["control", "layer"])
    for layer in range(3):
        cell = own.loc[("none", layer)]
        assert cell["value"] == (2 * layer + 1) / N and cell["n"] == N
        np.testing.assert_allclose((cell["low"], cell["high"]), wilson(2 * layer + 1))
        assert own.loc[("random", layer), "value"] == 1 / N
    others = data[data["layer"].isna() & (data["emotion"] == "joy")].set_index("kind")["value"]
    assert others.to_dict() == {"all layers at once": 1.0, "unsteered": 0.0}
    panels = [ax for ax in fig.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in panels] == list(EMOTIONS)
    lines = {line.get_label(): line for line in panels[3].get_lines()}
    np.testing.assert_allclose(lines["emotion vector"].get_ydata(), [1 / 8, 3 / 8, 5 / 8])
    assert lines["random direction"].get_color() == GREY and list(lines["unsteered"].get_ydata()) == [0, 0]
    assert fig.emolab_info["n"] == "8 queries, attn, dose 4" and fig.emolab_info["params"]["alpha"] == "4.0"


def test_layer_curve_of_other_labels_gives_each_its_own_look():
    table = layers_table(["calm", "pride", *"abcdef"]).drop(columns=[f"p_{e}" for e in EMOTIONS])
    for label in ("calm", "pride", *"abcdef"):
        table[f"p_{label}"] = 0.0
    fig = layer_curve(table)
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert len(shown) == 8 and len(fig.axes) == 10, "two rows of five, two of them empty"
    colors = {ax.get_lines()[1].get_color() for ax in shown}
    assert len(colors) == 8


def test_a_situation_counts_once_in_the_intervals():
    table = layers_table(["joy"])
    both = layer_curve(table.assign(situation=table["query_id"].map(lambda q: f"s{int(q[1]) // 4}"))).emolab_data
    apart = layer_curve(table).emolab_data
    width = [(d["high"] - d["low"])[d["layer"].notna() & (d["control"] == "none")].mean() for d in (both, apart)]
    assert width[0] > 1.2 * width[1]


def test_site_map_is_the_difference_from_the_control():
    rows = []
    for site, hits, chance in (("resid", 8, 2), ("attn", 3, 3), ("mlp", 0, 4)):
        for e in ("anger", "joy"):
            rows += texts(e, 0, alpha=0.0, site=site) + texts(e, hits - (e == "joy") * (hits > 4), site=site)
            rows += texts(e, chance, control="random", site=site) + texts(e, N, control="other", site=site)
    data = site_map(pd.DataFrame(rows)).emolab_data.set_index(["setting", "emotion"])
    assert list(dict.fromkeys(data.index.get_level_values(0))) == ["resid", "attn", "mlp"], "in the table's order"
    assert data.loc[("resid", "anger"), "value"] == 0.75 and data.loc[("resid", "joy"), "value"] == 0.625
    assert data.loc[("resid", "mean"), "value"] == pytest.approx((0.75 + 0.625) / 2)
    assert data.loc[("mlp", "joy"), "value"] == -0.5
    (low, high), (below, above) = wilson(8), wilson(2)
    expected = 0.75 - math.hypot(1 - low, above - 0.25), 0.75 + math.hypot(high - 1, 0.25 - below)
    np.testing.assert_allclose(data.loc[("resid", "anger"), ["low", "high"]].astype(float), expected)
    same = data.loc[("attn", "anger")]
    assert same["low"] < -0.2 and same["high"] > 0.2, "three of eight against three of eight says little"
    assert site_map(pd.DataFrame(rows), control="other").emolab_data["value"].max() == 0
    with pytest.raises(EmolabError, match="lacks texts of anger with and without control .shuffled.; sweep with"):
        site_map(pd.DataFrame(rows), control="shuffled")


def test_site_map_names_what_differs():
    rows = []
    for op, alpha, positions in (("add", 1.5, "generated"), ("clamp", 1.0, "all")):
        for control in ("none", "random"):
            rows += texts("joy", 4, op=op, alpha=alpha, positions=positions, control=control)
    fig = site_map(pd.DataFrame(rows))
    assert list(fig.emolab_data["setting"].unique()) == [
        "add · generated tokens · dose 1.5",
        "clamp · all tokens · dose 1",
    ]
    assert fig.axes[0].images[0].get_clim() == (-1, 1)
    one = site_map(pd.DataFrame(rows[: 2 * N]))
    assert list(one.emolab_data["setting"].unique()) == [""] and one.emolab_info["n"] == "8 queries, attn, dose 1.5"


def test_site_map_names_layers_in_a_row_by_their_ends():
    rows = []
    for layers in ("0,1,2,3", "20,21", "0,2,3", "7", "all"):
        for control in ("none", "random"):
            rows += texts("joy", 4, layers=layers, control=control)
    named = ["layers 0-3", "layers 20,21", "layers 0,2,3", "layers 7", "layers all"]
    assert list(site_map(pd.DataFrame(rows)).emolab_data["setting"].unique()) == named
    assert site_map(pd.DataFrame(rows[: 2 * N])).emolab_info["n"] == "8 queries, attn, layers 0-3, dose 4"


def test_mixture_map_tells_mixed_texts_from_mixed_shares():
    half = "0.5 anger + 0.5 joy"
    rows = texts(half, 0, alpha=0.0) + texts(half, N) + texts("joy", N) + texts("joy", 0, control="random")
    told = pd.DataFrame(texts(half, 0, alpha=0.0, control="prompt")).assign(p_anger=0.5, p_joy=0.4, p_neutral=0.02)
    fig = mixture_map(pd.concat([pd.DataFrame(rows), told]))
    data = fig.emolab_data.set_index(["kind", "mixture", "judged"])
    assert data.loc[("none", half, "anger"), "share"] == 0.5 == data.loc[("none", half, "joy"), "share"]
    assert data.loc[("none", half, "joy"), "mixed"] == pytest.approx(2 * 0.02), "every text shows one of them"
    assert data.loc[("prompt", half, "anger"), "share"] == 1.0
    assert data.loc[("prompt", half, "joy"), "mixed"] == pytest.approx(2 * 0.4), "every text shows both"
    assert np.isnan(data.loc[("none", "joy", "joy"), "mixed"]), "one emotion is no mixture"
    assert data.loc[("unsteered", half, NEUTRAL), "share"] == 1.0
    titles = [ax.get_title(loc="left") for ax in fig.axes if ax.get_title(loc="left")]
    assert titles == ["Steered", "Instructed", "Random directions", "In one text"]
    assert fig.axes[0].images[0].get_cmap().name == "cividis"


def test_fade_curve_runs_to_no_fading():
    rows = []
    for fade, hits in ((8.0, 6), (math.inf, 2), (2.0, 4)):
        for e in ("anger", "joy"):
            rows += texts(e, 0, alpha=0.0, fade=fade) + texts(e, hits - 2 * (e == "joy"), fade=fade)
            rows += texts(e, 0, control="random", fade=fade)
    fig = fade_curve(pd.DataFrame(rows))
    data = fig.emolab_data
    own = data[(data["measure"] == "hit") & (data["emotion"] == "mean") & (data["control"] == "none")].set_index("fade")
    assert own["value"].to_dict() == {8.0: 5 / 8, math.inf: 1 / 8, 2.0: 3 / 8}
    anger = data[(data["measure"] == "distinct2") & (data["emotion"] == "anger") & (data["control"] == "none")]
    np.testing.assert_allclose(anger.set_index("fade")["value"].loc[[2.0, 8.0, math.inf]], [0.4, 0.6, 0.2])
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["2", "8", "none"]
    line = next(x for x in fig.axes[0].get_lines() if x.get_label() == "mean of emotions")
    assert list(line.get_xdata()) == [0, 1, 2] and list(line.get_ydata()) == [3 / 8, 5 / 8, 1 / 8]
    assert len(fig.axes) == 3 and len(fade_curve(pd.DataFrame(rows).drop(columns="adherence")).axes) == 2


def test_what_cannot_be_drawn_is_said():
    table = layers_table(["joy"])
    with pytest.raises(EmolabError, match=r"mixes alpha = 2\.0, 4\.0; filter it"):
        layer_curve(pd.concat([table, pd.DataFrame(texts("joy", 1, alpha=2.0, layers="0"))]))
    with pytest.raises(EmolabError, match="mixes site = attn, resid"):
        layer_curve(pd.concat([table, pd.DataFrame(texts("joy", 1, site="resid", layers="0"))]))
    with pytest.raises(EmolabError, match='steers no single layer; sweep with grid={"layers": "each"}'):
        layer_curve(pd.DataFrame(texts("joy", 1)))
    with pytest.raises(EmolabError, match="mixes layers = 0, 1, 2, all"):
        mixture_map(table)
    with pytest.raises(EmolabError, match="the table lacks fade"):
        fade_curve(table.drop(columns="fade"))
    with pytest.raises(EmolabError, match="is empty"):
        site_map(table.head(0))


def test_small_print_follows_the_theme():
    with theme("print"):
        assert layer_curve(layers_table(["joy"])).get_size_inches()[0] == 3.5
