"""Tests of causes find the head that was planted, beside controls, with intervals over situations."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from emolab import plot, say
from emolab.answers.generation import generate
from emolab.base.errors import EmolabError
from emolab.heads.curves import ablation_curve, ranking
from emolab.heads.effects import head_effects
from emolab.heads.head_vectors import head_maps, head_summary
from emolab.heads.patching import HeadTest
from emolab.judges.judges import FunctionJudge
from emolab.models.load import load_model
from emolab.models.prompts import encode
from emolab.models.sites import output_weights, site_hooks, site_layers
from emolab.steering.head_edits import HeadSpace, ablated
from emolab.steering.steering import Steering
from emolab.vectors.activations import response_means
from emolab.vectors.vectors import EmotionVectors, extract_vectors
from tests import tiny
from tests.heads.conftest import WORDS
from tests.heads.test_runs import QUERIES, outputs, unit
from tests.planted import HEAD, JOY, LAYER, SAD, planted_responses

PLACE = (LAYER, HEAD)
MEASURED = ["effect", "lo", "hi", "share"]
CONTROLS = ["p", "q", "random_direction"]


def run(planted, test, function=head_effects, **options):
    return function(planted.model, planted.vectors, planted.responses, test=test, **options)


@pytest.mark.parametrize("op", ["ablate", "patch", "steer"])
def test_effects_name_the_planted_head(planted, op):
    table = run(planted, HeadTest(op, words=WORDS, n_queries=8))
    assert len(table) == planted.model.n_layers * planted.model.n_heads * 2
    sign = -1 if op == "ablate" else 1
    for emotion, own in table.groupby("emotion"):
        top = own.loc[own["share"].idxmax()]
        assert (top["layer"], top["head"], top["name"]) == (*PLACE, f"L{LAYER}H{HEAD}"), emotion
        assert top["q"] < 0.05 and sign * top["lo"] > 0 and sign * top["hi"] > 0
        assert top["share"] > 0.5 and abs(top["random_direction"]) < 0.5 * abs(top["effect"])
        assert top["does"] == "raises" and top["effect"] / (sign * top["gap"]) == pytest.approx(top["share"])
        assert abs(top["other_heads"]) < 0.1 * abs(top["effect"])
        rest = own.drop(index=top.name)
        assert (rest["share"].abs() < 0.1).all()
        assert top["direct"] > 0.5 and (rest["direct"].abs() < 0.3).all()
        assert own["attribution"].abs().idxmax() == top.name and sign * top["attribution"] > 0.3
    assert table.attrs["about"]["n"] == "8 queries" and (table["gap"] > 0).all()
    if op == "patch":  # the planted head restores the whole gap: it alone carries the instruction
        assert table.set_index(["layer", "head"]).loc[PLACE, "share"].between(0.9, 1.1).all()


def test_a_head_that_lowers_its_emotion_is_said_to(planted):
    """Asked for joy, the model says fewer sad words: of these the planted head brings less."""
    test = HeadTest("patch", words={"joy": SAD, "sadness": JOY}, n_queries=4)
    table = run(planted, test)
    top = table["name"] == f"L{LAYER}H{HEAD}"
    assert (
        (table["gap"] < 0).all()
        and (table.loc[top, "share"] > 0.9).all()
        and (table.loc[top, "does"] == "lowers").all()
    )


def test_effects_are_kept_and_found_again(planted, tmp_path, monkeypatch):
    test = HeadTest("patch", words=WORDS, n_queries=4)
    made = run(planted, test, screen=2)
    kept = run(planted, test, screen=2, out=tmp_path)
    monkeypatch.setattr("emolab.heads.effects.setup", lambda *args: 1 / 0)
    found = run(planted, test, screen=2, out=tmp_path)
    for table in (kept, found):
        pd.testing.assert_frame_equal(table, made)
        assert {key: table.attrs[key] for key in made.attrs} == made.attrs
    for other in ({"seed": 1}, {"test": HeadTest("patch", words=WORDS, n_queries=3)}, {"heads": [(0, 1)]}):
        with pytest.raises(ZeroDivisionError):
            run(planted, **{"test": test, "screen": 2, "out": tmp_path, **other})


def test_screening_finds_the_planted_head_and_tests_as_many_random_ones(planted, effects_of):
    table, whole = effects_of("patch", 2), effects_of("patch", None)
    assert len(table) == len(whole) == planted.model.n_layers * planted.model.n_heads * 2
    assert (whole["screened"] == "none").all() and whole["effect"].notna().all()
    pd.testing.assert_series_equal(table["attribution"], whole["attribution"])
    for emotion, own in table.groupby("emotion"):
        assert own["screened"].value_counts().to_dict() == {"none": 4, "top": 2, "random": 2}
        best = own.loc[own["attribution"].abs().idxmax()]
        assert (best["layer"], best["head"], best["screened"]) == (*PLACE, "top"), emotion
    tested, top = table["screened"] != "none", table["screened"] == "top"
    assert table.loc[~tested, [*MEASURED, *CONTROLS, "other_heads"]].isna().all(axis=None)
    assert (table.loc[~tested, "n"] == 0).all() and (table.loc[tested, "n"] == 5).all()
    assert (table.loc[~tested, "does"] == "").all() and (table.loc[tested, "does"] != "").all()
    pd.testing.assert_frame_equal(table.loc[tested, MEASURED], whole.loc[tested, MEASURED])
    assert table.loc[top, CONTROLS].notna().all(axis=None) and table.loc[~top, CONTROLS].isna().all(axis=None)
    about = table.attrs["screening"]
    assert about["heads"] == 8 and about["tested"] == 4 and about["held_out"]
    assert about["correlation"] > 0.95 and about["lo"] > 0.5 and about["random_effect"] < 0.05 < about["top_effect"]
    assert json.loads(json.dumps(about)) == about

    few = HeadTest("patch", words=WORDS, n_queries=8)
    assert not run(planted, few, screen=2).attrs["screening"]["held_out"]  # two others are too few to choose by
    named = run(planted, few, screen=1, heads=[(0, 1), PLACE])
    assert named["effect"].notna().all() and (named["screened"] == "none").all() and len(named) == 4
    assert named["other_heads"].isna().all()
    with pytest.raises(EmolabError, match="screen"):
        run(planted, few, screen=0)


@pytest.mark.parametrize(("op", "sign"), [("ablate", -1), ("patch", 1)])
def test_heads_that_were_not_tested_rank_behind_by_attribution(effects_of, op, sign):
    table = effects_of(op, 2)
    for emotion, own in table.groupby("emotion"):
        heads = list(ranking(table, emotion))
        ranked = own.set_index(["layer", "head"]).loc[heads]
        assert heads[0] == PLACE and len(heads) == 8
        assert ranked["share"].notna().tolist() == [True] * 4 + [False] * 4
        assert ranked["share"][:4].is_monotonic_decreasing
        assert (sign * ranked["attribution"][4:]).is_monotonic_decreasing


def test_figures_and_summary_take_screened_tables(planted, effects_of):
    table = effects_of("patch", 2)
    test = HeadTest("ablate", words=WORDS, n_queries=4)
    curve = run(planted, test, ablation_curve, ranked=table, n_random=1)
    assert set(curve["k"]) == {0, 1, 4}
    summary = head_summary(table, curve)
    assert summary["screening"] == table.attrs["screening"]
    said = say.head_forest(table)
    assert said.verdict.startswith("5 questions are too few") and "along random directions" in said
    json.dumps(summary, allow_nan=False)
    for fig in (plot.head_map(table, "share"), plot.head_map(table, "attribution"), plot.head_forest(table)):
        fig.canvas.draw()
    rows = plot.head_forest(table, top=8).axes[0].get_yticklabels()
    assert {row.get_text() for row in rows} == set(table.loc[table["n"] > 0, "name"])  # those that were tested
    assert "nan" not in plot.head_map(table, "share").axes[0].get_title()


def test_intervals_and_p_are_over_situations(planted, effects_of):
    """Two questions of one situation are not two draws: n counts questions, width and p count situations."""
    test = HeadTest("patch", words=WORDS, n_queries=6)
    number = planted.responses["query_id"].str.removeprefix("q-").astype(int)
    tables, curves = {}, {}
    ablate = HeadTest(words=WORDS, n_queries=6)
    for name, situations in {"none": 0 * number - 1, "each": number, "one": 0 * number, "two": number // 5}.items():
        responses = planted.responses.assign(situation=situations.astype(str).replace("-1", ""))
        tables[name] = head_effects(planted.model, planted.vectors, responses, test=test, screen=2)
        curves[name] = ablation_curve(
            planted.model, planted.vectors, responses, ranked=tables[name], test=ablate, ks=[1], n_random=1
        )
    pd.testing.assert_frame_equal(tables["none"], tables["each"])
    pd.testing.assert_frame_equal(curves["none"], curves["each"])
    same = ["effect", "share", "random_direction", "n"]
    for name in ("one", "two"):
        pd.testing.assert_frame_equal(tables[name][same], tables["none"][same])
        pd.testing.assert_frame_equal(curves[name][["kept", "n"]], curves["none"][["kept", "n"]])
    tested = tables["none"]["n"] > 0
    assert tables["one"][["lo", "hi"]].isna().all(axis=None) and curves["one"][["lo", "hi"]].isna().all(axis=None)
    assert tables["one"]["p"].dropna().eq(1).all() and tables["two"]["p"].dropna().ge(2 / 2**2).all()
    assert tables["none"]["p"].min() == 2 / 2**6
    assert tables["two"].loc[tested, ["lo", "hi"]].notna().all(axis=None)


def test_the_curve_falls_with_the_planted_head_only(planted, effects_of):
    ranked = effects_of("ablate")
    curve = run(planted, HeadTest(words=WORDS, n_queries=8), ablation_curve, ranked=ranked, ks=[1, 2])
    kept = curve.set_index(["emotion", "order", "k"])["kept"].sort_index()
    assert set(curve["emotion"]) == {"joy", "sadness", "all"}
    assert (kept.xs(0, level="k") == 1).all()
    for emotion in ("joy", "sadness", "all"):
        assert kept[emotion, "ranked", 1] < 0.5 < 0.9 < kept[emotion, "random_heads", 1]
        assert kept[emotion, "random_direction", 1] > kept[emotion, "ranked", 1] + 0.2
    row = curve.set_index(["emotion", "order", "k"]).loc
    assert row["joy", "ranked", 1]["hi"] < row["joy", "random_heads", 1]["lo"]
    assert (curve["lo"] <= curve["kept"] + 1e-9).all() and (curve["kept"] <= curve["hi"] + 1e-9).all()
    summary = head_summary(ranked, curve)
    assert summary["apart"] == {"joy": [1, 2], "sadness": [1, 2]} and summary["ablation_curve"]["ks"] == [0, 1, 2]
    np.testing.assert_allclose(summary["ablation_curve"]["random_mean"], kept.loc[("all", "random_heads")], atol=1e-4)
    json.dumps(summary)


def test_the_judge_sees_it_too(planted):
    def count(texts):
        shares = [[sum(w in words for w in t.split()) / max(1, len(t.split())) for words in (JOY, SAD)] for t in texts]
        return np.array(shares)

    judge = FunctionJudge(count, ("joy", "sadness"))
    table = run(planted, HeadTest(judge=judge, n_queries=6, max_new_tokens=6))
    for _, own in table.groupby("emotion"):
        top = own.loc[own["effect"].idxmin()]
        assert (top["layer"], top["head"]) == PLACE and top["effect"] < -0.2
    steer = HeadTest("steer", judge=judge, dose=2.0, n_queries=6, max_new_tokens=6)
    curve = run(planted, steer, ablation_curve, ranked=table, ks=[1])
    kept = curve[curve["emotion"] == "all"].set_index(["order", "k"])["kept"]
    assert kept["ranked", 0] == 0 and kept["ranked", 1] > 0.5 > kept["random_heads", 1]
    with pytest.raises(EmolabError, match="knows no joy, sadness"):
        run(planted, HeadTest(judge=FunctionJudge(len, ("fear",))))


def test_same_seed_same_table(planted):
    def make(seed):
        return run(planted, HeadTest(words=WORDS, n_queries=4), seed=seed, heads=[(0, 0), (1, 1)])

    pd.testing.assert_frame_equal(make(1), make(1))
    assert not make(1)["random_direction"].equals(make(2)["random_direction"])


def test_one_emotion_one_head_one_query(planted):
    v = planted.vectors
    joy = EmotionVectors({s: x[:1] for s, x in v.data.items()}, ("joy",), v.resid_norm, v.meta)
    test = HeadTest(words={"joy": JOY}, n_queries=1)
    table = head_effects(planted.model, joy, planted.responses, test=test, heads=[(1, 1)])
    assert len(table) == 1 and table["p"].item() == 1.0  # one query can show nothing


def test_errors_say_what_to_do(planted, monkeypatch):
    test = HeadTest(words=WORDS)
    with pytest.raises(EmolabError, match="pairing"):
        responses = planted.responses[planted.responses["condition"] != "joy"]
        head_effects(planted.model, planted.vectors, responses, test=test)
    with pytest.raises(EmolabError, match="no site 'head'"):
        v = planted.vectors
        HeadSpace(planted.model, EmotionVectors({"resid": v.data["resid"]}, v.emotions, v.resid_norm, v.meta))
    names = {name: hook for name, hook in planted.model._hook_names.items() if "attn.o" not in name}
    monkeypatch.setitem(vars(planted.model), "_hook_names", names)
    with pytest.raises(EmolabError, match="no layer of .* has a hook point for the site 'head'"):
        run(planted, test)


@pytest.fixture(scope="module")
def hybrid():
    """Qwen 3.5 has attention in every fourth layer; the others have none to steer or test."""
    from transformers import Qwen3_5TextConfig

    config = Qwen3_5TextConfig(
        vocab_size=len(tiny.tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
        layer_types=["linear_attention"] * 3 + ["full_attention"], linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = load_model((tiny.build(config, seed=3), tiny.tokenizer()), device="cpu")
    responses = planted_responses(model)
    with pytest.warns(UserWarning, match="has no attn, head in layers 0, 1, 2; means and vectors are zero there"):
        vectors = extract_vectors(model, responses)
    return model, responses, vectors


def test_vectors_of_hybrid_models_are_of_the_layers_that_have_attention(hybrid):
    model, responses, vectors = hybrid
    assert site_layers(model, "head") == [3] and site_layers(model, "resid") == [0, 1, 2, 3]
    attn, heads = vectors.get("attn"), vectors.get("head").sum(2)
    assert not attn[:, :3].any() and not heads[:, :3].any() and (attn[:, 3].norm(dim=-1) > 1e-3).all()
    torch.testing.assert_close(heads, attn, atol=1e-5, rtol=1e-4)
    assert (vectors.get("resid").norm(dim=-1) > 1e-3).all()
    with model.bridge.hooks(fwd_hooks=[(site_hooks(model, "resid")[0], lambda x, hook: x)]):
        with pytest.warns(UserWarning, match="has no attn, head in layers"):
            bridged = extract_vectors(model, responses)
    torch.testing.assert_close(bridged.get("head"), vectors.get("head"), atol=1e-5, rtol=1e-3)
    plain = generate(model, QUERIES, max_new_tokens=8)
    for setting in ({"site": "attn"}, {"site": "head", "heads": {3: [0, 2]}}):
        steering = Steering(vectors, {"joy": 4.0}, **setting)
        assert generate(model, QUERIES, steering=steering, max_new_tokens=8) != plain
    with pytest.warns(UserWarning, match="has no attn, head in layers"):
        means = response_means(model, responses)
    maps = head_maps(vectors, means, W_O=output_weights(model), n_splits=3)
    assert set(maps["layer"]) == {3} and maps["probe"].notna().all()


def test_hybrid_models_are_tested_where_they_have_heads(hybrid):
    model, responses, vectors = hybrid
    for op in ("ablate", "patch", "steer"):
        table = head_effects(model, vectors, responses, test=HeadTest(op, words=WORDS, n_queries=3), screen=1)
        assert set(table["layer"]) == {3} and len(table) == 8
        assert table["attribution"].notna().all() and table["effect"].notna().sum() == 4
    test = HeadTest(words=WORDS, n_queries=3)
    curve = ablation_curve(model, vectors, responses, ranked=table, test=test, ks=[1], n_random=1)
    assert curve["kept"].notna().all()
    with pytest.raises(EmolabError, match="layer 0 of .* has no attention heads; layers 3 have"):
        head_effects(model, vectors, responses, test=test, heads=[(0, 1)])


def test_models_with_a_norm_after_attention():
    """Ablating and patching are defined there; a vector to add is not."""
    model = load_model((tiny.build(tiny.gemma2_config()), tiny.tokenizer()), device="cpu")
    responses = planted_responses(model)
    vectors = extract_vectors(model, responses)
    for op in ("ablate", "patch"):
        table = head_effects(model, vectors, responses, test=HeadTest(op, words=WORDS, n_queries=2))
        assert np.isfinite(table["effect"]).all() and table["effect"].abs().max() > 0
    with pytest.raises(EmolabError, match="rescales"):
        head_effects(model, vectors, responses, test=HeadTest("steer", words=WORDS))
    with ablated(model, vectors, "joy", [(1, 2)]):
        after = outputs(model, encode(model, QUERIES))[:, :, 2] @ unit(vectors, "joy", 1, 2)
    torch.testing.assert_close(after, torch.zeros_like(after), atol=1e-5, rtol=0)
