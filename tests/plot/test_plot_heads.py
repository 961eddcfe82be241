"""Figures of heads carry their inputs, and look the same for any labels and any number of heads."""

import numpy as np
import pandas as pd
import pytest

from emolab.base.errors import EmolabError
from emolab.plot.attention import attention_bars, attention_html, words_table
from emolab.plot.causal import ablation_curve, head_forest
from emolab.plot.heads import head_cosine_map, head_map, head_umap

EMOTIONS = ("anger", "joy", "calm")
ABOUT = {"model": {"name": "mini"}, "n": "12 queries", "seed": 4, "params": {"test": "ablate"}}


def effects(n_layers=3, n_heads=4, emotions=EMOTIONS, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [(x, h, e) for x in range(n_layers) for h in range(n_heads) for e in emotions]
    table = pd.DataFrame(rows, columns=["layer", "head", "emotion"])
    table["effect"] = rng.normal(size=len(table))
    table["share"] = -table["effect"] / 4
    table["lo"], table["hi"] = table["effect"] - 0.2, table["effect"] + 0.2
    table["norm"], table["probe"], table["chance"] = table["effect"].abs(), 0.5, 0.25
    table["q"] = rng.uniform(size=len(table)) ** 3
    table["random_direction"], table["other_heads"], table["test"], table["measure"] = 0.01, -0.02, "ablate", "words"
    table.attrs["about"] = ABOUT
    return table


def curves() -> pd.DataFrame:
    rows = [
        (e, o, k, kept, kept - 0.1, kept + 0.1)
        for e in (*EMOTIONS, "all")
        for o, slope in (("ranked", 0.2), ("random_heads", 0.01), ("random_direction", 0.0))
        for k in (0, 1, 2, 4)
        for kept in (1 - slope * k,)
    ]
    table = pd.DataFrame(rows, columns=["emotion", "order", "k", "kept", "lo", "hi"])
    table.attrs["about"] = ABOUT
    return table


def test_map_shows_every_head():
    table = effects()
    fig = head_map(table, "share")
    joy = fig.axes[1].images[0].get_array()
    assert joy.shape == (3, 4) and fig.axes[1].get_title(loc="left") == "joy"
    wanted = table[(table.emotion == "joy") & (table.layer == 2) & (table["head"] == 1)]["share"].item()
    assert joy[2, 1] == pytest.approx(wanted)
    low, high = fig.axes[1].images[0].get_clim()
    assert low == -high == pytest.approx(-table["share"].abs().max())
    dots = fig.axes[1].collections[0].get_offsets()
    assert len(dots) == (table[table.emotion == "joy"]["q"] < 0.05).sum()
    assert fig.emolab_info["seed"] == 4 and fig.emolab_info["model"]["name"] == "mini"
    assert len(fig.emolab_data) == len(table)


@pytest.mark.parametrize("shape", [(1, 1, ("joy",)), (28, 24, tuple("abcdefg"))])
def test_map_of_any_size(shape):
    table = effects(*shape)
    for value in ("norm", "probe", "effect"):
        assert head_map(table, value).axes[0].images[0].get_array().shape == shape[:2]


def test_map_refuses_what_the_table_lacks():
    with pytest.raises(EmolabError, match="split_half"):
        head_map(effects(), "split_half")


def test_forest_shows_the_largest_effects():
    table = effects()
    fig = head_forest(table, top=3)
    for emotion, own in fig.emolab_data.groupby("emotion"):
        best = table[table.emotion == emotion]["effect"].abs().nlargest(3)
        np.testing.assert_allclose(own["effect"].abs(), best)
    with pytest.raises(EmolabError, match="mixes test"):
        head_forest(pd.concat([table, table.assign(test="patch")]))


def test_curve():
    fig = ablation_curve(curves())
    lines = {line.get_label(): line for line in fig.axes[3].lines}
    np.testing.assert_allclose(lines["ranked heads"].get_ydata(), [1, 0.8, 0.6, 0.2])
    assert fig.axes[3].get_title(loc="left") == "mean of all" and len(fig.legends[0].get_texts()) == 3
    with pytest.raises(EmolabError, match="comes from emolab.ablation_curve"):
        ablation_curve(effects())


def test_cosine_map_by_layer_and_by_likeness():
    names = [f"{x}.{h}" for x in range(4) for h in range(5)]
    x = np.random.default_rng(0).normal(size=(20, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    table = pd.DataFrame(x @ x.T, names, names)
    for cluster in (False, True):
        data = head_cosine_map(table, emotion="joy", cluster=cluster).emolab_data
        found = data.set_index(["head", "other"])["cosine"]
        assert found["1.2", "3.4"] == pytest.approx(table.loc["1.2", "3.4"]) and len(data) == 400
    table.loc["0.0"] = table["0.0"] = np.nan
    head_cosine_map(table, emotion="joy", cluster=True)


def test_umap():
    rng = np.random.default_rng(0)
    rows = [(x, h, e, m) for x in range(2) for h in range(3) for e in EMOTIONS for m in ("pca", "umap")]
    table = pd.DataFrame(rows, columns=["layer", "head", "emotion", "method"])
    table["x"], table["y"] = rng.normal(size=(2, len(table)))
    table["norm"], table["trustworthiness"] = rng.uniform(size=len(table)), 0.8
    fig = head_umap(table, largest=6)
    assert [ax.get_title(loc="left") for ax in fig.axes[:2]] == [
        "PCA, trustworthiness 0.80",
        "UMAP, trustworthiness 0.80",
    ]
    assert len(fig.axes[2].texts) == 6
    head_umap(table[table.method == "pca"])


def test_bars_sum_to_one():
    rows = [
        (0, h, e, r, s, s, s, 0.25)
        for h in (0, 1)
        for e in EMOTIONS
        for r, s in (("bos", 0.1), ("emotion word", 0.2), ("query", 0.3), ("answer: rest", 0.4))
    ]
    table = pd.DataFrame(rows, columns=["layer", "head", "emotion", "region", "share", "lo", "hi", "uniform"])
    fig = attention_bars(table)
    ends = [patch.get_x() + patch.get_width() for patch in fig.axes[0].patches]
    assert max(ends) == pytest.approx(1) and len(ends) == 4 * 3
    with pytest.raises(EmolabError, match="no emotion"):
        attention_bars(table, emotion="fear")


def test_html_is_escaped():
    rows = [
        (1, "<b>", 0, "a", 0.5),
        (1, "<b>", 1, "<script>", 0.5),
        (2, "c", 0, "a", 0.1),
        (2, "c", 1, "<script>", 0.2),
    ]
    rows.append((2, "c", 2, "<b>", 0.7))
    table = pd.DataFrame(rows, columns=["from_position", "next_token", "position", "token", "weight"])
    html = attention_html(table)
    assert "<script>" not in html and "&lt;script&gt;" in html and html._repr_html_() == str(html)
    assert 'title="0.350"' in html and 'title="0.700"' in attention_html(table, position=2)
    with pytest.raises(EmolabError, match="no position 9"):
        attention_html(table, position=9)


def test_table_of_words():
    rows = [
        (p, e, 3, -1, d, r, f"<{e}{r}>", 1.0)
        for p, e in (("whole", "joy"), ("shared", "shared"), ("specific", "joy"), ("specific", "anger"))
        for d in ("raised", "lowered")
        for r in (1, 2, 3)
    ]
    table = pd.DataFrame(rows, columns=["part", "emotion", "layer", "head", "direction", "rank", "token", "logit"])
    style = words_table(table, n=2)
    assert list(style.data["emotion"]) == ["joy", "shared", "anger", "joy"]
    assert style.data["raised"][0] == "<joy1> · <joy2>" or "<joy1> · <joy2>" in set(style.data["raised"])
    assert "<joy1>" not in style.to_html() and "&lt;joy1&gt;" in style.to_html()
    with pytest.raises(EmolabError, match="lacks part"):
        words_table(table.drop(columns="part"))
