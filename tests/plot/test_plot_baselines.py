"""The table and the figure of methods show the numbers given, best first, each method in its own colour."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS, NEUTRAL, styles
from emolab.comparisons.methods import METHODS
from emolab.plot.baselines import _STYLE, method_table, tradeoff

MEASURES = ("emotion", "adherence", "fluency", "overall", "damage")
OVERALL = {"emotion vector": 0.7, "pca": 0.7, "probe": 0.4, "lora": 0.8, "instruction": 0.9, "few_shot": 0.1}
OVERALL |= {"random": 0.05, "unsteered": 0.02}
DOSED = ("emotion vector", "pca", "probe", "lora", "random")


def make_table() -> pd.DataFrame:
    rows = []
    for method, top in OVERALL.items():
        places = [("best", 1.0 if method != "emotion vector" else np.nan)]
        places += [("equal damage", 1.2)] if method in (*DOSED, "instruction") else []
        places += [("tried", dose) for dose in ((0.5, 1.0, 2.0) if method in DOSED else (1.0,))]
        for emotion in ("all", "joy"):
            for at, dose in places:
                for measure in MEASURES:
                    value = top * (0.9 if at == "tried" else 1) * (0.5 if emotion == "joy" else 1)
                    if measure == "damage":
                        value = 0.0 if method == "unsteered" else 3 * (1 if np.isnan(dose) else dose)
                    facts = {"seconds": np.nan if method == "random" else 2.0, "speed": 1.25, "setting": ""}
                    facts |= {"can_dose": method in DOSED, "can_mix": method in DOSED, "n": 9}
                    row = {"method": method, "at": at, "emotion": emotion, "dose": dose, "measure": measure}
                    rows.append({**row, "value": value, "lo": 0.9 * value, "hi": 1.1 * value, **facts})
    table = pd.DataFrame(rows)
    model = {"name": "made", "revision": None, "fingerprint": "abc"}
    table.attrs["about"] = {"model": model, "n": "9 queries", "seed": 4, "params": {"target_kl": {"joy": 3.0}}}
    return table


def test_the_figure_shows_the_numbers():
    table = make_table()
    fig = tradeoff(table)
    emotion, overall = fig.axes
    assert fig.emolab_info["model"]["name"] == "made" and fig.emolab_info["seed"] == 4
    assert fig.emolab_info["params"] == {"target_kl": {"joy": 3.0}, "emotion": "all"}
    assert set(fig.emolab_data["measure"]) == {"emotion", "overall", "damage"}
    assert set(fig.emolab_data["emotion"]) == {"all"}
    for ax in (emotion, overall):
        assert ax.get_xscale() == "log" and ax.get_ylim() == (-0.03, 1.03)
        lines = {(line.get_color(), len(line.get_xdata())): line for line in ax.get_lines()}
        for method in DOSED:
            curve = lines[_STYLE[method][0], 3]
            assert list(curve.get_xdata()) == [1.5, 3.0, 6.0]
            np.testing.assert_allclose(curve.get_ydata(), OVERALL[method] * 0.9)
        told = [line for line in ax.get_lines() if line.get_color() == _STYLE["instruction"][0]]
        assert [list(line.get_xdata()) for line in told] == [[3.0]], "the instruction is one point"
        assert told[0].get_ydata() == [0.9] and told[0].get_marker() == "*"
        hollow = [x for x in ax.get_lines() if x.get_markerfacecolor() == "white"]
        assert len(hollow) == len(DOSED) and all(line.get_xdata()[0] == pytest.approx(3.6) for line in hollow)
        assert any(set(line.get_ydata()) == {0.02} for line in ax.get_lines()), "unsteered text is a line"
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == [
        "emotion vector", "PCA", "probe", "LoRA", "instruction", "few-shot", "random direction", "best setting",
        "equal damage", "unsteered",
    ]  # fmt: skip
    joy = tradeoff(table, emotion="joy").axes[1].get_lines()
    assert max(max(line.get_ydata()) for line in joy if len(line.get_xdata()) == 1) == pytest.approx(0.45)


def test_a_part_of_the_methods_is_drawn_too():
    table = make_table()
    fig = tradeoff(table[table["method"].isin(["instruction", "lora"])])
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels[:2] == ["LoRA", "instruction"] and len(labels) == 5


def test_methods_have_colours_and_markers_of_their_own():
    assert set(_STYLE) == {*METHODS, "unsteered"}
    colours = [colour for colour, *_ in _STYLE.values()]
    theirs = {colour.lower() for colour, _ in styles([*EMOTIONS, NEUTRAL]).values()}
    assert len({c.lower() for c in colours}) == len(colours) and not theirs & {c.lower() for c in colours}
    assert len({marker for _, marker, _ in _STYLE.values()}) == len(_STYLE)


def test_the_table_is_sorted_and_says_what_methods_can_do():
    style = method_table(make_table())
    shown = style.data
    methods = ["instruction", "LoRA", "emotion vector", "PCA", "probe", "few-shot", "random direction", "unsteered"]
    assert list(shown.index) == methods
    assert shown.loc["LoRA", "overall"] == "0.80 [0.72, 0.88]"
    assert shown.loc["LoRA", "damage (nats)"] == "3.00 [2.70, 3.30]"
    assert shown.loc["LoRA", ["any dose", "mixtures"]].tolist() == ["yes", "yes"]
    assert shown.loc["instruction", ["any dose", "mixtures"]].tolist() == ["no", "no"]
    assert shown.loc["LoRA", "set up (s)"] == "2.0" and shown.loc["random direction", "set up (s)"] == ""
    assert shown.loc["probe", "tokens/s, relative"] == "1.25"
    html = style.to_html()
    assert "0.80 [0.72, 0.88]" in html
    equal = method_table(make_table(), at="equal damage", emotion="joy").data
    assert "few-shot" not in equal.index and "unsteered" in equal.index
    assert method_table(make_table(), at="equal damage").uuid != style.uuid, "else two tables share their colours"
    assert equal.loc["LoRA", "overall"] == "0.40 [0.36, 0.44]"


def test_what_is_not_there_is_said():
    with pytest.raises(EmolabError, match="best, equal damage"):
        method_table(make_table(), at="worst")
    with pytest.raises(EmolabError, match="all, joy"):
        tradeoff(make_table(), emotion="awe")
