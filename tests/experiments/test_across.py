"""Two models on one axis of doses: shares, differences question by question, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from emolab.base.errors import EmolabError
from emolab.base.stats import interval
from emolab.experiments import model_doses
from emolab.experiments.across import breaking_dose

LABELS = ("fear", "joy", "neutral")


def scored(joy, fear=(0, 0, 0), random=0.0, *, doses=(0, 1, 2), n=8, prefix="q", unit="breaking") -> pd.DataFrame:
    """Scored texts: at each dose the first share of n questions is read as the target."""
    rows = []
    for emotion, shares in {"joy": joy, "fear": fear}.items():
        for alpha, share in zip(doses, shares, strict=True):
            for control, hits in {"none": share, **({"random": random} if alpha else {})}.items():
                for q in range(n):
                    top = emotion if q < round(hits * n) else "neutral"
                    p = {f"p_{label}": 0.9 if label == top else 0.05 for label in LABELS}
                    row = {"query_id": f"{prefix}{q}", "query": f"{prefix} {q}?", "situation": f"{prefix}{q // 2}"}
                    row |= {"emotion": emotion, "control": control, "alpha": float(alpha), "top": top, **p}
                    rows.append(row | {"unit": unit, "site": "attn", "layers": "all", "op": "add", "part": "whole"})
    table = pd.DataFrame(rows)
    table.attrs["emolab"] = {"model": "mini", "seed": 4}
    return table


def cells(table: pd.DataFrame, model: str, control: str = "none") -> pd.DataFrame:
    own = table[(table["model"] == model) & (table["control"] == control)]
    return own.set_index(["emotion", "alpha"])[["value", "lo", "hi", "n"]]


def test_shares_of_both_and_their_difference():
    one, other = scored((0, 0.5, 1), (0, 0.5, 1), random=0.25), scored((0, 1, 1), (0, 0.5, 0.5))
    table = model_doses({"one": one, "other": other})
    assert list(dict.fromkeys(table["model"])) == ["one", "other", "other - one"]
    assert cells(table, "one")["value"].to_dict() == {
        ("fear", 0): 0, ("fear", 1): 0.5, ("fear", 2): 1, ("joy", 0): 0, ("joy", 1): 0.5, ("joy", 2): 1,
        ("all", 0): 0, ("all", 1): 0.5, ("all", 2): 1,
    }  # fmt: skip
    assert cells(table, "one", "random")["value"].unique().tolist() == [0.25]
    assert cells(table, "one", "beyond random")["value"].to_dict() == {
        ("fear", 1): 0.25, ("fear", 2): 0.75, ("joy", 1): 0.25, ("joy", 2): 0.75, ("all", 1): 0.25, ("all", 2): 0.75
    }  # fmt: skip
    assert cells(table, "other - one", "beyond random")["value"]["joy", 1] == 0.75
    less = cells(table, "other - one")
    assert less["value"].to_dict() == {
        ("fear", 0): 0, ("fear", 1): 0, ("fear", 2): -0.5, ("joy", 0): 0, ("joy", 1): 0.5, ("joy", 2): 0,
        ("all", 0): 0, ("all", 1): 0.25, ("all", 2): -0.25,
    }  # fmt: skip
    assert (less["n"] == 8).all() and cells(table, "other - one", "random")["value"].unique().tolist() == [-0.25]
    situations = np.repeat(range(4), 2)
    expected = interval([1, 1, 1, 1, 0, 0, 0, 0], clusters=situations)
    np.testing.assert_allclose(cells(table, "one").loc[("joy", 1.0), ["lo", "hi"]].astype(float), expected)
    assert breaking_dose(table) == 1.0
    about = table.attrs["about"]
    assert about["model"]["name"] == "one and other" and about["n"] == "8 questions" and about["seed"] == 4
    assert about["params"] == {"site": "attn", "layers": "all", "op": "add", "part": "whole", "unit": "breaking"}


def test_the_same_run_differs_by_nothing():
    table = model_doses({"one": scored((0, 0.5, 1)), "copy": scored((0, 0.5, 1))})
    assert (cells(table, "copy - one")[["value", "lo", "hi"]] == 0).all(axis=None)
    np.testing.assert_array_equal(cells(table, "one"), cells(table, "copy"))


def test_questions_of_both_are_paired_and_others_are_not():
    """Each model reads half of its questions as the target: the same half, or that of other questions."""
    one, paired, apart = scored((0, 0.5, 1)), scored((0, 0.5, 1)), scored((0, 0.5, 1), prefix="r")
    same, other = (model_doses({"one": one, "other": table}) for table in (paired, apart))
    assert cells(same, "other - one").loc[("joy", 1), ["lo", "hi"]].tolist() == [0, 0]
    value, lo, hi, n = cells(other, "other - one").loc[("joy", 1)]
    assert value == 0 and lo < -0.3 and hi > 0.3 and n == 16
    assert cells(other, "other - one").loc[("joy", 2), ["value", "lo", "hi"]].tolist() == [0, 0, 0]


def test_only_doses_of_both_are_subtracted_and_the_one_nearest_to_breaking_is_shown():
    table = model_doses({"one": scored((0, 0.5, 1), doses=(0, 0.75, 2)), "other": scored((0, 1, 1), doses=(0, 1, 2))})
    assert set(cells(table, "other - one").index.get_level_values("alpha")) == {0, 2} and breaking_dose(table) == 2
    assert set(cells(table, "one").index.get_level_values("alpha")) == {0, 0.75, 2}


def test_only_emotions_of_both_are_compared():
    one = scored((0, 0.5, 1))
    table = model_doses({"one": one[one["emotion"] == "joy"], "other": one})
    assert set(table["emotion"]) == {"joy", "all"}
    np.testing.assert_array_equal(cells(table, "other").loc["all"], cells(table, "other").loc["joy"])


def test_what_cannot_be_compared_is_said():
    one = scored((0, 0.5, 1))
    joy, fear = (one[one["emotion"] == e] for e in ("joy", "fear"))
    for tables, message in (
        ({"one": one}, "1 tables are given; expected two"),
        ({"one": one, "other": scored((0, 1, 1), unit="vector")}, "doses of other are in the unit 'vector'"),
        ({"one": one.drop(columns="unit"), "other": one}, "doses of one are in the unit 'unknown'"),
        ({"one": joy, "other": fear}, "no emotion in common: joy with fear"),
        ({"one": one, "other": scored((0, 1, 1), doses=(0, 3, 4))}, "no dose above 0 in common"),
        ({"one": one, "other": one.assign(query="how ?")}, "query 'q0' is another question in one than in other"),
        ({"one": one, "other": one.drop(columns="query")}, "query"),
        ({"one": one, "other": one[one["alpha"] > 0]}, "needs rows of control"),
    ):
        with pytest.raises(EmolabError, match=message):
            model_doses(tables)
