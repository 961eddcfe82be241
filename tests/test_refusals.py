"""Bad input to steering, generation and vectors: one clear error each, and never a silent wrong result."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab import EmotionVectors, Steering
from emolab.answers.logprobs import next_token_kl, token_logprobs
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError, need_number, need_numbers, need_texts
from emolab.comparisons.methods import build_methods
from emolab.geometry import similarity
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.models.sites import output_weights
from emolab.steering import head_edits
from emolab.steering.head_edits import ablated
from emolab.vectors.vectors import vectors_from_means
from tests import tiny
from tests.refusing import each, readable, refused, table

NAN, INF = math.nan, math.inf
NO_NUMBERS = (NAN, INF, -INF, None, "1", True, np.True_, [1.0], 1j, np.float32(NAN), torch.tensor(1.0))


def made(w, **changes):
    """EmotionVectors of w's model with something changed."""
    given = {"data": w.vectors.data, "emotions": w.vectors.emotions, "resid_norm": w.vectors.resid_norm}
    return EmotionVectors(**given | {"meta": w.vectors.meta} | changes)


def broken(w, site, value):
    x = w.vectors.data[site].clone()
    x[0, 0] = value
    return made(w, data={**w.vectors.data, site: x})


def steered(model, steering, **options):
    with emolab.steered(model, steering, **options):
        pass


def without_heads(w, heads, emotion="joy", **options):
    with ablated(w.model, w.vectors, emotion, heads, **options):
        pass


def prompted(w, emotion="neutral", **options):
    return render_prompts(w.model, ["tell me"], emotion, **options)


CASES = [
    # The rules that are shared: every value that they refuse. Below, each place that uses one has one such value.
    *each(lambda w, given: need_number("x", given), [(x, "x is .*expected a finite number") for x in NO_NUMBERS]),
    *each(lambda w, given: need_number("x", given, 0, 1), [(-0.1, "x is -0.1;.* from 0 to 1"), (1.1, "x is 1.1;")]),
    *each(lambda w, given: need_number("x", given, 1, whole=True),
        [(x, "x is .*expected a whole number of at least 1") for x in (0, -1, 1.5, True, "80", None)]),
    *each(lambda w, given: need_numbers("alphas", given), [((), r"alphas are \(\)"), (2.0, "alphas are 2.0"),
        (None, "alphas are None"), ("12", "alphas are '12'"), ((0, INF), "one of alphas is inf")]),
    *each(lambda w, given: need_texts("prompts", given), [(None, "are None"), ("tell me", "are 'tell me'"),
        (pd.DataFrame({"query": ["a"]}), "expected a list of texts"), (["a", 3], "hold 3 at place 1"),
        ([b"a"], "hold b'a'"), ([NAN], "hold nan"), (["\ud800"], "prompts hold")]),
    *each(lambda w, given: need_texts("prompts", given, filled=True), [([""], "hold ''"), (["a", " \n"], r"' \\n'")]),
    # Steering: what is asked for
    (lambda w: Steering("ev.safetensors", {"joy": 1.0}), "vectors .*str.*expected EmotionVectors"),
    *each(lambda w, given: w.steering(given), [
        ({"jo": 1.0}, "unknown emotion 'jo'.*joy, sadness"), ({None: 1.0}, "unknown emotion None"),
        (["joy"], r"doses are \['joy'\]"), (1.0, "doses are 1.0"), ({}, r"doses are \{\}; expected at least one"),
        ({"joy": NAN}, "the dose of 'joy' is .*finite number"), ({"joy": True}, "the dose of 'joy' is True"),
    ]),
    (lambda w: w.steering({"jo": 1.0}, part="shared"), "unknown emotion 'jo'"),
    (lambda w: w.generate(steering=w.steering({"joy": 1e300})), "not finite.*smaller dose"),
    *each(lambda w, given: w.steering(site=given), [("residual", "unknown site 'residual'; expected one of resid"),
        (["resid"], r"unknown site \['resid'\]"), (np.array(["resid", "attn"]), "unknown site")]),
    (lambda w: Steering(made(w, data={"attn": w.vectors.data["attn"]}), {"joy": 1.0}), "no site 'resid', only attn"),
    (lambda w: w.steering(op="multiply"), "unknown op 'multiply'; expected one of add, ablate, clamp, rotate, cap"),
    (lambda w: w.steering(unit="absolute"), "unknown unit 'absolute'; expected one of vector"),
    (lambda w: w.steering(part="half"), "unknown part 'half'"),
    *each(lambda w, given: w.steering(positions=given), [
        ("last", "unknown positions 'last'.*or a slice"), (3, "unknown positions 3"),
        (slice(0, 4, 0), "step of at least 1"), (slice(0.0, 4), "expected whole numbers"),
        (slice(4, 4), "hold no position"),
    ]),
    *each(lambda w, given: w.steering(layers=given), [
        (None, "layers is None"), (3, "layers is 3"), (1.5, "layers is 1.5"), ("0,1", "layers is '0,1'"),
        ([], "layers is empty"), ([3], "unknown layer 3; expected a whole number from 0 to 2"),
        ([-1], "unknown layer -1"), ([1.0], "unknown layer 1.0"), ([True], "unknown layer True"),
        (["1"], "unknown layer '1'"), ([[0]], r"unknown layer \[0\]"), ([10**30], "unknown layer 10+"),
    ]),
    *each(lambda w, given: w.steering(site="head", heads=given), [
        ([(0, 1)], r"heads are \[\(0, 1\)\]; expected"), ({0: 1}, "heads are {0: 1}; expected"), ({}, "heads are {}"),
        ({0: []}, r"heads are {0: \[\]}"), ({9: [0]}, "unknown layer 9"), ({0: [4]}, "unknown head 4"),
        ({0: [-1]}, "unknown head -1"), ({0: [True]}, "unknown head True"), ("all", "heads are 'all'"),
    ]),
    (lambda w: w.steering(heads={0: [0]}), 'heads= goes with site="head"'),
    (lambda w: w.steering(site="head", layers=[1], heads={0: [0]}), "layer 1 .*names no head"),
    *each(lambda w, given: w.steering(fade=given), [(x, "fade is .*half-life in tokens") for x in (0, NAN, "8", True)]),
    (lambda w: w.steering(fade=4, positions="all"), "fade= goes with positions"),
    (lambda w: w.steering({"joy": 1, "sadness": 0.5}, op="ablate"), "takes one share"),
    (lambda w: w.steering(op="ablate", unit="residual"), 'unit "vector"'),
    (lambda w: w.steering(op="clamp").table(), 'only "add" has a table'),
    (lambda w: w.generate(steering=Steering(w.vectors * 0.0, {"joy": 1.0}, op="clamp")), "a vector is zero"),
    # Steering: on which model
    *each(lambda w, given: steered(w.model, given), [
        (1.5, "steering is float"), ({"joy": 1.0}, "steering is dict"), ([None, "joy"], "steering is str"),
        ([], "steering is an empty list"),
    ]),
    (lambda w: steered(w.model, w.vectors), "steering is EmotionVectors; expected a Steering"),
    (lambda w: steered("mini", w.steering()), "model is str.*load_model"),
    (lambda w: steered(w.other, w.steering()), "of another model: .*3 layers.*2 layers.*shapes must agree"),
    (lambda w: w.vectors.for_model(w.other), "shapes must agree"),
    (lambda w: steered(w.model, Steering(made(w, meta=w.vectors.meta | {"fingerprint": "ffff"}), {"joy": 1.0})),
        r"fingerprint ffff.*vectors\.for_model\(model\) uses them"),
    (lambda w: steered(w.model, w.steering(fade=4)), "fade counts generated tokens"),
    (lambda w: without_heads(w, [(0, 0)], "jo"), "unknown emotion 'jo'"),
    (lambda w: without_heads(w, [(0, 9)]), "unknown head 9; expected a whole number from 0 to 3"),
    (lambda w: without_heads(w, [(0, 0)], positions="last"), "unknown positions .last"),
    (lambda w: without_heads(w, [0, 1]), r"heads .*\(layer, head\) pairs"),
    # Generation
    (lambda w: emolab.generate("mini", "tell me"), "model is str.*load_model"),
    *each(lambda w, given: w.generate(given), [([], "prompts are empty"), ("", "prompts hold '' at place 0"),
        (["tell me", 3], "prompts hold 3")]),
    (lambda w: w.generate([3], raw=True), "prompts hold 3"),
    *each(lambda w, given: w.generate(**given), [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"), ({"max_new_tokens": 10**9}, "shorten the text or"),
        ({"writing": 0.7}, "writing is 0.7; expected"),
        ({"writing": {"seed": 1}}, "writing is {'seed': 1}; expected"),
    ]),
    *each(lambda w, given: Writing(**given), [
        ({"temperature": -0.1}, "temperature is -0.1; expected"), ({"top_p": 0}, "top_p is 0; expected"),
        ({"top_p": 1.1}, "top_p is 1.1; expected"), ({"repetition_penalty": 0.1}, "penalty is 0.1; expected"),
        ({"seed": "x"}, "seed is 'x'; expected"), ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
    ]),
    (lambda w: w.generate(["tell me"], steering=[None, w.steering()]), "2 steerings for 1 prompts"),
    (lambda w: w.generate(steering=w.vectors), "steering is EmotionVectors"),
    (lambda w: w.generate(steering=Steering(w.foreign, {"joy": 1.0})), "of another model"),
    (lambda w: token_logprobs(w.model, ["tell"], ["me", "you"]), "1 prompts and 2 texts"),
    (lambda w: token_logprobs(w.model, ["tell"], [3]), "texts hold 3"),
    (lambda w: next_token_kl(w.model, ["tell"], ["me", "you"]), "1 prompts, 2 texts"),
    (lambda w: encode(w.other, [""]), "row 0 has no token"),
    (lambda w: prompted(w, "joy", templates={"neutral": "{query}"}), r"templates\['joy'\] is None"),
    (lambda w: prompted(w, templates={"neutral": "say"}), "expected a text with"),
    (lambda w: prompted(w, templates={"neutral": 3}), r"templates\['neutral'\] is 3"),
    (lambda w: prompted(w, templates=["{query}"]), "templates"),
    (lambda w: prompted(w, "joy", intensity="huge"), "unknown intensity 'huge'"),
    *each(lambda w, given: load_model(given), [(None, "cannot load a model from NoneType"),
        ("/absent", "no model '/.*no such directory"), ("", "model ''")]),
    (lambda w: load_model("smollm2", dtype="float33"), "unknown dtype.*float33"),
    (lambda w: load_model("smollm2", device="gpu"), "cannot use device 'gpu'"),
    # Vectors
    (lambda w: made(w, data={}), "no site given"),
    (lambda w: made(w, data={"residual": w.vectors.data["resid"]}), "unknown site 'residual'"),
    (lambda w: made(w, data=[w.vectors.data["resid"]]), "data hold list .*expected a tensor"),
    (lambda w: made(w, data={"resid": w.vectors.data["resid"].numpy()}), "data hold ndarray .*expected a tensor"),
    (lambda w: broken(w, "attn", NAN), "vectors at attn hold NaN or infinity"),
    (lambda w: broken(w, "head", INF), "vectors at head hold NaN or infinity"),
    *each(lambda w, given: made(w, emotions=given), [
        (("joy",), "do not fit their 1 labels"), (("joy", "joy"), "the labels .*'joy', 'joy'.*each once"),
        (("joy", ""), "labels of vectors hold '' at place 1"), (("joy", 2), "labels of vectors hold 2 at place 1"),
    ]),
    (lambda w: made(w, data={"resid": torch.zeros(0, 3, 32)}, emotions=()), "expected at least one"),
    (lambda w: made(w, data={**w.vectors.data, "attn": torch.zeros(2, 3, 16)}), "32.*16.*one d_model for all sites"),
    *each(lambda w, given: made(w, resid_norm=torch.tensor(given)), [
        ([1.0] * 4, "do not fit their 2 labels and 4 layers"), ([1.0, NAN, 1.0], "resid_norm.*nan"),
        ([1.0, -1.0, 1.0], "resid_norm.*-1"),
    ]),
    *each(lambda w, given: w.vectors.get(**given), [
        ({"site": "residual"}, "hold no site 'residual'"), ({"emotion": "jo"}, "unknown emotion 'jo'"),
        ({"emotion": 0}, "unknown emotion 0"), ({"layer": 3}, "unknown layer 3; expected a whole number from -3 to 2"),
        ({"layer": -4}, "unknown layer -4"), ({"layer": 1.5}, "layer 1.5"), ({"layer": "1"}, "layer '1'"),
        ({"layer": True}, "layer True"), ({"site": "head", "head": 4}, "unknown head 4"),
        ({"site": "head", "head": "0"}, "head '0'"), ({"head": 0}, "head=0 goes with site 'head'"),
    ]),
    (lambda w: w.vectors + w.foreign, "cannot add .* they must share model, sites and emotions"),
    (lambda w: w.vectors - made(w, data={"resid": w.vectors.data["resid"]}), "cannot add"),
    (lambda w: w.vectors * NAN, "factor of vectors is .*finite number"),
    (lambda w: w.vectors * 1e300, "hold NaN or infinity"),
    *each(lambda w, given: emolab.extract_vectors(w.model, w.responses, sites=given), [
        (("resid", "x"), "unknown site 'x'"), ((), "no site given"), (None, "no site given"),
    ]),
    (lambda w: emolab.extract_vectors(w.model, None), "needs responses or means"),
    (lambda w: emolab.extract_vectors(w.model, ["a text"]), "the table is list"),
    (lambda w: emolab.extract_vectors("mini", w.responses), "model is str.*load_model"),
    (lambda w: emolab.extract_vectors(w.other, None, means=w.means), "the means are of another model"),
    (lambda w: emolab.extract_vectors(w.model, None, means="m.safetensors"), "means are str .*expected ResponseMeans"),
    (lambda w: vectors_from_means(w.means, sites=("head",)), "needs W_O"),
    *each(lambda w, given: w.means.select(given), [
        ([True, False], "or 30 times True"), ([99], "rows are .99.; expected positions below 30"),
        ([0.5], "rows are .0.5.; expected positions"),
    ]),
    (lambda w: similarity.cosines(w.vectors, site="x"), "hold no site 'x'"),
    (lambda w: similarity.cosines(w.vectors, part="shared"), "part must be"),
    *each(lambda w, given: similarity.cosine_matrix(w.vectors, layer=given),
        [(7, "no layer 7"), ("last", "no layer 'last'")]),
    (lambda w: similarity.denoise(w.vectors, w.means, variance=NAN), "variance is nan"),
    (lambda w: similarity.shared_energy(w.means, n_permutations=0), "n_permutations.* 0"),
    (lambda w: similarity.vector_agreement(w.vectors, made(w, emotions=("a", "b"))), "expected an emotion in common"),
    (lambda w: similarity.vector_agreement(w.vectors, w.foreign), "cannot compare"),
    (lambda w: output_weights("mini"), "model is str"),
]  # fmt: skip


@table(CASES)
def test_refused(world, call, pattern):
    refused(lambda: call(world), pattern)


# ---------------------------------------------------------------- models that do not fit what is asked of them


def test_an_encoder_is_no_model_that_continues_text(tmp_path):
    from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(tiny.tokenizer()), **shape)
    tiny.save(tmp_path, BertForMaskedLM(config), tiny.tokenizer())
    for given in (tmp_path, (BertLMHeadModel(config), tiny.tokenizer())):
        with pytest.raises(EmolabError, match="is an encoder .bert., which reads both ways") as caught:
            load_model(given)
        readable(str(caught.value))


def test_heads_of_two_widths_are_refused(world, monkeypatch):
    found = head_edits.head_weights
    narrow = lambda model, layer: found(model, layer)[:, :4] if layer == 1 else found(model, layer)  # noqa: E731
    monkeypatch.setattr(head_edits, "head_weights", narrow)
    with pytest.raises(EmolabError, match="differ in width .8 in layer 0, 4 in layer 1.") as caught:
        head_edits.HeadSpace(world.model, world.vectors)
    readable(str(caught.value))


def test_examples_that_do_not_fit_cost_no_other_method(world):
    comparison = emolab.Comparison(world.model, world.vectors)
    with pytest.warns(UserWarning, match="few_shot is left out: no example fits the context"):
        found = build_methods(comparison, world.responses, ("instruction", "few_shot"), max_new_tokens=60)
    assert [method.name for method in found] == ["instruction"]
    with pytest.raises(EmolabError, match="no example fits the context"):
        build_methods(comparison, world.responses, ("few_shot",), max_new_tokens=60)
