"""Verdicts on tables where the truth is planted: they go both ways, and between."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from emolab.base.errors import EmolabError
from emolab.comparisons import claims
from emolab.experiments.dose_response import logit, trend
from tests import claim_tables as made

YES, NO, MIXED = "supported", "not supported", "mixed"


def line(a):
    return 0.8 * a


def overshoot(a):
    """Rises up to dose 2, then falls to where it began."""
    return 0.8 * a if a <= 2 else 0.0


def checked(claim):
    assert json.loads(json.dumps(claim.evidence, allow_nan=False)) == claim.evidence
    assert claim.verdict in (YES, NO, MIXED) and claim.condition.endswith(".") and len(claim.table)
    assert f"{16} queries in 8 situations" in claim.condition
    return claim


# monotone ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_a_target_that_rises_throughout_is_monotone(noise):
    claim = checked(claims.monotone(made.curves(line, noise=noise)))
    assert claim.verdict == YES
    for own in claim.evidence["judge"]["emotions"].values():
        assert own["slope"][0] == pytest.approx(0.8, abs=0.2) and own["slope"][1] < 0.8 < own["slope"][2]
        assert own["first_drop"] is None and own["local"] and own["global"]


@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_a_target_that_falls_again_is_monotone_only_at_zero(noise):
    claim = checked(claims.monotone(made.curves(overshoot, noise=noise)))
    found = claim.evidence["judge"]
    assert (claim.verdict, found["local"], found["global"]) == (MIXED, YES, NO)
    assert {own["first_drop"] for own in found["emotions"].values()} == {4.0}
    assert "first drop at dose 4" in claim.condition


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_not_monotone(seed):
    claim = claims.monotone(made.curves(lambda a: 0.0, noise=1.0, seed=seed))
    assert claim.verdict != YES and claim.evidence["judge"]["n_local"] <= 1
    assert claims.monotone(made.curves(lambda a: -0.3 * a, noise=0.3, seed=seed)).verdict == NO


def test_a_rise_that_any_direction_makes_does_not_count():
    claim = claims.monotone(made.curves(line, random=line))
    assert claim.evidence["judge"]["local"] == NO, "the slope is above 0, but not above that of random directions"


def test_emotions_and_scales_must_agree():
    table = made.curves({"joy": line, "fear": lambda a: 0.0 * a})
    claim = claims.monotone(table)
    assert claim.verdict == MIXED and claim.evidence["judge"]["n_local"] == 1
    claim = claims.monotone(pd.concat([made.curves(line), made.curves(lambda a: -a, scale="log-odds")]))
    local = {scale: found["local"] for scale, found in claim.evidence.items()}
    assert claim.verdict == MIXED and local == {"judge": YES, "log-odds": NO}


def test_claims_say_what_trend_says():
    table = made.curves(overshoot)
    trends = trend(table, seed=0).set_index(["emotion", "control"])
    own = claims.monotone(table).evidence["judge"]["emotions"]["joy"]
    for key, control in (("slope", "none"), ("random_slope", "random"), ("spearman", "none")):
        measure = key.removeprefix("random_")
        numbers = trends.loc[("joy", control), [measure, f"{measure}_lo", f"{measure}_hi"]]
        assert own[key] == pytest.approx(list(numbers), rel=1e-3)
    assert own["first_drop"] == trends.loc[("joy", "none"), "first_drop"] == 4


def test_scored_sweeps_are_taken_as_they_are():
    table = made.curves(line)
    p = 1 / (1 + np.exp(-table["value"]))
    scored = table.drop(columns=["value", "scale"]).assign(p_joy=p, p_fear=p)
    np.testing.assert_allclose(claims.judge_logits(scored)["value"], logit(p))
    assert claims.monotone(scored).evidence["judge"]["local"] == YES and claims.linear(scored).evidence["judge"]


# preservation ------------------------------------------------------------------------------------------------------


SLOW, FAST = lambda a: 0.02 * a**2, lambda a: 0.2 * a  # noqa: E731


@pytest.mark.parametrize(
    ("table", "local", "overall"),
    [
        (made.drift(SLOW, SLOW, noise=0.005), YES, YES),
        (made.drift(SLOW, SLOW, noise=0.1), YES, YES),
        (made.drift(FAST, lambda a: 0.01 * a**2, noise=0.005), NO, NO),
        (made.drift(FAST, lambda a: 0.01 * a**2, noise=0.1), NO, NO),
        (made.drift(lambda a: 0.05 * a**2, SLOW), YES, NO),  # kept at first and lost later
        (made.drift(lambda a: 0.06 * a**2, lambda a: 0.06 * a**2), YES, NO),  # equal damage is no preservation
        (made.drift(lambda a: 0.02 * a, lambda a: 0.02 * a).assign(topic=np.nan), MIXED, MIXED),  # off topic before
    ],
)
def test_the_topic_is_kept_where_drift_is_small_and_as_under_random_directions(table, local, overall):
    claim = checked(claims.preservation(table))
    assert (claim.evidence["local"], claim.evidence["global"]) == (local, overall)
    assert claim.verdict == (local if local == overall else MIXED)


def test_drift_beyond_random_has_its_number():
    claim = claims.preservation(made.drift(FAST, lambda a: 0.01 * a**2))
    value, low, high = claim.evidence["topic"]["minus"]["random"]["1"]
    assert low < 0.19 < high and value == pytest.approx(0.19, abs=0.05) and claim.evidence["topic"]["prompt"] == 0.4


def test_the_exponent_of_growth():
    claim = claims.preservation(made.drift(FAST, lambda a: 0.2 * a**2, noise=0.001))
    slopes = claim.evidence["topic"]["slope"]
    assert slopes["none"][0] == pytest.approx(1, abs=0.1) and slopes["random"][0] == pytest.approx(2, abs=0.1)
    assert claim.evidence["topic"]["slope_minus"]["random"][2] < 0


@pytest.mark.parametrize("kl", [np.square, lambda a: a, lambda a: 0 * a, lambda a: 5.0])
def test_next_token_kl_decides_nothing(kl):
    assert claims.preservation(made.drift(SLOW, SLOW, kl=kl)).verdict == YES
    assert claims.preservation(made.drift(FAST, lambda a: 0.01 * a**2, kl=kl)).verdict == NO


def test_the_answer_may_change_if_the_topic_stays():
    kept = made.drift(SLOW, SLOW)
    claim = claims.preservation(kept.assign(answer=kept["answer"] + kept["alpha"].where(kept["control"] == "none", 0)))
    assert claim.verdict == YES and claim.evidence["answer"]["minus"]["random"]["1"][1] > 0.9


def test_too_few_queries_to_tell_is_mixed():
    wide = made.drift(lambda a: 0.02 * a, lambda a: 0.02 * a, noise=1.0, n=6)
    assert claims.preservation(wide).evidence["local"] == MIXED
    alone = claims.preservation(wide[wide["control"] != "prompt"])
    assert alone.evidence["answer"]["prompt"] is None


# linear ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.01, 0.15])
def test_a_line_is_linear(noise):
    claim = checked(claims.linear(made.curves(line, noise=noise)))
    assert claim.verdict == YES and set(claim.evidence["verdicts"]["judge"]) == {"1", "2", "4"}
    own = claim.evidence["judge"]["joy"]["4"]
    assert own["slope"][0] == pytest.approx(0.8, abs=0.05) and own["curvature"][0] == pytest.approx(0, abs=0.02)
    assert own["asymmetry"][0] == pytest.approx(0, abs=0.1)
    assert own["r2"][0] > 0.99 and own["random_r2"][0] < 0.9


def test_saturation_is_linear_only_near_zero():
    claim = checked(claims.linear(made.curves(lambda a: 2 * np.tanh(2 * a), noise=0.05)))
    assert claim.verdict == MIXED and claim.evidence["verdicts"]["judge"] == {"1": YES, "2": NO, "4": NO}


def test_one_side_only_is_not_linear():
    claim = claims.linear(made.curves(lambda a: max(a, 0.0) ** 2, noise=0.02))
    assert claim.verdict == NO
    own = claim.evidence["judge"]["joy"]["2"]
    assert own["asymmetry"][0] == pytest.approx(1, abs=0.1) and own["curvature"][1] > 0
    assert own["r2"][0] < 0.9 < own["r2_parabola"][0]


@pytest.mark.parametrize("seed", range(2))
def test_neither_noise_nor_a_falling_line_is_linear_control(seed):
    assert claims.linear(made.curves(lambda a: 0.0, noise=1.0, seed=seed)).verdict != YES
    assert claims.linear(made.curves(lambda a: -a, seed=seed)).verdict == NO


def test_few_doses_leave_ranges_out():
    claim = claims.linear(made.curves(line, doses=(-1.0, 0.0, 0.5, 1.0)))
    assert set(claim.evidence["verdicts"]["judge"]) == {"1"}, "range 2 would hold no dose beyond 1"
    with pytest.raises(EmolabError, match="at least four doses"):
        claims.linear(made.curves(line, doses=(0.0, 1.0)))


# additive ----------------------------------------------------------------------------------------------------------

NOTHING = {"random": lambda a, b: 0.0}


@pytest.mark.parametrize("noise", [0.005, 0.05])
def test_effects_that_add_up_are_additive(noise):
    add = lambda a, b: 2 * a - 0.5 * b  # noqa: E731
    claim = checked(claims.additive(made.pairs({"whole": add, "specific": add, **NOTHING}, noise=noise)))
    assert claim.verdict == YES
    own = claim.evidence["log-odds"]["whole"]
    assert own["gain"][0] == pytest.approx(2, abs=0.05) and own["other"][0] == pytest.approx(-0.5, abs=0.05)


def test_interaction_is_measured_exactly():
    act = lambda a, b: 2 * a - 0.5 * b - 0.6 * a * b  # noqa: E731
    grid = made.pairs({"whole": act, "specific": act, **NOTHING}, noise=0.0, levels=(0.0, 0.5, 2.0))
    claim = checked(claims.additive(grid))
    own = claim.evidence["log-odds"]["whole"]
    assert claim.verdict == NO and pytest.approx(-0.6) == own["coefficient"][0]
    assert own["minus_random"][0] == pytest.approx(-0.6)
    assert own["share"][0] == pytest.approx(-0.6 * 4 / 4) and own["joint"][0] == pytest.approx(4 - 1 - 2.4)
    cell = claim.table[(claim.table["kind"] == "whole") & (claim.table["pair"] == "joy + fear")]
    assert set(cell["target"]) == {"joy", "fear"} and np.allclose(cell["coefficient"], -0.6)


def test_only_the_shared_base_interacts():
    effects = {"whole": lambda a, b: a + b - 0.7 * a * b, "specific": lambda a, b: a, **NOTHING}
    claim = claims.additive(made.pairs(effects))
    verdicts = {kind: own.get("verdict") for kind, own in claim.evidence["log-odds"].items()}
    assert claim.verdict == MIXED and verdicts == {"whole": NO, "specific": YES, "random": None}


def test_the_doses_of_a_target_are_its_own():
    """An effect of a alone, whoever the target is, is no effect of the target's own dose."""
    grid = made.pairs({"whole": lambda a, b: a, "specific": lambda a, b: a, **NOTHING}, noise=0.001)
    swapped = grid.assign(first=grid["second"], second=grid["first"], a=grid["b"], b=grid["a"])
    for table in (grid, swapped):
        own = claims.additive(table).evidence["log-odds"]["whole"]
        assert own["gain"][0] == pytest.approx(1, abs=0.01) and own["other"][0] == pytest.approx(0, abs=0.01)


def test_nothing_gained_is_nothing_to_add():
    nothing = {"whole": lambda a, b: 0.0, "specific": lambda a, b: 0.0, **NOTHING}
    claim = checked(claims.additive(made.pairs(nothing, noise=0.3)))
    assert claim.verdict == MIXED and "no gain to add to" in claim.condition
    assert claim.evidence["log-odds"]["whole"]["share"] == [None] * 3
    nothing = claim.table["gain_lo"] <= 0
    assert nothing.any() and claim.table.loc[nothing, ["share", "share_lo", "share_hi"]].isna().all(axis=None)


# errors ------------------------------------------------------------------------------------------------------------


CURVES, DRIFT = made.curves(line), made.drift(lambda a: a, lambda a: a)
PAIRS = made.pairs({"whole": lambda a, b: a, **NOTHING})


@pytest.mark.parametrize(
    ("claim", "table", "message"),
    [
        (claims.monotone, CURVES[CURVES["control"] != "random"], 'needs control "random"'),
        (claims.linear, CURVES[CURVES["control"] != "random"], 'needs control "random"'),
        (claims.monotone, CURVES[CURVES["alpha"] != 0], "measured from unsteered texts"),
        (claims.linear, CURVES[CURVES["alpha"] != 0], "measured from unsteered texts"),
        (claims.monotone, CURVES[~CURVES["alpha"].abs().isin([0.5, 1])], "a slope at 0 needs a dose within 1"),
        (claims.preservation, DRIFT[DRIFT["control"] != "random"], "comes from drift_runs"),
        (claims.preservation, DRIFT[DRIFT["alpha"] > 1], "comes from drift_runs"),
        (claims.additive, PAIRS[PAIRS["control"] != "random"], "see pair_runs"),
        (claims.additive, PAIRS[(PAIRS["a"] > 0) & (PAIRS["b"] > 0)], "see pair_runs"),
    ],
)
def test_claims_want_their_controls(claim, table, message):
    with pytest.raises(EmolabError, match=message):
        claim(table)


def test_four_situations_cannot_show_a_drop():
    found = claims.monotone(made.curves(line, n=8)).evidence["judge"]
    assert (found["local"], found["global"], found["n_global"]) == (YES, MIXED, 0)


def test_texts_that_no_judge_can_read():
    """One such text leaves its query out; a dose at which none can be read leaves nothing to say."""
    table = made.curves(line)
    one = table.index[(table["query_id"] == "q3") & (table["control"] == "none") & (table["alpha"] == 4)]
    claim = claims.monotone(table.assign(value=table["value"].mask(table.index.isin(one))))
    assert claim.verdict == YES and set(claim.table.query("control == 'none'")["n"]) == {15}
    with pytest.raises(EmolabError, match=r"no query has a value of \w+ at every dose of control 'none'"):
        claims.monotone(table.assign(value=table["value"].mask(table["alpha"] == 4)))
