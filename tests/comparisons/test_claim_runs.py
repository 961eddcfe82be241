"""Runs behind the claims: every number is what its row says, work is done once, and a broken run goes on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.answers.generation import generate
from emolab.answers.logprobs import next_token_kl, token_logprobs
from emolab.base.errors import EmolabError
from emolab.comparisons import steered_runs
from emolab.comparisons.claim_runs import check_claims, drift_runs, logodds_runs, pair_runs
from emolab.comparisons.comparison import Comparison
from emolab.comparisons.steered_runs import SteeredRuns
from emolab.experiments.sweeps import sweep
from emolab.judges.judges import FunctionJudge
from emolab.judges.scoring import score
from emolab.models.prompts import render_prompts
from emolab.steering.settings import Setting
from emolab.steering.steering import Steering, at
from emolab.vectors.controls import random_like, shuffled_like
from emolab.vectors.vectors import extract_vectors
from tests import oracle, tiny

EMOTIONS = ("anger", "joy", "sadness")
ATTN = Setting(site="attn")


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr("emolab.judges.judges.embed", oracle.embed)


@pytest.fixture(scope="module")
def queries():
    return oracle.queries(n_train=5, n_heldout=0)


@pytest.fixture(scope="module")
def responses(tiny_llama, queries):
    return oracle.responses(tiny_llama, list(queries["query"]), EMOTIONS)


@pytest.fixture(scope="module")
def vectors(tiny_llama, responses):
    return extract_vectors(tiny_llama, responses, sites=("resid", "attn", "head"))


@pytest.fixture(scope="module")
def comparison(tiny_llama, vectors):
    return Comparison(tiny_llama, vectors, ATTN)


def steering_of(row, comparison, doses):
    """The steering that a row says it was made with, made anew."""
    doses = {emotion: dose for emotion, dose in doses.items() if dose}
    if row.control == "prompt" or not doses:
        return None
    vectors = comparison.vectors
    used = vectors.part("specific") if getattr(row, "part", "whole") == "specific" else vectors
    used = replace(used, data={"attn": used.get("attn")})
    if row.control == "shared":
        base = torch.nn.functional.normalize(vectors.get("attn").double().mean(0), dim=-1)
        used = replace(used, data={"attn": base * used.get("attn").double().norm(dim=-1, keepdim=True)})
    elif row.control == "random":
        used = random_like(used, seed=row.seed)
    elif row.control == "shuffled":
        used = shuffled_like(used, model=comparison.model, seed=row.seed)
    return Steering(used, doses, site="attn")


def answers_of(responses):
    columns = responses[["query_id", "condition", "prompt", "text"]]
    return {(q, c): (p, t) for q, c, p, t in columns.itertuples(index=False)}


def logodds(model, answers, query, emotion, steering=None, prompted=False):
    prompt = answers[query, emotion if prompted else "neutral"][0]
    texts = [answers[query, c][1] for c in (emotion, "neutral")]
    emotional, neutral = (x.mean() for x in token_logprobs(model, [prompt] * 2, texts, steering=steering))
    return pytest.approx(emotional - neutral, abs=1e-4)


def test_logodds_are_those_of_the_two_answers(comparison, queries, responses):
    table = logodds_runs(comparison, queries, responses, alphas=(-2, 0, 1))
    counts = table.groupby(["control", "alpha"]).size().to_dict()
    cells = {("none", 0.0), ("prompt", 0.0), *((c, a) for c in ("none", "random", "shuffled") for a in (-2.0, 1.0))}
    assert counts == dict.fromkeys(cells, 5 * 3) and not table.isna().any(axis=None)
    answers = answers_of(responses)
    for row in table.sample(20, random_state=0).itertuples():
        steering = steering_of(row, comparison, {row.emotion: row.alpha})
        expected = logodds(comparison.model, answers, row.query_id, row.emotion, steering, row.control == "prompt")
        assert row.value == expected, row


def test_drift_is_measured_on_what_was_written(comparison, queries, responses):
    model = comparison.model
    table = drift_runs(comparison, queries, responses, alphas=(0.5, 9), max_new_tokens=6)
    assert set(table["control"]) == {"none", "random", "shuffled", "shared", "prompt"}
    assert len(table) == 5 * 3 * (4 * 2 + 1)
    answers, asked = answers_of(responses), dict(zip(queries["query_id"], queries["query"], strict=True))
    plain = dict(zip(asked, generate(model, list(asked.values()), max_new_tokens=6), strict=True))
    before, topic = oracle.embed(list(plain.values())), oracle.embed(list(asked.values()))
    others = ~np.eye(5, dtype=bool)
    unit = (1 - before @ before.T)[others].mean(), (before * topic).sum(1).mean() - (before @ topic.T)[others].mean()
    number = {q: i for i, q in enumerate(asked)}
    for row in table.sample(30, random_state=1).itertuples():
        steering = steering_of(row, comparison, {row.emotion: row.alpha})
        if row.control == "prompt":
            assert row.text == answers[row.query_id, row.emotion][1] and row.alpha == 0
        else:
            assert [row.text] == generate(model, asked[row.query_id], steering=steering, max_new_tokens=6), row
        after, i = oracle.embed([row.text])[0], number[row.query_id]
        assert row.answer == pytest.approx((1 - after @ before[i]) / unit[0], abs=1e-4)
        assert row.topic == pytest.approx((before[i] @ topic[i] - after @ topic[i]) / unit[1], abs=1e-3)
        prompt, text = answers[row.query_id, "neutral"]
        other = [answers[row.query_id, row.emotion][0]] if row.control == "prompt" else None
        kl = next_token_kl(model, [prompt], [text], steering=steering, other_prompts=other)[0]
        assert row.kl == pytest.approx(kl.mean(), rel=1e-3, abs=1e-5), row
    same = table["text"] == table["query_id"].map(plain)
    assert same.any() and (table.loc[same, "answer"].abs() < 1e-5).all() and (table.loc[~same, "answer"] > 1e-4).all()


def test_next_token_kl_is_quadratic_for_random_directions_too(comparison, queries, responses):
    table = drift_runs(comparison, queries, responses, alphas=(0.01, 0.02), max_new_tokens=2)
    kl = table.groupby(["control", "alpha"])["kl"].mean()
    for control in ("none", "random", "shuffled", "shared"):
        assert 1.7 < np.log2(kl[control, 0.02] / kl[control, 0.01]) < 2.3, "so that its slope is no evidence"


@pytest.mark.parametrize("site", ["attn", "head"])
def test_controls_are_as_long_as_the_vector(tiny_llama, vectors, queries, responses, site):
    runs = SteeredRuns(Comparison(tiny_llama, vectors, Setting(site=site)), queries, responses)
    for part in ("whole", "specific"):
        sources = runs.sources(part, ("random", "shuffled", "shared"))
        assert {c: len(v) for c, v in sources.items()} == {"none": 1, "random": 3, "shuffled": 3, "shared": 1}
        for emotion in EMOTIONS:
            lengths = {
                (control, seed): at(v, Setting(site=site), [{emotion: 2.0}])[0].table().norm(dim=-1)
                for control, variants in sources.items()
                for seed, v in variants.items()
            }
            for key, length in lengths.items():
                torch.testing.assert_close(length, lengths["none", -1], rtol=1e-4, atol=1e-6, msg=str(key))


def test_pairs_are_steered_by_both(comparison, queries, responses):
    model = comparison.model
    options = {"pairs": [("anger", "joy"), ("joy", "sadness")], "doses": (0.5, 2.0), "max_new_tokens": 6}
    table = pair_runs(comparison, queries, responses, **options)
    assert len(table) == 5 * 2 * 2 * 9 * 3 and not table.isna().any(axis=None)
    kinds = {("whole", "none"), ("specific", "none"), ("whole", "random")}
    assert set(zip(table["part"], table["control"], strict=True)) == kinds
    answers, asked = answers_of(responses), dict(zip(queries["query_id"], queries["query"], strict=True))
    for row in table.sample(30, random_state=2).itertuples():
        steering = steering_of(row, comparison, {row.first: row.a, row.second: row.b})
        assert [row.text] == generate(model, asked[row.query_id], steering=steering, max_new_tokens=6), row
        assert row.value == logodds(model, answers, row.query_id, row.target, steering), row
    assert set(table.loc[table["first"] == "anger", "target"]) == {"anger", "joy"}


class Counting:
    """A function of comparisons.steered_runs: counts the prompts it is asked for, fails after `fail_after` calls."""

    def __init__(self, function, fail_after=None):
        self.function, self.asked, self.calls, self.fail_after = function, 0, 0, fail_after

    def __call__(self, model, prompts, *args, **options):
        if self.calls == self.fail_after:
            raise RuntimeError("power cut")
        self.calls, self.asked = self.calls + 1, self.asked + len(prompts)
        return self.function(model, prompts, *args, **options)


def test_equal_work_is_done_once(comparison, queries, responses, monkeypatch):
    monkeypatch.setattr(steered_runs, "generate", writing := Counting(generate))
    monkeypatch.setattr(steered_runs, "token_logprobs", reading := Counting(token_logprobs))
    pair_runs(comparison, queries, responses, max_new_tokens=2)
    # Three emotions are three pairs. Of each kind: a dose of one emotion is shared by its two pairs.
    assert writing.asked == 5 * (3 * (3 * 2 + 3 * 2 * 2) + 1)
    # All four texts of a single dose, the two and neutral of a joint one, and all four unsteered.
    assert reading.asked == 5 * (3 * 3 * 2 * 4 + 3 * 3 * 4 * 3 + 4)


@pytest.mark.parametrize(
    ("run", "options", "function"),
    [
        (drift_runs, {"alphas": (0, 1.0), "max_new_tokens": 3}, "generate"),
        (logodds_runs, {"alphas": (0, 1.0)}, "token_logprobs"),
        (pair_runs, {"doses": (1.0,), "max_new_tokens": 3}, "generate"),
    ],
)
def test_a_broken_run_goes_on_where_it_was(
    comparison, queries, responses, run, options, function, tmp_path, monkeypatch
):
    monkeypatch.setattr(steered_runs, "CHUNK", 16)
    whole = run(comparison, queries, responses, **options)
    kept = replace(comparison, out=tmp_path)
    counted = getattr(steered_runs, function)
    monkeypatch.setattr(steered_runs, function, broken := Counting(counted, fail_after=3))
    with pytest.raises(RuntimeError, match="power cut"):
        run(kept, queries, responses, **options)
    assert broken.asked == 48
    monkeypatch.setattr(steered_runs, function, rest := Counting(counted))
    pd.testing.assert_frame_equal(run(kept, queries, responses, **options), whole)
    assert rest.asked > 0
    monkeypatch.setattr(steered_runs, function, nothing := Counting(counted))
    pd.testing.assert_frame_equal(run(kept, queries, responses, **options), whole)
    assert nothing.asked == 0
    for other in (replace(kept, seed=1), replace(kept, setting=replace(ATTN, layers=[0]))):
        with pytest.raises(EmolabError, match="made with other settings.*choose another out folder"):
            run(other, queries, responses, **options)


def test_layers_and_seeds_are_used(comparison, queries, responses):
    everywhere, first, other = (
        logodds_runs(one, queries, responses, alphas=(3,))
        for one in (comparison, replace(comparison, setting=replace(ATTN, layers=[0])), replace(comparison, seed=7))
    )
    steered = everywhere["alpha"] != 0
    assert not np.allclose(everywhere["value"][steered], first["value"][steered])
    np.testing.assert_allclose(everywhere["value"][~steered], first["value"][~steered])
    random = everywhere["control"] == "random"
    assert set(other.loc[random, "seed"]) == {7, 8, 9}
    assert not np.allclose(everywhere["value"][random], other["value"][random])


def test_all_four_claims_of_a_model(comparison, queries, responses, tmp_path):
    judge = FunctionJudge(lambda texts: [[0.5, 0.3, 0.1, 0.1] if "joy" in t else [0.1, 0.2, 0.3, 0.4] for t in texts],
                          (*EMOTIONS, "neutral"))  # fmt: skip
    alphas = (-1, 0, 0.5, 1, 2, 4)
    directions = at(comparison.vectors, ATTN)
    table = sweep(comparison.model, directions, queries, alphas=alphas, controls=("random",), max_new_tokens=4)
    scored = score(table, judges=judge)
    kept = replace(comparison, out=tmp_path)
    found, again = (check_claims(kept, queries, responses, scored, judge=judge, n_queries=4) for _ in range(2))
    assert list(found) == ["monotone", "preservation", "linear", "additive"]
    for name, claim in found.items():
        assert claim.name == name and json.dumps(claim.evidence, allow_nan=False)
        assert again[name].evidence == claim.evidence
    assert {s: len(t) for s, t in found["linear"].table.groupby("scale")} == {"judge": 3 * 2 * 6, "log-odds": 3 * 3 * 9}
    assert found["preservation"].table["n"].max() == 4 and found["monotone"].table["n"].max() == 5
    chosen = pd.read_parquet(tmp_path / "logodds.parquet")
    assert chosen["situation"].nunique() == 3, "of different situations first"


def test_one_emotion_has_no_sums(tiny_llama, queries, responses):
    some = responses[responses["condition"].isin(["neutral", "joy"])]
    comparison = Comparison(tiny_llama, extract_vectors(tiny_llama, some, sites=("attn",)), ATTN)
    scored = logodds_runs(comparison, queries, some).drop(columns="value")
    scored = scored.assign(p_joy=np.random.default_rng(0).uniform(0.1, 0.9, len(scored)))
    assert list(check_claims(comparison, queries, some, scored)) == ["monotone", "preservation", "linear"]
    with pytest.raises(EmolabError, match="pairs of two different ones of joy"):
        pair_runs(comparison, queries, some)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, q, r: logodds_runs(replace(c, setting=Setting(site="mlp")), q, r), "hold no site 'mlp'"),
        (lambda c, q, r: logodds_runs(c, q, r[r["condition"] != "joy"]), '0 of 5 queries have.*pairing="all"'),
        (lambda c, q, r: drift_runs(c, q, r.assign(text=r["text"].mask(r["condition"] == "joy", " "))), "0 of 5 quer"),
        (lambda c, q, r: pair_runs(c, q, r, pairs=[]), "expected pairs of two different ones of anger, joy, sadness"),
        (
            lambda c, q, r: logodds_runs(replace(c, vectors=tiny.random_vectors(c.model)), q, r),
            "need the response means",
        ),
    ],
)
def test_what_cannot_be_run_is_one_clear_error(comparison, queries, responses, call, message):
    with pytest.raises(EmolabError, match=message):
        call(comparison, queries, responses)


def test_prompts_are_those_of_the_responses(tiny_llama, queries, responses):
    """Templates of the responses hold here too: nothing renders the query anew."""
    templates = {"neutral": "so {query}", "joy": "very glad {query}"}
    own = responses[responses["condition"].isin(templates)].copy()
    own["prompt"] = [
        render_prompts(tiny_llama, [q], c, templates=templates)[0]
        for q, c in zip(own["query"], own["condition"], strict=True)
    ]
    comparison = Comparison(tiny_llama, extract_vectors(tiny_llama, own, sites=("attn",)), ATTN)
    table = logodds_runs(comparison, queries, own, alphas=(0,)).set_index(["query_id", "control"])["value"]
    for query in queries["query_id"]:
        for control in ("none", "prompt"):
            expected = logodds(tiny_llama, answers_of(own), query, "joy", prompted=control == "prompt")
            assert table[query, control] == expected
