"""What neurons write sums to what their MLP writes, and changes to neurons are changes to MLPs, on bridge and twin."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from emolab import plot, say
from emolab.base.errors import EmolabError
from emolab.heads.attribution import readout
from emolab.heads.neurons import neuron_effects, neuron_map, neuron_words
from emolab.heads.patching import HeadTest
from emolab.heads.sublayers import sublayer_effects
from emolab.models.hooks import at_sites
from emolab.models.load import load_model
from emolab.models.prompts import encode
from emolab.models.sites import neuron_counts, neuron_weight, site_layers
from emolab.steering.edits import hooked
from emolab.steering.head_edits import Change
from emolab.steering.positions import PositionMask
from emolab.steering.shifts import ShiftSpace
from emolab.steering.steering import Steering, steered
from emolab.vectors.activations import response_means
from emolab.vectors.controls import shuffled_like
from emolab.vectors.vectors import EmotionVectors, extract_vectors, vectors_from_means
from tests import tiny
from tests.heads.conftest import WORDS
from tests.heads.test_runs import QUERIES, on_bridge
from tests.planted import planted_responses

SITES = ("resid", "attn", "mlp", "neuron")


@pytest.fixture(scope="module")
def responses(model):
    return planted_responses(model)


@pytest.fixture(scope="module")
def means(model, responses):
    return response_means(model, responses, sites=SITES)


@pytest.fixture(scope="module")
def vectors(means):
    return vectors_from_means(means)


def written(model, vectors, emotion):
    """What each neuron writes: [layer, neuron, d_model]."""
    rows = torch.stack([neuron_weight(model, layer, torch.float64) for layer in range(model.n_layers)])
    return vectors.get("neuron", emotion=emotion).double()[..., None] * rows


def every(model):
    return tuple((layer, neuron) for layer, n in neuron_counts(model).items() for neuron in range(n))


def test_a_neuron_is_the_input_of_the_output_projection(tiny_llama, tiny_gpt2):
    """act(gate) * up in gated MLPs, worked out by hand."""
    mlp, given, seen = tiny_llama.hf.model.layers[1].mlp, [], []
    handle = mlp.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with torch.inference_mode(), at_sites(tiny_llama, [(("neuron", 1), seen.append)]) as runner:
        runner(input_ids=encode(tiny_llama, QUERIES[:1]).input_ids)
        handle.remove()
        expected = torch.nn.functional.silu(given[0] @ mlp.gate_proj.weight.T) * (given[0] @ mlp.up_proj.weight.T)
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(neuron_weight(tiny_llama, 1, torch.float32), mlp.down_proj.weight.T)
    assert neuron_counts(tiny_llama) == dict.fromkeys(range(3), 48) and neuron_counts(tiny_gpt2) == {0: 128, 1: 128}


def test_neurons_sum_to_their_mlp_on_bridge_and_twin(model, responses, means, vectors):
    for emotion in vectors.emotions:
        sums = written(model, vectors, emotion).sum(1)
        torch.testing.assert_close(sums, vectors.get("mlp", emotion=emotion).double(), atol=1e-5, rtol=1e-4)
    with on_bridge(model):
        bridged = response_means(model, responses, sites=("neuron",))
    assert bridged.sites == ("neuron",)
    np.testing.assert_allclose(bridged.means["neuron"], means.means["neuron"], atol=1e-5, rtol=1e-4)


def test_contributions_are_projections_of_what_is_written(model, vectors):
    table = neuron_map(model, vectors)
    assert len(table) == len(every(model)) * 2 and table.attrs["about"]["n"] == f"{len(every(model))} neurons"
    np.testing.assert_allclose(table.groupby(["layer", "emotion"])["contribution"].sum(), 1, atol=1e-4)
    mlp, last = vectors.get("mlp", emotion="joy").double(), vectors.get("resid", emotion="joy", layer=-1).double()
    own = written(model, vectors, "joy")
    row = table[(table["emotion"] == "joy") & (table["name"] == "L1N7")].iloc[0]
    assert (row["layer"], row["neuron"]) == (1, 7)
    assert row["shift"] == pytest.approx(vectors.get("neuron", emotion="joy", layer=1)[7].item())
    assert row["norm"] == pytest.approx(own[1, 7].norm().item())
    assert row["contribution"] == pytest.approx((own[1, 7] @ mlp[1] / mlp[1].norm() ** 2).item())
    assert row["direct"] == pytest.approx((own[1, 7] @ last / last.norm() ** 2).item())
    only = replace(vectors, data={site: vectors.data[site] for site in ("mlp", "neuron")})
    assert neuron_map(model, only)["direct"].isna().all()


def test_words_of_a_neuron_are_those_of_what_it_writes(model, vectors):
    top = neuron_map(model, vectors).query("emotion == 'joy'").nlargest(2, "direct")
    words = neuron_words(model, top, n=3)
    assert len(words) == 2 * 2 * 3 and words["name"].unique().tolist() == top["name"].tolist()
    first = top.iloc[0]
    logits = readout(model, written(model, vectors, "joy")[first["layer"], first["neuron"]][None])[0]
    raised = words[(words["name"] == first["name"]) & (words["direction"] == "raised")]
    assert raised["token"].tolist() == model.tokenizer.batch_decode(logits.topk(3).indices[:, None])
    np.testing.assert_allclose(raised["logit"], logits.topk(3).values, rtol=1e-4)
    assert first["name"].removeprefix("L")[0] in plot.words_table(words).to_html()


@pytest.mark.parametrize("plain", [True, False])
def test_shifting_all_neurons_of_a_layer_is_steering_its_mlp(model, vectors, plain):
    batch, space = encode(model, QUERIES), ShiftSpace(model, vectors, ["neuron"])
    where = tuple(place for place in every(model) if place[0] == 1)
    edits = space.edits([Change("steer", "joy", where, 1.5)], PositionMask(["all"]))
    assert list(edits) == [("neuron", 1)]
    mask = batch.attention_mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        with steered(model, Steering(vectors, {"joy": 1.5}, site="mlp", layers=[1], positions="all")):
            expected = model(batch.input_ids, attention_mask=mask)
        with hooked(model, edits, plain=plain) as runner:
            if plain:
                assert runner is model.hf
                got = runner(input_ids=batch.input_ids, attention_mask=mask, position_ids=positions).logits
            else:
                got = model(batch.input_ids, attention_mask=mask)
        unchanged = model(batch.input_ids, attention_mask=mask)
    torch.testing.assert_close(got[:, -1], expected[:, -1], atol=5e-5, rtol=1e-4)
    assert not torch.allclose(got[:, -1], unchanged[:, -1], atol=1e-3)


def test_a_change_to_some_neurons_leaves_the_others(model, vectors):
    space = ShiftSpace(model, vectors, ["neuron"])
    own = vectors.get("neuron", emotion="joy").double()
    shift = space.shift(Change("ablate", "joy", ((0, 3), (1, 5)), 2.0), 0)
    assert shift[0, 3] == -2 * own[0, 3] and shift[1, 5] == -2 * own[1, 5] and shift.count_nonzero() == 2
    random = space.shift(Change("ablate", "joy", every(model), 1.0, 3), 0)
    assert torch.equal(random.abs(), own.abs()) and 0.3 < (random.sign() == own.sign()).double().mean() < 0.7


def test_workers_make_the_same_space_again(model, vectors):
    space, change = ShiftSpace(model, vectors, ["neuron"]), Change("steer", "joy", ((1, 5), (0, 3)), 1.0, 7)
    kind, made_of = pickle.loads(pickle.dumps((type(space), space.made_of)))
    assert torch.equal(kind(model, *made_of).shift(change, 0), space.shift(change, 0))


def test_a_random_direction_of_a_sublayer_has_equal_norm(model, vectors):
    space, where = ShiftSpace(model, vectors, ["attn", "mlp"]), ((0, 0), (1, 1))
    for place, site in enumerate(space.sites):
        own, random = (space.shift(Change("steer", "joy", where, 1.0, seed), place) for seed in (None, 3))
        assert torch.equal(own[place], vectors.get(site, emotion="joy", layer=place).double())
        assert own.any(1).tolist() == random.any(1).tolist() == [i == place for i in range(model.n_layers)]
        assert random.norm() == pytest.approx(own.norm().item()) and not torch.allclose(own, random)


@pytest.mark.parametrize("op", ["ablate", "steer"])
def test_all_neurons_together_are_all_mlps(model, responses, vectors, op):
    """Two tables of one change: the curve at its end, and the sublayers of the whole model."""
    test, n = HeadTest(op, words=WORDS, n_queries=4), len(every(model))
    curve = neuron_effects(model, vectors, responses, test=test, ks=(1, n), n_random=2)
    ends = curve[curve["emotion"] == "joy"].set_index(["order", "k"])
    assert ends.loc[("random_neurons", n), "overlap"] == 1 and ends.loc[("random_neurons", 1), "overlap"] == 0
    assert ends.loc[("random_neurons", n), "value"] == pytest.approx(ends.loc[("ranked", n), "value"], abs=1e-6)
    table = sublayer_effects(model, vectors, responses, test=test, bands=2)
    mlp = table[(table["layers"] == "all") & (table["site"] == "mlp") & (table["emotion"] == "joy")].iloc[0]
    change = ends.loc[("ranked", n), "value"] - ends.loc[("ranked", 0), "value"]
    assert mlp["effect"] == pytest.approx(change, abs=1e-5) and abs(change) > 1e-3
    moved = mlp["share"] if op == "steer" else 1 - mlp["share"]
    assert ends.loc[("ranked", n), "kept"] == pytest.approx(moved, abs=1e-4)
    with on_bridge(model):
        bridged = neuron_effects(model, vectors, responses, test=test, ks=(1, n), n_random=2)
        pd.testing.assert_frame_equal(bridged[["value", "overlap"]], curve[["value", "overlap"]], atol=1e-5)
        again = sublayer_effects(model, vectors, responses, test=test, bands=2)
        pd.testing.assert_frame_equal(again[["written", "effect"]], table[["written", "effect"]], atol=1e-5)
    assert plot.ablation_curve(curve).emolab_info["params"]["site"] == "neuron"
    assert plot.sublayers(table).emolab_info["n"] == "4 queries"
    assert f"With {n:,} neurons" in say.ablation_curve(curve) and "MLPs" in say.sublayers(table)


def test_what_sublayers_write_is_the_last_layer_but_for_the_embedding(model, responses, vectors):
    test = HeadTest("ablate", words=WORDS, n_queries=2)
    table = sublayer_effects(model, vectors, responses, test=test, bands=model.n_layers)
    whole, bands = (table[(table["layers"] == "all") == flag] for flag in (True, False))
    assert bands["layers"].unique().tolist() == [str(layer) for layer in range(model.n_layers)]
    by = ["site", "emotion"]
    pd.testing.assert_series_equal(bands.groupby(by)["written"].sum(), whole.set_index(by)["written"].sort_index())
    first = (vectors.get("resid") - vectors.get("attn") - vectors.get("mlp")).double()[:, 0]  # the embedding
    last = vectors.get("resid", layer=-1).double()
    rest = (first * last).sum(-1) / (last * last).sum(-1)
    sums = whole.groupby("emotion", sort=False)["written"].sum()
    np.testing.assert_allclose(sums[list(vectors.emotions)] + rest.numpy(), 1, atol=1e-4)
    joy = vectors.get("mlp", emotion="joy").double()
    row = whole[(whole["site"] == "mlp") & (whole["emotion"] == "joy")].iloc[0]
    norm = vectors.get("resid", emotion="joy", layer=-1).double().norm()
    assert row["random"] == pytest.approx((1.96 * joy.norm() / norm / model.d_model**0.5).item())
    assert (table["n"] == 2).all() and (table["gap"] != 0).all()


def test_the_ranking_can_be_given(model, responses, vectors):
    test = HeadTest("steer", words=WORDS, n_queries=2)
    ranked = neuron_map(model, vectors)
    own = {e: ranked[ranked["emotion"] == e].nlargest(2, "direct") for e in vectors.emotions}
    pairs = {e: list(zip(t["layer"], t["neuron"], strict=True)) for e, t in own.items()}
    options = {"test": test, "ks": (2,), "n_random": 1}
    tables = [neuron_effects(model, vectors, responses, ranked=r, **options) for r in (None, ranked, pairs)]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    with pytest.raises(EmolabError, match="the ranking of sadness is empty"):
        neuron_effects(model, vectors, responses, ranked={"joy": [(0, 1)]}, **options)
    for place in ((0, 10**4), (0, -1), (9, 0)):
        strange = dict.fromkeys(vectors.emotions, [place, (1, 1)])
        with pytest.raises(EmolabError, match=f"has no neuron L{place[0]}N{place[1]}"):
            neuron_effects(model, vectors, responses, ranked=strange, **options)


def test_vectors_of_neurons(model, vectors, means, tmp_path):
    assert vectors.sites == SITES and vectors.d_model == model.d_model
    vectors.save(tmp_path / "v.safetensors")
    assert torch.equal(EmotionVectors.load(tmp_path / "v.safetensors").get("neuron"), vectors.get("neuron"))
    assert vectors.part("specific").get("neuron").sum(0).abs().max() < 1e-5
    shuffled = shuffled_like(vectors, seed=1).get("neuron")
    torch.testing.assert_close(shuffled.norm(dim=-1), vectors.get("neuron").norm(dim=-1))
    assert not torch.allclose(shuffled, vectors.get("neuron"))
    means.save(tmp_path / "m.safetensors")
    assert type(means).load(tmp_path / "m.safetensors").sites == SITES
    with pytest.raises(EmolabError, match="at least one beside neurons"):
        vectors_from_means(means, sites=["neuron"])


def test_errors_say_what_to_do(model, responses, vectors):
    for function in (neuron_effects, sublayer_effects):
        with pytest.raises(EmolabError, match='"patch" is a test of heads'):
            function(model, vectors, responses, test="patch")
        bare = replace(vectors, data={"resid": vectors.data["resid"]})
        with pytest.raises(EmolabError, match="hold no site '(neuron|attn)'"):
            function(model, bare, responses)
    with pytest.raises(EmolabError, match="bands is 0"):
        sublayer_effects(model, vectors, responses, bands=0)
    with pytest.raises(EmolabError, match="do not fit a ranking"):
        neuron_effects(model, vectors, responses, test=HeadTest(words=WORDS), ks=(10**6,))
    with pytest.raises(EmolabError, match="unknown site 'neuron'"):
        Steering(vectors, {"joy": 1.0}, site="neuron")


def test_models_with_a_norm_behind_the_mlp():
    """What neurons write is known there, by each token's scale; a fixed shift is not."""
    model = load_model((tiny.build(tiny.gemma2_config()), tiny.tokenizer()), device="cpu")
    responses = planted_responses(model)
    vectors = extract_vectors(model, responses, sites=SITES)
    sums = neuron_map(model, vectors).groupby(["layer", "emotion"])["contribution"].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-3)
    with pytest.raises(EmolabError, match="rescales the MLP's output .*sublayer_effects"):
        neuron_effects(model, vectors, responses)
    table = sublayer_effects(model, vectors, responses, test=HeadTest(words=WORDS, n_queries=2), bands=1)
    assert np.isfinite(table["effect"]).all() and len(table) == 4


def test_experts_have_no_neurons_of_their_own():
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=len(tiny.tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=2, max_position_embeddings=128,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = load_model((tiny.build(config), tiny.tokenizer()), device="cpu")
    with pytest.raises(EmolabError, match="has a hook point for the site 'neuron'; leave this site out"):
        site_layers(model, "neuron")
    with pytest.raises(EmolabError, match="leave this site out"):
        response_means(model, planted_responses(model), sites=SITES)
