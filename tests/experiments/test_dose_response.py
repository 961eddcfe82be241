"""Dose-response statistics against tables in which the truth was planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from emolab import EmolabError
from emolab.base.stats import bh
from emolab.experiments.dose_response import MEASURES, collapse, compare, dose_table, logit, trend
from emolab.experiments.headline import headline, target_p

pytestmark = pytest.mark.filterwarnings("error")  # degenerate input gives NaN or an error, never a warning
ALPHAS = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0)


def made(p, *, emotions=("joy",), alphas=ALPHAS, controls=("none", "random"), n=10, **columns) -> pd.DataFrame:
    """A scored sweep; p(control, alpha, q) is the target's probability, columns numbers or such functions."""
    rows = []
    for emotion in emotions:
        for control in controls:
            for alpha in alphas:
                if alpha == 0 and control != "none":
                    continue
                for q in range(n):
                    target = p(control, alpha, q)
                    row = {"query_id": f"q{q}", "situation": "", "emotion": emotion, "alpha": alpha, "control": control}
                    row |= {f"p_{e}": target if e == emotion else 0.0 for e in ("anger", "joy")}
                    row |= {k: v(control, alpha, q) if callable(v) else v for k, v in columns.items()}
                    rows.append(row | {"p_neutral": 1 - target, "seed": 0, "text": "so it was"})
    return pd.DataFrame(rows)


def line(slope, *, wrong=0):
    """Logits that rise by slope a unit of dose (in the first `wrong` queries fall); nothing happens with controls."""

    def p(control, alpha, q):
        rise = 0 if control != "none" else -slope if q < wrong else slope
        return float(expit(-1 + 0.1 * q + rise * alpha))

    return p


def cell(table, **at):
    found = table[np.logical_and.reduce([table[k] == v for k, v in at.items()])]
    assert len(found) == 1
    return found.iloc[0]


def whole(p=None, **columns) -> pd.DataFrame:
    """With all that a headline needs."""
    columns = {"adherence": 0.6, "adherence_shuffled": 0.2, "perplexity": 5.0, "distinct2": 0.9} | columns
    return made(p or line(1), **columns)


def test_logit():
    assert logit([0.5, 0.75, 0.0, 1.0]) == pytest.approx([0, np.log(3), np.log(1e-4 / (1 - 1e-4)), 9.21024])
    assert np.isnan(logit(np.nan))


# Headline


def test_headline_by_hand():
    table = whole(
        lambda c, a, q: 0.8 if a > 0 else 0.1,
        adherence=lambda c, a, q: 0.6 if a <= 1 else 0.4,
        perplexity=lambda c, a, q: {0.0: 4.0, 2.0: 10.0}.get(a, 5.0),
        compression=lambda c, a, q: 0.6 if a < 4 else 0.15,
        distinct2=lambda c, a, q: 0.9 if a != 1 else 0.3,
    )
    found = headline(table).query("control == 'none'").groupby("alpha").first()
    assert found["emotion_score"].tolist() == pytest.approx([0.1, 0.1, 0.8, 0.8, 0.8, 0.8])
    assert found["adherence_score"].tolist() == pytest.approx([1, 1, 1, 1, 0.5, 0.5])
    assert found["fluency_score"].tolist() == pytest.approx([0.8, 1, 0.8, 1 / 3, 0.4, 0.25])  # the worst of the three
    assert found.loc[2.0, "overall"] == pytest.approx(3 / (1 / 0.8 + 1 / 0.5 + 1 / 0.4))
    told = pd.DataFrame({"query_id": ["z"] * 3, "condition": ["joy", "joy", "neutral"], "perplexity": [1.0, 3.0, 90.0]})
    told = told.assign(emotion="fear", distinct2=0.9, compression=0.6)
    assert headline(table, told).query("alpha == .5")["fluency_score"].unique() == pytest.approx(0.4)
    assert len(headline(table)) == len(table) and headline(table).index.equals(table.index)


def test_a_text_that_loops_is_not_fluent_however_low_its_perplexity():
    """As measured: texts of which .84 to .99 repeat had a median perplexity of 1.5, unsteered ones of 2.1."""
    table = whole(perplexity=lambda c, a, q: 2.1 if a == 0 else 1.5, repetition=0.02, loop=lambda c, a, q: a == 4)
    found = headline(table).query("control == 'none'").groupby("alpha")[["fluency_score", "overall"]].max()
    assert found["fluency_score"].tolist() == [1, 1, 1, 1, 1, 0], "and what is better than unsteered gains nothing"
    assert found["overall"].iloc[-1] == 0
    half = whole(repetition=lambda c, a, q: 0.02 if a < 4 else 0.51)  # no loop yet
    assert headline(half).query("alpha == 4")["fluency_score"].unique() == pytest.approx(0.5)
    rows = table.assign(perplexity=np.nan)
    assert headline(rows).query("alpha == 4 and control == 'none'")["fluency_score"].eq(0).all()


def test_texts_that_the_judge_cannot_read_count_neither_way():
    table = whole(lambda c, a, q: 0.9 if a > 1 else 0.1).assign(top="joy")
    lost = (table["query_id"] == "q0") & (table["alpha"] == 2)
    table.loc[lost, ["p_anger", "p_joy", "p_neutral"]] = np.nan
    with pytest.raises(EmolabError, match="missing"):
        dose_table(table)
    table.loc[lost, "top"] = "unread"
    at = dose_table(table).query("control == 'none' and alpha == 2").set_index("measure")
    assert at.loc["target"].value == 1 and at.loc["p_target"].value == pytest.approx(0.9)
    assert list(at.loc[["target", "p_target", "distinct2"]].n) == [9, 9, 10]


def test_headline_takes_prompt_rows_for_the_level_and_the_perplexity_given_the_instruction():
    table = whole(perplexity_instructed=4.0)
    prompt = whole(controls=("none",), alphas=(0.0,), perplexity_instructed=2.0).assign(control="prompt")
    both = pd.concat([table, prompt], ignore_index=True)
    found = headline(both).groupby("control")["fluency_score"].first()
    assert found.to_dict() == {"none": 0.5, "random": 0.5, "prompt": 1}


def test_headline_of_empty_and_unmeasured_texts():
    table = whole()
    table["text"] = table["text"].mask(table.index == 3, " ")
    table["perplexity"] = table["perplexity"].mask(table.index.isin([3, 4]))
    table["distinct2"] = table["distinct2"].mask(table.index == 5)  # a text of one word has no pairs
    found = headline(table)["fluency_score"]
    assert found[3] == 0 and np.isnan(found[4]) and found[5] == 1
    off_topic = whole(adherence_shuffled=0.7)
    assert headline(off_topic)[["adherence_score", "overall"]].isna().all(axis=None)
    bare = made(line(1))
    assert headline(bare)[["adherence_score", "fluency_score", "overall"]].isna().all(axis=None)


def test_target_of_a_mixture_is_the_sum_of_what_it_adds():
    table = made(line(1), alphas=(0.0, 1.0)).assign(p_anger=0.25, p_joy=0.5, p_neutral=0.25)
    for name, p in (("0.5 anger + 0.5 joy", 0.75), ("1 joy - 0.5 anger", 0.5), ("joy", 0.5)):
        assert target_p(table.assign(emotion=name)).unique() == pytest.approx(p)
    mixed = table.assign(emotion="0.5 anger + 0.5 joy", perplexity=6.0)
    assert cell(dose_table(mixed), alpha=1.0, control="none", measure="target").value == 1  # joy is on top
    assert headline(mixed, pd.DataFrame({"condition": ["joy"], "perplexity": [3.0]})).fluency_score.eq(0.5).all()


# Table of doses


def test_dose_table_by_hand():
    table = whole(
        lambda c, a, q: 0.9 if c == "none" and q < 3 * a else 0.1,
        adherence=lambda c, a, q: 0.6 - 0.1 * max(a, 0),
        perplexity=lambda c, a, q: 2.0 * (1 + abs(a)) + (100 if q == 9 else 0),  # a median, not a mean
        compression=0.5,
        repetition=lambda c, a, q: 0.02 * (1 + max(a, 0)),
        loop=lambda c, a, q: a == 4,
        refusal=lambda c, a, q: q < 2,
        named=lambda c, a, q: a > 1 and q < 5,
    )
    found = dose_table(table)
    assert list(found) == ["emotion", "control", "alpha", "measure", "value", "lo", "hi", "n"]
    assert list(found["measure"].unique()) == list(MEASURES) and not found.duplicated(list(found)[:4]).any()
    at = found.query("control == 'none'").set_index(["measure", "alpha"])
    assert at.loc["target"].value.tolist() == [0, 0, 0.2, 0.3, 0.6, 1]
    assert at.loc["p_target"].value.tolist() == pytest.approx([0.1, 0.1, 0.26, 0.34, 0.58, 0.9])
    assert at.loc["adherence"].value.tolist() == pytest.approx(np.array([0.6, 0.6, 0.55, 0.5, 0.4, 0.2]) / 0.6)
    assert at.loc["perplexity_ratio"].value.tolist() == pytest.approx([2, 1, 1.5, 2, 3, 5])
    assert at.loc["compression"].value.eq(0.5).all() and at["n"].eq(10).all()
    assert ((at.lo <= at.value + 1e-9) & (at.value <= at.hi + 1e-9)).all()
    assert at.loc["named"].value.tolist() == [0, 0, 0, 0, 0.5, 0.5]
    assert at.loc["loop"].value.tolist() == [0, 0, 0, 0, 0, 1] and at.loc["refusal"].value.eq(0.2).all()
    assert at.loc[("loop", 4.0)].lo < 0.8 and at.loc[("repetition", 4.0)].value == pytest.approx(0.1)
    row = at.loc[("target", 1.0)]
    assert 0.05 < row.lo < 0.3 < row.hi < 0.7
    headlines = headline(table).query("control == 'none' and alpha == 2")["overall"].mean()
    assert at.loc[("overall", 2.0)].value == pytest.approx(headlines)
    assert set(found.query("control == 'random'").alpha) == set(ALPHAS) - {0}


def test_every_query_counts_once_whatever_its_seeds():
    table = whole(lambda c, a, q: 0.9 if q == 0 else 0.1, n=4)
    more = pd.concat([table, *[table[table["query_id"] == "q0"].assign(seed=s) for s in (1, 2, 3)]], ignore_index=True)
    pd.testing.assert_frame_equal(dose_table(more), dose_table(table))
    pd.testing.assert_frame_equal(trend(more), trend(table))
    pd.testing.assert_frame_equal(compare(more), compare(table))


def test_queries_of_one_situation_are_one():
    noise = np.random.default_rng(0).normal(size=(4, 10))
    alphas = (0.0, 1.0, 2.0)

    def p(control, alpha, q):
        return float(expit(noise[alphas.index(alpha) + (control == "random"), q % 10]))

    once, thrice = whole(p, alphas=alphas), whole(p, alphas=alphas, n=30)
    thrice["situation"] = "s" + (thrice["query_id"].str[1:].astype(int) % 10).astype(str)
    for a, b in (
        (dose_table(once), dose_table(thrice)),
        (compare(once), compare(thrice)),
        (trend(once), trend(thrice)),
    ):
        same = [c for c in a if c != "n"]
        pd.testing.assert_frame_equal(a[same], b[same])
    naive = dose_table(thrice.assign(situation="")).query("measure == 'p_target'")
    true = dose_table(thrice).query("measure == 'p_target'")
    assert ((naive.hi - naive.lo) < 0.8 * (true.hi - true.lo)).all()


def test_dose_table_sets_steering_beside_the_instruction():
    table = whole(n=6)
    told = pd.DataFrame(
        {
            "query_id": [f"q{q}" for q in range(8)] * 2,  # two queries were not steered
            "emotion": "neutral",  # what the query evokes
            "condition": ["joy"] * 8 + ["neutral"] * 8,
            "p_anger": 0.0, "p_joy": 0.9, "p_neutral": 0.1, "adherence": 0.5, "adherence_shuffled": 0.2,
            "perplexity": [2.0] * 8 + [50.0] * 8, "distinct2": 0.9,
        }
    )  # fmt: skip
    found = dose_table(table, told)
    level = found.query("control == 'prompt'").set_index("measure")
    assert level.loc["target"].value == 1 and level.loc["target"].n == 6 and level.alpha.eq(0).all()
    assert level.loc["adherence"].value == pytest.approx(0.5 / 0.6)
    assert level.loc["perplexity_ratio"].value == 1 and level.loc["overall"].value == pytest.approx(
        3 / (1 / 0.9 + 1 / 0.75 + 1)
    )
    assert cell(found, control="none", alpha=1.0, measure="perplexity_ratio").value == pytest.approx(2.5)
    rows = told[told["condition"] == "joy"].assign(emotion="joy", control="prompt", alpha=0.0, situation="").head(6)
    other = dose_table(pd.concat([table, rows.drop(columns="condition")], ignore_index=True))
    pd.testing.assert_frame_equal(found, other, check_dtype=False)
    elsewhere = dose_table(table, told.assign(query_id="z"))
    assert "prompt" not in set(elsewhere.control)
    assert elsewhere.query("measure == 'perplexity_ratio'").value.unique() == pytest.approx(2.5)


def test_a_clamp_at_zero_is_a_dose_and_not_the_unsteered_text():
    clamp = whole(lambda c, a, q: 0.3 if a == 0 else 0.9, op="clamp", adherence=0.3)
    with pytest.raises(EmolabError, match="append those of a sweep"):
        dose_table(clamp)
    plain = whole(lambda c, a, q: 0.1, controls=("none",), alphas=(0.0,), op="add")
    found = dose_table(pd.concat([clamp, plain], ignore_index=True))
    assert cell(found, control="none", alpha=0.0, measure="p_target").value == pytest.approx(0.3)
    assert found.query("measure == 'adherence'").value.unique() == pytest.approx(0.5)


# Trend, collapse, controls


def test_a_planted_slope_is_found():
    found = trend(made(line(0.7), emotions=("anger", "joy")))
    for emotion in ("anger", "joy"):
        own = cell(found, emotion=emotion, control="none")
        assert (own.spearman, own.slope, own.n) == pytest.approx((1, 0.7, 10))
        assert (own.slope_lo, own.slope_hi, own.minus_random) == pytest.approx((0.7, 0.7, 0.7))
        assert np.isnan(own.first_drop)
        flat = cell(found, emotion=emotion, control="random")
        assert (flat.slope, flat.minus_random) == pytest.approx((0, 0), abs=1e-9)
        assert np.isnan(flat.spearman)  # nothing changes: no rank
    half = cell(trend(made(line(0.7, wrong=5))), control="none")
    assert (half.spearman, half.slope) == pytest.approx((0, 0)) and half.slope_lo < -0.3 and half.slope_hi > 0.3


def test_slope_at_zero_knows_only_small_doses_and_falls_count_against_monotony():
    def rise_and_fall(control, alpha, q):
        return float(expit({-1: -2, 0: -1, 0.5: -0.5, 1: 0, 2: 1, 4: -5}[alpha]))

    own = cell(trend(made(rise_and_fall, controls=("none",))), emotion="joy")
    assert own.slope == pytest.approx(1) and own.first_drop == 4 and np.isnan(own.minus_random)


def test_the_first_drop_is_the_first_significant_one():
    rng, doses = np.random.default_rng(0), [0.0, 1.0, 2.0, 3.0, 4.0]
    values = rng.normal(size=(12, 1)) * 5 + np.array([0, 1, 2, 1.2, 0]) + 0.1 * rng.normal(size=(12, 5))
    table = pd.DataFrame(values, [f"q{i}" for i in range(12)], doses).rename_axis(index="query_id", columns="alpha")
    table = table.stack().rename("value").reset_index().assign(emotion="joy", control="none")
    for chosen, drop in ((doses, 3.0), (doses[:3], np.nan), ([0.0, 1.0, 2.0, 4.0], 4.0)):
        assert trend(table[table["alpha"].isin(chosen)]).first_drop.item() == pytest.approx(drop, nan_ok=True)
    few = table[table["query_id"].isin(["q0", "q1"])]
    assert np.isnan(trend(few).first_drop.item()), "too few to tell"


def test_collapse_is_where_fluency_falls_and_stays_out_where_it_does_not():
    def perplexity(control, alpha, q):
        if control == "random":
            return 5.0 if alpha < 4 else 20.0 + q
        return {1.0: 5.3, 2.0: 9.0 + 0.1 * q, 4.0: 80.0}.get(alpha, 5.0)

    own = collapse(whole(perplexity=perplexity)).iloc[0]
    assert (own.emotion, own.alpha_star, own.random_alpha_star, own.measure, own.n) == ("joy", 2, 4, "fluency", 10)
    fluency = (5 / np.array([perplexity("none", 2.0, q) for q in range(10)])).mean()
    assert own.difference == pytest.approx(fluency - 1) and own.lo < own.difference < own.hi < -0.1
    assert own.q == pytest.approx(2**-10 * 4 / 2)  # the smallest p there is at two of the four positive doses
    calm = collapse(whole(controls=("none",))).iloc[0]
    assert np.isnan(calm.alpha_star) and calm.q == 1 and calm.difference == 0 and np.isnan(calm.random_alpha_star)
    some = collapse(whole(perplexity=lambda c, a, q: 50.0 if a > 0 and q < 2 else 5.0)).iloc[0]
    assert np.isnan(some.alpha_star)  # two broken texts of ten are no collapse
    unmeasured = collapse(made(line(1))).iloc[0]
    assert np.isnan(unmeasured.alpha_star) and np.isnan(unmeasured.q) and unmeasured.n == 0


def test_collapse_against_the_instructed_level():
    table = whole(perplexity=lambda c, a, q: 5.0 if a < 2 else 9.0)
    assert collapse(table).alpha_star.item() == 2
    told = pd.DataFrame({"condition": ["joy"], "perplexity": [20.0], "distinct2": [0.9]})
    assert np.isnan(collapse(table, told).alpha_star.item())  # both are as fluent as instructed answers


def test_compare_pairs_queries_at_equal_dose():
    def p(control, alpha, q):  # queries differ far more than steering moves them
        return 0.05 + 0.05 * q + (0.02 * alpha if control == "none" else -0.01 * alpha)

    table = made(p, emotions=("anger", "joy"))
    found = compare(table)
    assert list(found)[:8] == ["emotion", "alpha", "difference", "lo", "hi", "p", "q", "n"]
    assert found.difference.to_numpy() == pytest.approx(0.03 * found.alpha.to_numpy())
    assert found.lo.to_numpy() == pytest.approx(found.hi.to_numpy())  # query by query the same
    assert found.p.eq(2 / 2**10).all() and found.q.to_numpy() == pytest.approx(bh(found.p)) and found.n.eq(10).all()
    plain = compare(table, control="unsteered")
    assert plain.difference.to_numpy() == pytest.approx(0.02 * found.alpha.to_numpy())
    assert (plain.control.unique(), plain.measure.unique()) == (["unsteered"], ["p_target"])
    prompt = made(lambda c, a, q: 0.95, controls=("none",), alphas=(0.0,), emotions=("anger", "joy"))
    both = pd.concat([table, prompt.assign(control="prompt")], ignore_index=True)
    told = compare(both, control="prompt", measure="target").query("emotion == 'joy'")
    assert told.difference.tolist() == pytest.approx([-1, -0.9, -0.9, -0.9, -0.8])  # on top: p above one half


def test_q_counts_all_cells():
    noise = np.random.default_rng(0).uniform(0.2, 0.8, (2, 5, 10))

    def p(control, alpha, q):
        return float(noise[int(control == "random"), [-1, 0.5, 1, 2, 4].index(alpha), q]) if alpha else 0.5

    found = compare(made(p))
    assert (found.q > found.p).sum() >= 4 and found.q.to_numpy() == pytest.approx(bh(found.p))


# Degenerate input


def test_one_query_one_dose_and_no_control():
    one = whole(n=1)
    found = dose_table(one)
    assert found.query("measure == 'target'")[["lo", "hi"]].notna().all(axis=None)
    assert found.query("measure != 'target'")[["lo", "hi"]].isna().all(axis=None)
    assert trend(one).query("control == 'none'")[["spearman_lo", "slope_lo", "slope_hi"]].isna().all(axis=None)
    assert compare(one).p.eq(1).all() and compare(one).lo.isna().all()
    assert np.isnan(collapse(one).alpha_star.item())
    single = whole(alphas=(0.0,), controls=("none",))
    numbers = ["spearman", "slope", "slope_lo", "minus_random", "first_drop"]
    assert trend(single)[numbers].isna().all(axis=None)
    assert compare(single, control="unsteered").empty
    assert np.isnan(collapse(single).alpha_star.item()) and len(dose_table(single)) == 6
    far = trend(whole(alphas=(0.0, 2.0), controls=("none",))).iloc[0]
    assert np.isnan(far.slope) and far.spearman == 1
    unread = trend(whole().assign(p_joy=np.nan)).set_index("control")
    assert unread["n"].eq(0).all() and unread["slope"].isna().all()


def test_missing_values_are_left_out_and_counted():
    table = whole(n=5)
    table.loc[(table["alpha"] == 4) & (table["query_id"] != "q0"), ["perplexity", "adherence"]] = np.nan
    found = dose_table(table)
    lone = cell(found, control="none", alpha=4.0, measure="perplexity_ratio")
    assert lone.n == 1 and lone.value == 1 and np.isnan(lone.lo)
    table["perplexity"] = np.nan
    assert "perplexity_ratio" not in set(dose_table(table).measure)


@pytest.mark.parametrize("function", [headline, dose_table, trend, collapse])
def test_without_unsteered_texts_there_is_no_effect(function):
    with pytest.raises(EmolabError, match='joy needs rows of control "none", alpha 0'):
        function(whole(alphas=(1.0, 2.0)))


@pytest.mark.parametrize("function", [dose_table, trend, collapse, compare])
@pytest.mark.parametrize("column", ["site", "op", "fade", "heads"])
def test_settings_are_not_mixed(function, column):
    table = pd.concat([whole().assign(**{column: value}) for value in ("a", "b")], ignore_index=True)
    with pytest.raises(EmolabError, match=f"mixes {column} = a, b"):
        function(table)
    assert len(headline(table)) == len(table)  # the headline of a text needs no curve
    told = whole(controls=("none",), alphas=(0.0,)).assign(control="prompt", **{column: "x"})  # not steered at all
    function(pd.concat([whole(**{column: "a"}), told], ignore_index=True))
