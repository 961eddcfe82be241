"""Shares by layer, setting and mixture, from tables made by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.experiments.shares import instruction_shares, layer_shares, mixture_shares, setting_differences

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


def test_layers_have_shares_and_intervals():
    data = layer_shares(layers_table())
    own = data[(data["emotion"] == "joy") & data["layer"].notna()].set_index(["control", "layer"])
    for layer in range(3):
        cell = own.loc[("none", layer)]
        assert cell["value"] == (2 * layer + 1) / N and cell["n"] == N
        np.testing.assert_allclose((cell["lo"], cell["hi"]), wilson(2 * layer + 1))
        assert own.loc[("random", layer), "value"] == 1 / N
    others = data[data["layer"].isna() & (data["emotion"] == "joy")].set_index("kind")["value"]
    assert others.to_dict() == {"all layers at once": 1.0, "unsteered": 0.0}
    about = data.attrs["about"]
    assert about["n"] == "8 queries" and (about["params"]["site"], about["params"]["alpha"]) == ("attn", "4.0")


def test_answers_that_the_judge_cannot_read_count_neither_way():
    told = pd.DataFrame(texts("joy", 4)).assign(condition="joy", top=["joy"] * 4 + [NEUTRAL] * 4)
    told.loc[0, ["top", *(f"p_{label}" for label in LABELS)]] = ["unread", *[np.nan] * len(LABELS)]
    shares = instruction_shares(told).set_index("judged")
    assert shares.loc["joy", ["share", "n"]].tolist() == [3 / 7, 7] and shares.loc[NEUTRAL, "share"] == 4 / 7


def test_a_situation_counts_once_in_the_intervals():
    table = layers_table(["joy"])
    both = layer_shares(table.assign(situation=table["query_id"].map(lambda q: f"s{int(q[1]) // 4}")))
    width = [
        (d["hi"] - d["lo"])[d["layer"].notna() & (d["control"] == "none")].mean() for d in (both, layer_shares(table))
    ]
    assert width[0] > 1.2 * width[1]


def test_differences_from_the_control():
    rows = []
    for site, hits, chance in (("resid", 8, 2), ("attn", 3, 3), ("mlp", 0, 4)):
        for e in ("anger", "joy"):
            rows += texts(e, 0, alpha=0.0, site=site) + texts(e, hits - (e == "joy") * (hits > 4), site=site)
            rows += texts(e, chance, control="random", site=site) + texts(e, N, control="other", site=site)
    table = pd.DataFrame(rows)
    data = setting_differences(table).set_index(["setting", "emotion"])
    assert list(dict.fromkeys(data.index.get_level_values(0))) == ["resid", "attn", "mlp"], "in the table's order"
    assert data.loc[("resid", "anger"), "value"] == 0.75 and data.loc[("resid", "joy"), "value"] == 0.625
    assert data.loc[("resid", "mean"), "value"] == pytest.approx((0.75 + 0.625) / 2)
    assert data.loc[("mlp", "joy"), "value"] == -0.5
    (low, high), (below, above) = wilson(8), wilson(2)
    expected = 0.75 - math.hypot(1 - low, above - 0.25), 0.75 + math.hypot(high - 1, 0.25 - below)
    np.testing.assert_allclose(data.loc[("resid", "anger"), ["lo", "hi"]].astype(float), expected)
    same = data.loc[("attn", "anger")]
    assert same["lo"] < -0.2 and same["hi"] > 0.2, "three of eight against three of eight says little"
    assert setting_differences(table, control="other")["value"].max() == 0
    with pytest.raises(EmolabError, match="lacks texts of anger with and without control .shuffled.; sweep with"):
        setting_differences(table, control="shuffled")


@pytest.mark.parametrize(
    ("varied", "named"),
    [
        (
            [{"op": "add", "alpha": 1.5}, {"op": "clamp", "alpha": 1.0, "positions": "all"}],
            ["add · generated tokens · dose 1.5", "clamp · all tokens · dose 1"],
        ),
        (
            [{"layers": x} for x in ("0,1,2,3", "20,21", "0,2,3", "7", "all")],
            ["layers 0-3", "layers 20,21", "layers 0,2,3", "layers 7", "layers all"],
        ),
        ([{}], [""]),
    ],
)
def test_settings_are_named_by_what_differs(varied, named):
    rows = [row for fields in varied for c in ("none", "random") for row in texts("joy", 4, control=c, **fields)]
    assert list(setting_differences(pd.DataFrame(rows))["setting"].unique()) == named


def test_mixed_texts_are_told_from_mixed_shares():
    half = "0.5 anger + 0.5 joy"
    rows = texts(half, 0, alpha=0.0) + texts(half, N) + texts("joy", N) + texts("joy", 0, control="random")
    told = pd.DataFrame(texts(half, 0, alpha=0.0, control="prompt")).assign(p_anger=0.5, p_joy=0.4, p_neutral=0.02)
    data = mixture_shares(pd.concat([pd.DataFrame(rows), told])).set_index(["kind", "mixture", "judged"])
    assert data.loc[("none", half, "anger"), "share"] == 0.5 == data.loc[("none", half, "joy"), "share"]
    assert data.loc[("none", half, "joy"), "mixed"] == pytest.approx(2 * 0.02), "every text shows one of them"
    assert data.loc[("prompt", half, "anger"), "share"] == 1.0
    assert data.loc[("prompt", half, "joy"), "mixed"] == pytest.approx(2 * 0.4), "every text shows both"
    assert np.isnan(data.loc[("none", "joy", "joy"), "mixed"]), "one emotion is no mixture"
    assert data.loc[("unsteered", half, NEUTRAL), "share"] == 1.0


def test_what_cannot_be_compared_is_said():
    table = layers_table(["joy"])
    with pytest.raises(EmolabError, match=r"mixes alpha = 2\.0, 4\.0; filter it"):
        layer_shares(pd.concat([table, pd.DataFrame(texts("joy", 1, alpha=2.0, layers="0"))]))
    with pytest.raises(EmolabError, match="mixes site = attn, resid"):
        layer_shares(pd.concat([table, pd.DataFrame(texts("joy", 1, site="resid", layers="0"))]))
    with pytest.raises(EmolabError, match="steers no single layer; sweep emolab.at"):
        layer_shares(pd.DataFrame(texts("joy", 1)))
    with pytest.raises(EmolabError, match="mixes layers = 0, 1, 2, all"):
        mixture_shares(table)
    with pytest.raises(EmolabError, match="is empty"):
        setting_differences(table.head(0))
