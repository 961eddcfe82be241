"""Choices: probabilities of given answers are the model's, steering is each row's own, planted effects are found."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab import say
from emolab.answers.logprobs import token_logprobs
from emolab.base.errors import EmolabError
from emolab.data import FOLDER
from emolab.experiments import (
    choice_shifts,
    choices,
    last_projections,
    load_choices,
    number_questions,
    number_trends,
    pair_questions,
    preferences,
)
from emolab.experiments.options import DRAWS
from emolab.experiments.pairs import _ELO
from emolab.models.prompts import render_prompts
from emolab.steering.steering import Steering
from emolab.vectors.controls import random_like
from emolab.vectors.vectors import extract_vectors
from tests import oracle

ASKED = ["did you walk in the park ?", "was it cold today and dark ?", "how did you feel about it ?"]
OPTIONS = ["good and warm", "bad"]


@pytest.fixture(scope="module")
def vectors(tiny_llama):
    queries = list(oracle.queries(n_train=5, n_heldout=0)["query"])
    return extract_vectors(tiny_llama, oracle.responses(tiny_llama, queries, ("anger", "joy")))


def by_transformers(model, query: str, option: str) -> np.ndarray:
    prompt = model.tokenizer(render_prompts(model, [query])[0], add_special_tokens=False).input_ids
    text = model.tokenizer(option, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model.hf(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
    return np.array([logits[len(prompt) + i - 1, token].item() for i, token in enumerate(text)])


def test_log_probabilities_are_those_of_transformers_alone(tiny_llama):
    table = choices(tiny_llama, ASKED, OPTIONS)
    assert len(table) == 6 and list(table["option"][:2]) == OPTIONS and set(table["control"]) == {"none"}
    for row in table.itertuples():
        expected = by_transformers(tiny_llama, row.query, row.option)
        assert row.logprob == pytest.approx(expected.sum(), abs=1e-4)
        assert row.per_token == pytest.approx(expected.mean(), abs=1e-4)
    for by, column in (("sum", "logprob"), ("token", "per_token")):
        for _, rows in choices(tiny_llama, ASKED, OPTIONS, by=by).groupby("query_id"):
            expected = torch.tensor(rows[column].to_numpy()).softmax(0).numpy()
            assert rows["p"].to_numpy() == pytest.approx(expected)
            assert list(rows["top"]) == list(expected == expected.max())


def test_each_question_may_have_options_of_its_own_and_hands_on_its_columns(tiny_llama):
    questions = pd.DataFrame({"query_id": ["a", "b"], "query": ASKED[:2], "number": [3, 4]})
    table = choices(tiny_llama, questions, [["good", "bad"], ["sun", "rain", "dog"]])
    assert list(table["option"]) == ["good", "bad", "sun", "rain", "dog"]
    assert list(table["number"]) == [3, 3, 4, 4, 4]
    assert table.groupby("query_id")["p"].sum().to_numpy() == pytest.approx(1)


def test_every_row_is_steered_as_it_is_alone(tiny_llama, vectors):
    joy = Steering(vectors, {"joy": 1.0}, layers="late")
    table = choices(tiny_llama, ASKED, OPTIONS, steering=joy, alphas=(0, 4))
    count = table.groupby(["control", "alpha"]).size().to_dict()
    assert count == {("none", 0.0): 6, ("none", 4.0): 6, ("random", 4.0): 6 * DRAWS}
    plain = choices(tiny_llama, ASKED, OPTIONS)["logprob"]
    assert table[table["alpha"] == 0]["logprob"].to_numpy() == pytest.approx(plain, abs=1e-4)
    steered = table[table["alpha"] == 4]
    assert steered.groupby("option")["logprob"].std().min() > 1e-3
    for row in steered.groupby(["control", "seed"]).head(2).itertuples():
        used = vectors if row.control == "none" else random_like(vectors, seed=row.seed)
        alone = Steering(used, {"joy": 4.0}, layers="late")
        prompt = render_prompts(tiny_llama, [row.query])
        expected = token_logprobs(tiny_llama, prompt, [row.option], steering=alone)[0].sum()
        assert row.logprob == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("questions", "options", "given", "message"),
    [
        (ASKED, ["good"], {}, "expected at least two, all different"),
        (ASKED, ["good", "good"], {}, "expected at least two, all different"),
        (ASKED, "good", {}, "options are 'good'; expected a list of texts"),
        (ASKED, ["good", " "], {}, "expected texts with words"),
        (ASKED, [["good", "bad"]], {}, "there are 1 lists of options and 3 questions; expected one list for each"),
        ([], OPTIONS, {}, "empty"),
        (ASKED, OPTIONS, {"by": "mean"}, "unknown by 'mean'; expected one of sum, token"),
        (ASKED, OPTIONS, {"steering": "joy"}, "expected EmotionVectors, a Steering or a list of these"),
    ],
)
def test_bad_input_is_refused_in_one_line(tiny_llama, questions, options, given, message):
    with pytest.raises(EmolabError, match=message) as refused:
        choices(tiny_llama, questions, options, **given)
    assert "\n" not in str(refused.value)


def test_pairs_are_asked_in_both_orders():
    asked = pair_questions(["sing", "dance", "sleep"])
    assert len(asked) == 6 and asked["situation"].value_counts().eq(2).all()
    assert set(zip(asked["first"], asked["second"], strict=True)) == {
        (a, b) for a in ("sing", "dance", "sleep") for b in ("sing", "dance", "sleep") if a != b
    }
    assert asked["query"][0] == "Would you rather sing or dance?"
    for items, wording, message in (
        (["sing"], "{first} {second}", "expected at least two"),
        (["sing", "sing"], "{first} {second}", "all different"),
        (["sing", "dance"], "{first}", 'expected a text with "{first}" and "{second}"'),
    ):
        with pytest.raises(EmolabError, match=message):
            pair_questions(items, wording)


def answered(strengths: dict[str, float], place: float) -> pd.DataFrame:
    """A table of choices whose log-odds are the difference of two strengths, and what the first place is worth."""
    rows = []
    for q in pair_questions(list(strengths)).to_dict("records"):
        odds = strengths[q["first"]] - strengths[q["second"]] + place
        for p in (1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(odds))):
            rows.append({**q, "emotion": "joy", "control": "none", "alpha": 0.0, "seed": -1, "p": p})
    return pd.DataFrame(rows)


def test_planted_strengths_are_recovered_whatever_the_place_is_worth():
    planted = {"sing": 1.0, "dance": 0.25, "sleep": -0.5, "queue": -0.75, "wait": -1.05, "read": 1.05}
    for place, agree in ((0.0, 1.0), (0.9, 8 / 15), (50.0, 0.0)):
        found = preferences(answered(planted, place)).set_index("item")
        for column in ("strength", "lo", "hi"):
            assert found[column].to_numpy() == pytest.approx(_ELO * np.array(list(planted.values())), abs=1e-6)
        assert found["agree"].iloc[0] == pytest.approx(agree)
    assert found["first_share"].iloc[0] == pytest.approx(1)
    table = answered(planted, 0)
    two = table[table["situation"].isin(["dance | sing", "queue | sleep"])]
    assert preferences(two)["strength"].isna().all(), "two pairs that were never compared with each other"
    with pytest.raises(EmolabError, match="other than two options"):
        preferences(table.iloc[1:])


def moved(joy: float, draws: list[float], n: int = 8) -> pd.DataFrame:
    """Choices of n questions: unsteered .3, .31, ..., and the shifts of the vector and of single random directions."""
    rows = []
    for q in range(n):
        base = {"query_id": f"q{q}", "query": "?", "situation": f"q{q}", "emotion": "joy", "option": "Yes"}
        shifts = [("none", 0.0, -1, 0.0), ("none", 1.0, -1, joy + 0.001 * q)]
        shifts += [("random", 1.0, k, shift) for k, shift in enumerate(draws)]
        rows += [{**base, "control": c, "alpha": a, "seed": k, "p": 0.3 + 0.01 * q + s} for c, a, k, s in shifts]
    return pd.DataFrame(rows)


def test_shifts_stand_beside_the_mean_and_the_range_of_random_directions():
    shifts = choice_shifts(moved(0.2, [-0.1, 0.06])).set_index(["control", "alpha"])
    own, random = shifts.loc[("none", 1.0)], shifts.loc[("random", 1.0)]
    assert own["value"] == pytest.approx(0.3 + 0.035 + 0.2035) and own["shift"] == pytest.approx(0.2035)
    assert own["minus_random"] == pytest.approx(0.2235) and own["p"] == 2 / 2**8
    assert (own["draws_lo"], own["draws_hi"]) == pytest.approx((-0.1, 0.06)) and own["n"] == 8
    assert own["shift_lo"] < 0.2035 < own["shift_hi"] and random["shift"] == pytest.approx(-0.02)
    assert np.isnan(shifts.loc[("none", 0.0), "p"]) and own["q"] == own["p"], "one test"
    said = say.choice_curve(choice_shifts(moved(0.2, [-0.1, 0.06])))
    assert said.startswith('Dose 1 moves the probability of "Yes" by joy +0.20 [')
    assert said.endswith("(random directions -0.10 to +0.06).")


def test_what_one_random_direction_does_too_is_no_difference():
    said = say.choice_curve(choice_shifts(moved(0.2, [-0.2, 0.3])))
    assert said.endswith("For joy no difference from random directions was found.")
    table = moved(0.2, [0.1])
    with pytest.raises(EmolabError, match="several options of one question"):
        choice_shifts(pd.concat([table, table.assign(option="No")]))


def test_trends_of_numbers_have_a_permuted_null():
    asked = number_questions({"rising": "{n} wasps.", "falling": "page {n}.", "flat": "at {n}."}, [1, 2, 5, 10, 20])
    sign = asked["situation"].map({"rising": 1, "falling": -1, "flat": 0})
    trends = number_trends(asked.assign(p=0.5 + sign * asked["number"] / 100, frightening=sign > 0))
    alone = trends[trends["situation"] != "all"].set_index("situation")
    assert alone.loc["rising", "rho"] == pytest.approx(1) and alone.loc["falling", "rho"] == pytest.approx(-1)
    assert alone.loc["rising", "p"] == pytest.approx(2 / 120, abs=0.005)
    assert np.isnan(alone.loc["flat", "rho"]) and np.isnan(alone.loc["flat", "p"])
    pooled = trends[(trends["situation"] == "all") & trends["frightening"]]
    assert pooled["rho"].item() == pytest.approx(1) and pooled["k"].item() == 1
    with pytest.raises(EmolabError, match='expected a text with "{n}" in it'):
        number_questions({"wasps": "many wasps."}, [1])
    with pytest.raises(EmolabError, match="the templates are 'wasps'; expected {name"):
        number_questions("wasps", [1])
    assert number_questions({"far": "{n} miles."}, [12_000_000, 0.5], "")["query"].to_list() == [
        "12000000 miles.",
        "0.5 miles.",
    ]
    with pytest.raises(EmolabError, match="one of values is 'two'"):
        number_questions({"wasps": "{n} wasps."}, ["two"])


def test_last_projections_are_those_of_the_hidden_states(tiny_llama, vectors):
    asked = pd.DataFrame({"query_id": ["a", "b"], "query": [ASKED[0], f"{ASKED[1]} {ASKED[2]}"], "number": [1, 2]})
    found = last_projections(tiny_llama, asked, vectors, layers=[0, 1])
    assert len(found) == 2 * 2 * 2 and list(found["number"]) == [1] * 4 + [2] * 4
    for row in found.itertuples():
        ids = tiny_llama.tokenizer(render_prompts(tiny_llama, [row.query]), add_special_tokens=False).input_ids
        with torch.no_grad():
            hidden = tiny_llama.hf(torch.tensor(ids), output_hidden_states=True).hidden_states[row.layer + 1][0, -1]
        direction = vectors.get("resid", emotion=row.emotion, layer=row.layer)
        assert row.projection == pytest.approx(float(hidden @ direction / direction.norm()), abs=1e-4)
    with pytest.raises(EmolabError, match='no single activation at site "head"'):
        last_projections(tiny_llama, asked, vectors, site="head", layers=[0])


def test_bundled_choices_are_what_their_card_says():
    activities = load_choices("activities")
    assert len(activities) == 16 == activities["activity"].nunique()
    assert activities["category"].value_counts().eq(2).all() and activities["category"].nunique() == 8
    assert activities["pleasant"].sum() == 8
    numbers = load_choices("numbers")
    assert numbers.groupby("situation")["number"].nunique().eq(8).all()
    assert numbers.groupby("situation")["frightening"].first().sum() == 4 and numbers["situation"].nunique() == 6
    advice = load_choices("advice")["query"]
    assert len(advice) == 16 == advice.nunique() and advice.str.match(r"Should I [^?]+\?$").all()
    for path in (FOLDER / "choices").glob("*.json"):
        assert path.read_text(encoding="ascii") and path.stem in json.loads(path.read_text(encoding="ascii"))
    with pytest.raises(EmolabError, match="unknown set of choices 'food'; expected one of activities, numbers, advice"):
        load_choices("food")


@pytest.mark.slow
def test_the_default_model_answers_with_the_first_letter_but_joy_makes_pleasant_texts_likelier(smollm2):
    items = ["walk along the beach", "have dinner with old friends", "wash a week of dishes", "fill in a tax form"]
    lettered = pair_questions(items, "Which would you rather do?\nA: {first}\nB: {second}\nAnswer with A or B.")
    by_place = preferences(choices(smollm2, lettered, ["A", "B"]))
    assert by_place["agree"].eq(0).all() and by_place["first_share"].gt(0.65).all()
    asked = pair_questions(items)
    joy = Steering(emolab.load_vectors("smollm2"), {"joy": 1.0}, site="attn", layers="late", unit="breaking")
    table = preferences(choices(smollm2, asked, asked[["first", "second"]].to_numpy().tolist(), steering=joy))
    assert table[table["alpha"] == 0]["agree"].gt(0.6).all()
    gap = table.assign(pleasant=table["item"].isin(items[:2])).groupby(["control", "alpha", "seed", "pleasant"])
    gap = gap["strength"].mean().unstack().diff(axis=1)[True]
    assert gap["none", 1.0].item() > gap["random"].max() > gap["random"].min() > 0
