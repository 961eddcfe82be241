"""Runs behind the claims: every number is what its row says, work is done once, and a broken run goes on."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.answers.generation import generate
from emolab.answers.logprobs import next_token_kl, token_logprobs
from emolab.base.errors import EmolabError
from emolab.comparisons import bench, claims
from emolab.comparisons.bench import Bench
from emolab.comparisons.claim_runs import check_claims, drift_runs, logodds_runs, pair_runs
from emolab.experiments.sweeps import sweep
from emolab.judges.judges import FunctionJudge
from emolab.judges.scoring import score
from emolab.models.prompts import render_prompts
from emolab.steering.steering import Steering
from emolab.vectors.controls import random_like, shuffled_like
from emolab.vectors.vectors import extract_vectors
from tests import oracle, tiny

EMOTIONS = ("anger", "joy", "sadness")
SMALL = {"site": "attn"}


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


def source_of(row, model, vectors):
    """The vectors that a row says it was steered with, made anew."""
    used = vectors.part("specific") if getattr(row, "part", "whole") == "specific" else vectors
    one = type(used)({"attn": used.get("attn")}, used.emotions, used.resid_norm, used.meta, used.means)
    if row.control == "shared":
        base = torch.nn.functional.normalize(vectors.get("attn").double().mean(0), dim=-1)
        data = base * used.get("attn").double().norm(dim=-1, keepdim=True)
        return type(used)({"attn": data}, used.emotions, used.resid_norm, used.meta)
    makers = {"random": random_like, "shuffled": lambda v, seed: shuffled_like(v, model=model, seed=seed)}
    return one if row.control == "none" else makers[row.control](one, seed=row.seed)


def answers_of(responses):
    return {
        (q, c): (p, t) for q, c, p, t in responses[["query_id", "condition", "prompt", "text"]].itertuples(index=False)
    }


def mean_logp(model, prompt, text, steering):
    return token_logprobs(model, [prompt], [text], steering=steering)[0].mean()


def test_logodds_are_those_of_the_two_answers(tiny_llama, vectors, queries, responses):
    table = logodds_runs(tiny_llama, vectors, queries, responses, alphas=(-2, 0, 1), **SMALL)
    counts = table.groupby(["control", "alpha"]).size().to_dict()
    cells = {("none", 0.0), ("prompt", 0.0), *((c, a) for c in ("none", "random", "shuffled") for a in (-2.0, 1.0))}
    assert counts == dict.fromkeys(cells, 5 * 3) and not table.isna().any(axis=None)
    told = answers_of(responses)
    for row in table.sample(30, random_state=0).itertuples():
        steering = (
            Steering(source_of(row, tiny_llama, vectors), {row.emotion: row.alpha}, site="attn") if row.alpha else None
        )
        prompt = told[row.query_id, row.emotion if row.control == "prompt" else "neutral"][0]
        own, plain = (
            mean_logp(tiny_llama, prompt, told[row.query_id, c][1], steering) for c in (row.emotion, "neutral")
        )
        assert row.value == pytest.approx(own - plain, abs=1e-4), row


def test_drift_is_measured_on_what_was_written(tiny_llama, vectors, queries, responses):
    table = drift_runs(tiny_llama, vectors, queries, responses, alphas=(0.5, 9), max_new_tokens=6, **SMALL)
    assert set(table["control"]) == {"none", "random", "shuffled", "shared", "prompt"} and len(table) == 5 * 3 * (
        4 * 2 + 1
    )
    told, asked = answers_of(responses), dict(zip(queries["query_id"], queries["query"], strict=True))
    plain = dict(zip(asked, generate(tiny_llama, list(asked.values()), max_new_tokens=6), strict=True))
    before, topic = oracle.embed(list(plain.values())), oracle.embed(list(asked.values()))
    others = ~np.eye(5, dtype=bool)
    unit = (1 - before @ before.T)[others].mean(), (before * topic).sum(1).mean() - (before @ topic.T)[others].mean()
    place = {q: i for i, q in enumerate(asked)}
    for row in table.sample(40, random_state=1).itertuples():
        steering = None
        if row.control != "prompt":
            steering = Steering(source_of(row, tiny_llama, vectors), {row.emotion: row.alpha}, site="attn")
            assert [row.text] == generate(tiny_llama, asked[row.query_id], steering=steering, max_new_tokens=6), row
        else:
            assert row.text == told[row.query_id, row.emotion][1] and row.alpha == 0
        after, i = oracle.embed([row.text])[0], place[row.query_id]
        assert row.answer == pytest.approx((1 - after @ before[i]) / unit[0], abs=1e-4)
        assert row.topic == pytest.approx((before[i] @ topic[i] - after @ topic[i]) / unit[1], abs=1e-3)
        prompt, text = told[row.query_id, "neutral"]
        other = [told[row.query_id, row.emotion][0]] if row.control == "prompt" else None
        kl = next_token_kl(tiny_llama, [prompt], [text], steering=steering, other_prompts=other)[0]
        assert row.kl == pytest.approx(kl.mean(), rel=1e-3, abs=1e-5), row
    same = table["text"] == table["query_id"].map(plain)
    assert same.any() and (table.loc[same, "answer"].abs() < 1e-5).all() and (table.loc[~same, "answer"] > 1e-4).all()


def test_next_token_kl_is_quadratic_for_random_directions_too(tiny_llama, vectors, queries, responses):
    options = {"alphas": (0.01, 0.02), "max_new_tokens": 2, **SMALL}
    kl = drift_runs(tiny_llama, vectors, queries, responses, **options).groupby(["control", "alpha"])["kl"].mean()
    for control in ("none", "random", "shuffled", "shared"):
        assert 1.7 < np.log2(kl[control, 0.02] / kl[control, 0.01]) < 2.3, "so that its slope is no evidence"


@pytest.mark.parametrize("site", ["attn", "head"])
def test_controls_are_as_long_as_the_vector(tiny_llama, vectors, queries, responses, site):
    made = Bench.of(tiny_llama, vectors, queries, responses, site, "all", 0, None, False)
    for part in ("whole", "specific"):
        sources = made.sources(part, ("random", "shuffled", "shared"))
        assert {c: len(v) for c, v in sources.items()} == {"none": 1, "random": 3, "shuffled": 3, "shared": 1}
        for emotion in EMOTIONS:
            lengths = {
                c: [s.table().norm(dim=-1) for _, s in made.steer(variants, {emotion: 2.0})]
                for c, variants in sources.items()
            }
            for control, found in lengths.items():
                for length in found:
                    torch.testing.assert_close(length, lengths["none"][0], rtol=1e-4, atol=1e-6, msg=control)


def test_pairs_are_steered_by_both(tiny_llama, vectors, queries, responses):
    options = {"pairs": [("anger", "joy"), ("joy", "sadness")], "doses": (0.5, 2.0), "max_new_tokens": 6}
    table = pair_runs(tiny_llama, vectors, queries, responses, **options, **SMALL)
    assert len(table) == 5 * 2 * 2 * 9 * 3 and not table.isna().any(axis=None)
    assert set(zip(table["part"], table["control"], strict=True)) == {
        ("whole", "none"), ("specific", "none"), ("whole", "random"),
    }  # fmt: skip
    told, asked = answers_of(responses), dict(zip(queries["query_id"], queries["query"], strict=True))
    for row in table.sample(40, random_state=2).itertuples():
        doses = {e: d for e, d in ((row.first, row.a), (row.second, row.b)) if d}
        steering = Steering(source_of(row, tiny_llama, vectors), doses, site="attn") if doses else None
        assert [row.text] == generate(tiny_llama, asked[row.query_id], steering=steering, max_new_tokens=6), row
        prompt, plain = told[row.query_id, "neutral"]
        own = mean_logp(tiny_llama, prompt, told[row.query_id, row.target][1], steering)
        assert row.value == pytest.approx(own - mean_logp(tiny_llama, prompt, plain, steering), abs=1e-4), row
    assert set(table.loc[table["first"] == "anger", "target"]) == {"anger", "joy"}


class Counting:
    """A function of comparisons.bench: counts the prompts it is asked for, fails once after `fail_after` calls."""

    def __init__(self, function, fail_after=None):
        self.function, self.asked, self.calls, self.fail_after = function, 0, 0, fail_after

    def __call__(self, model, prompts, *args, **options):
        if self.calls == self.fail_after:
            raise RuntimeError("power cut")
        self.calls, self.asked = self.calls + 1, self.asked + len(prompts)
        return self.function(model, prompts, *args, **options)


def test_equal_work_is_done_once(tiny_llama, vectors, queries, responses, monkeypatch):
    writing, reading = Counting(generate), Counting(token_logprobs)
    monkeypatch.setattr(bench, "generate", writing)
    monkeypatch.setattr(bench, "token_logprobs", reading)
    pair_runs(tiny_llama, vectors, queries, responses, max_new_tokens=2, **SMALL)
    # Three emotions are three pairs. Of each kind: a dose of one emotion is shared by its two pairs.
    settings = 3 * (3 * 2 + 3 * 2 * 2)
    assert writing.asked == 5 * (settings + 1)
    singles, joint = (
        3 * 3 * 2 * 4,
        3 * 3 * 4 * 3,
    )  # texts: all four of a single dose, the two and neutral of a joint one
    assert reading.asked == 5 * (singles + joint + 4)


@pytest.mark.parametrize("run", [drift_runs, logodds_runs, pair_runs])
def test_a_broken_run_goes_on_where_it_was(tiny_llama, vectors, queries, responses, run, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_CHUNK", 16)
    options = {"max_new_tokens": 3} if run is not logodds_runs else {}
    options |= {"doses": (1.0,)} if run is pair_runs else {"alphas": (0, 1.0)}
    whole = run(tiny_llama, vectors, queries, responses, **options, **SMALL)
    call = lambda **more: run(tiny_llama, vectors, queries, responses, **{**options, **more}, out=tmp_path, **SMALL)  # noqa: E731
    name = "token_logprobs" if run is logodds_runs else "generate"
    function = getattr(bench, name)
    monkeypatch.setattr(bench, name, broken := Counting(function, fail_after=3))
    with pytest.raises(RuntimeError, match="power cut"):
        call()
    assert broken.asked == 48
    monkeypatch.setattr(bench, name, rest := Counting(function))
    pd.testing.assert_frame_equal(call(), whole)
    assert rest.asked > 0
    monkeypatch.setattr(bench, name, nothing := Counting(function))
    pd.testing.assert_frame_equal(call(), whole)
    assert nothing.asked == 0
    for more in ({"seed": 1}, {"layers": [0]}):
        with pytest.raises(EmolabError, match="made with other settings.*choose another out folder"):
            call(**more)


def test_layers_and_seeds_are_used(tiny_llama, vectors, queries, responses):
    run = lambda **more: logodds_runs(tiny_llama, vectors, queries, responses, alphas=(3,), **more, **SMALL)  # noqa: E731
    everywhere, first, other = run(), run(layers=[0]), run(seed=7)
    steered = everywhere["alpha"] != 0
    assert not np.allclose(everywhere["value"][steered], first["value"][steered])
    random = everywhere["control"] == "random"
    assert set(other.loc[random, "seed"]) == {7, 8, 9} and not np.allclose(
        everywhere["value"][random], other["value"][random]
    )
    np.testing.assert_allclose(everywhere["value"][~steered], first["value"][~steered])


def test_all_four_claims_of_a_model(tiny_llama, vectors, queries, responses, tmp_path):
    judge = FunctionJudge(lambda texts: [[0.5, 0.3, 0.1, 0.1] if "joy" in t else [0.1, 0.2, 0.3, 0.4] for t in texts],
                          (*EMOTIONS, "neutral"))  # fmt: skip
    options = {"alphas": (-1, 0, 0.5, 1, 2, 4), "controls": ("random",), "grid": {"site": "attn"}, "max_new_tokens": 4}
    scored = score(sweep(tiny_llama, vectors, queries, **options), judges=judge)
    call = lambda: check_claims(  # noqa: E731
        tiny_llama, vectors, queries, responses, scored, judge=judge, n_queries=4, out=tmp_path,
        setting={"site": "attn", "layers": "all", "part": "whole", "op": "add"},
    )  # fmt: skip
    found = call()
    assert list(found) == ["monotone", "preservation", "linear", "additive"]
    for name, claim in found.items():
        assert isinstance(claim, claims.Claim) and claim.name == name and json.dumps(claim.evidence, allow_nan=False)
    assert {s: len(t) for s, t in found["linear"].table.groupby("scale")} == {"judge": 3 * 2 * 6, "log-odds": 3 * 3 * 9}
    assert found["preservation"].table["n"].max() == 4 and found["monotone"].table["n"].max() == 5
    chosen = pd.read_parquet(tmp_path / "logodds.parquet")
    assert chosen["situation"].nunique() == 3, "of different situations first"
    again = call()
    assert all(again[name].evidence == claim.evidence for name, claim in found.items())


def test_one_emotion_has_no_sums(tiny_llama, queries, responses):
    told = responses[responses["condition"].isin(["neutral", "joy"])]
    vectors = extract_vectors(tiny_llama, told, sites=("attn",))
    scored = logodds_runs(tiny_llama, vectors, queries, told, **SMALL).drop(columns="value")
    scored = scored.assign(p_joy=np.random.default_rng(0).uniform(0.1, 0.9, len(scored)))
    found = check_claims(tiny_llama, vectors, queries, told, scored, setting={"site": "attn"})
    assert list(found) == ["monotone", "preservation", "linear"]
    with pytest.raises(EmolabError, match="pairs of two different ones of joy"):
        pair_runs(tiny_llama, vectors, queries, told, **SMALL)


def test_what_cannot_be_run_is_one_clear_error(tiny_llama, vectors, queries, responses):
    for run in (drift_runs, logodds_runs):
        with pytest.raises(EmolabError, match="expected whole or specific"):
            run(tiny_llama, vectors, queries, responses, part="shared", **SMALL)
    for told in (responses[responses["condition"] != "joy"], responses.head(1)):
        with pytest.raises(EmolabError, match='0 of 5 queries have answers under neutral.*pairing="all"'):
            logodds_runs(tiny_llama, vectors, queries, told, **SMALL)
    silent = responses.assign(text=responses["text"].where(responses["condition"] != "joy", " "))
    with pytest.raises(EmolabError, match="0 of 5 queries"):
        drift_runs(tiny_llama, vectors, queries, silent, **SMALL)
    with pytest.raises(EmolabError, match="these vectors hold no site 'mlp'"):
        logodds_runs(tiny_llama, vectors, queries, responses, site="mlp")
    for pairs in ([("joy", "joy")], [("joy", "calm")], []):
        with pytest.raises(EmolabError, match="expected pairs of two different ones of anger, joy, sadness"):
            pair_runs(tiny_llama, vectors, queries, responses, pairs=pairs, **SMALL)
    with pytest.raises(EmolabError, match="need the response means"):
        logodds_runs(tiny_llama, tiny.random_vectors(tiny_llama), queries, responses, **SMALL)


def test_prompts_are_those_of_the_responses(tiny_llama, vectors, queries, responses):
    """Templates of the responses hold here too: nothing renders the query anew."""
    templates = {"neutral": "so {query}", "joy": "very glad {query}"}
    told = responses[responses["condition"].isin(templates)].copy()
    told["prompt"] = [
        render_prompts(tiny_llama, [q], c, templates=templates)[0]
        for q, c in zip(told["query"], told["condition"], strict=True)
    ]
    own = extract_vectors(tiny_llama, told, sites=("attn",))
    table = logodds_runs(tiny_llama, own, queries, told, alphas=(0,), **SMALL).set_index(["query_id", "control"])[
        "value"
    ]
    answers = answers_of(told)
    for query in queries["query_id"]:
        for control, condition in (("none", "neutral"), ("prompt", "joy")):
            prompt = answers[query, condition][0]
            pair = [mean_logp(tiny_llama, prompt, answers[query, c][1], None) for c in ("joy", "neutral")]
            assert table[query, control] == pytest.approx(pair[0] - pair[1], abs=1e-4)
