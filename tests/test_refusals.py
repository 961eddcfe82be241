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
from emolab.geometry import similarity
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.models.sites import output_weights
from emolab.steering.head_edits import ablated
from emolab.vectors.vectors import vectors_from_means
from tests.refusing import World, refused

NAN, INF = math.nan, math.inf


def made(w, **changes):
    """EmotionVectors of w's model with something changed."""
    given = {"data": w.vectors.data, "emotions": w.vectors.emotions, "resid_norm": w.vectors.resid_norm}
    return EmotionVectors(**given | changes, meta=w.vectors.meta)


def inside(context):
    with context:
        pass


def broken(w, site, value):
    x = w.vectors.data[site].clone()
    x[0, 0] = value
    return made(w, data={**w.vectors.data, site: x})


CASES = [
    # Steering: what is asked for
    ("steering: path for vectors", lambda w: Steering("ev.safetensors", {"joy": 1.0}),
        "vectors .*str.*expected EmotionV"),
    ("steering: None for vectors", lambda w: Steering(None, {"joy": 1.0}), "vectors .*NoneType.*expected EmotionV"),
    ("steering: unknown emotion", lambda w: w.steering({"jo": 1.0}), "unknown emotion 'jo'.*joy, sadness"),
    ("steering: emotion None", lambda w: w.steering({None: 1.0}), "unknown emotion None"),
    ("steering: number for emotion", lambda w: w.steering({0: 1.0}), "unknown emotion 0"),
    ("steering: doses list", lambda w: w.steering(["joy"]), r"doses are \['joy'\]"),
    ("steering: doses number", lambda w: w.steering(1.0), "doses are 1.0"),
    ("steering: no dose", lambda w: w.steering({}), r"doses are \{\}; expected at least one"),
    ("steering: emotion of base", lambda w: w.steering(part="shared"), "unknown emotion 'joy'; expected one of shared"),
    *[
        (f"steering: dose {dose!r}", lambda w, dose=dose: w.steering({"joy": dose}),
            "the dose of 'joy' is .*finite number")
        for dose in (NAN, INF, -INF, None, "1", True, np.True_, [1.0], 1j, np.float32(NAN), torch.tensor(1.0))
    ],
    ("steering: dose beyond float32", lambda w: w.generate(steering=w.steering({"joy": 1e300})),
        "not finite.*smaller dose"),
    ("steering: site", lambda w: w.steering(site="residual"), "unknown site 'residual'; expected one of resid, attn"),
    ("steering: site None", lambda w: w.steering(site=None), "unknown site None"),
    ("steering: site list", lambda w: w.steering(site=["resid"]), r"unknown site \['resid'\]"),
    ("steering: site array", lambda w: w.steering(site=np.array(["resid", "attn"])), "unknown site"),
    ("steering: site not held", lambda w: Steering(made(w, data={"attn": w.vectors.data["attn"]}), {"joy": 1.0}),
        "hold no site 'resid', only attn"),
    ("steering: op", lambda w: w.steering(op="multiply"), "unknown op 'multiply'; expected one of add, ablate, clamp"),
    ("steering: unit", lambda w: w.steering(unit="absolute"), "unknown unit 'absolute'; expected one of vector"),
    ("steering: part", lambda w: w.steering(part="half"), "unknown part 'half'"),
    ("steering: positions", lambda w: w.steering(positions="last"), "unknown positions 'last'.*or a slice"),
    ("steering: positions number", lambda w: w.steering(positions=3), "unknown positions 3"),
    ("steering: positions step 0", lambda w: w.steering(positions=slice(0, 4, 0)), "step of at least 1"),
    ("steering: positions floats", lambda w: w.steering(positions=slice(0.0, 4)), "expected whole numbers"),
    ("steering: positions empty", lambda w: w.steering(positions=slice(4, 4)), "hold no position"),
    *[
        (f"steering: layers {layers!r}", lambda w, layers=layers: w.steering(layers=layers), pattern)
        for layers, pattern in [
            (None, "layers is None"), (3, "layers is 3"), (1.5, "layers is 1.5"), ("0,1", "layers is '0,1'"), ([],
                "layers is empty"),
            ([3], "unknown layer 3; expected a whole number from 0 to 2"), ([-1], "unknown layer -1"), ([1.0],
                "unknown layer 1.0"),
            ([True], "unknown layer True"), (["1"], "unknown layer '1'"), ([[0]], r"unknown layer \[0\]"), ([10**30],
                "unknown layer 10+"),
        ]
    ],
    *[
        (f"steering: heads {heads!r}", lambda w, heads=heads: w.steering(site="head", heads=heads), pattern)
        for heads, pattern in [
            ([(0, 1)], r"heads are \[\(0, 1\)\]; expected"), ({0: 1}, "heads are {0: 1}; expected"), ({},
                "heads are {}"),
            ({0: []}, "heads are {0: \\[\\]}"), ({9: [0]}, "unknown layer 9"), ({0: [4]}, "unknown head 4"), ({0: [-1]},
                "unknown head -1"),
            ({0: [True]}, "unknown head True"), ("all", "heads are 'all'"),
        ]
    ],
    ("steering: heads without site", lambda w: w.steering(heads={0: [0]}), 'heads= goes with site="head"'),
    ("steering: heads of other layers", lambda w: w.steering(site="head", layers=[1], heads={0: [0]}),
        "layer 1 .*names no head"),
    *[(f"steering: fade {fade!r}", lambda w, fade=fade: w.steering(fade=fade), "fade is .*half-life in tokens")
        for fade in (0, -2, NAN, "8", True)],
    ("steering: fade with positions", lambda w: w.steering(fade=4, positions="all"), "fade= goes with positions"),
    ("steering: ablate, unequal", lambda w: w.steering({"joy": 1, "sadness": 0.5}, op="ablate"), "takes one share"),
    ("steering: ablate, relative", lambda w: w.steering(op="ablate", unit="residual"), 'unit "vector"'),
    ("steering: table of clamp", lambda w: w.steering(op="clamp").table(), 'only "add" has a table'),
    ("steering: clamp along nothing", lambda w: w.generate(steering=Steering(w.vectors * 0.0, {"joy": 1.0},
        op="clamp")), "a vector is zero"),
    # Steering: on which model
    ("steered: vectors themselves", lambda w: inside(emolab.steered(w.model, w.vectors)),
        "steering is EmotionVectors; expected a Steering"),
    ("steered: number", lambda w: inside(emolab.steered(w.model, 1.5)), "steering is float"),
    ("steered: dict", lambda w: inside(emolab.steered(w.model, {"joy": 1.0})), "steering is dict"),
    ("steered: text in list", lambda w: inside(emolab.steered(w.model, [None, "joy"])), "steering is str"),
    ("steered: empty list", lambda w: inside(emolab.steered(w.model, [])), "steering is an empty list"),
    ("steered: name for model", lambda w: inside(emolab.steered("mini", w.steering())), "model is str.*load_model"),
    ("steered: other model", lambda w: inside(emolab.steered(w.other, w.steering())),
        "of another model: .*3 layers.*2 layers.*shapes must agree"),
    ("steered: other fingerprint", lambda w: inside(emolab.steered(w.model, Steering(marked(w, "ffff"), {"joy": 1.0}))),
        "fingerprint ffff.*allow_mismatch"),
    ("steered: mismatch of shapes allowed", lambda w: inside(emolab.steered(w.other, w.steering(),
        allow_mismatch=True)), "shapes must agree"),
    ("steered: fade", lambda w: inside(emolab.steered(w.model, w.steering(fade=4))), "fade counts generated tokens"),
    ("ablated: emotion", lambda w: inside(ablated(w.model, w.vectors, "jo", [(0, 0)])), "unknown emotion 'jo'"),
    ("ablated: head", lambda w: inside(ablated(w.model, w.vectors, "joy", [(0, 9)])), "no head 9 in layer 0"),
    ("ablated: positions", lambda w: inside(ablated(w.model, w.vectors, "joy", [(0, 0)], positions="last")),
        "unknown positions .last"),
    ("ablated: no pairs", lambda w: inside(ablated(w.model, w.vectors, "joy", [0, 1])),
        r"heads .*\(layer, head\) pairs"),
    # Generation
    ("generate: name for model", lambda w: emolab.generate("mini", "tell me"), "model is str.*load_model"),
    ("generate: None", lambda w: w.generate(None), "prompts are None"),
    ("generate: no prompt", lambda w: w.generate([]), "prompts are empty"),
    ("generate: empty prompt", lambda w: w.generate(""), "prompts hold '' at place 0"),
    ("generate: white space", lambda w: w.generate(["tell me", " \n"]), r"prompt.*' \\n'"),
    ("generate: number in list", lambda w: w.generate(["tell me", 3]), "prompts hold 3"),
    ("generate: NaN in list", lambda w: w.generate(["tell me", NAN]), "prompts hold nan"),
    ("generate: bytes", lambda w: w.generate([b"tell me"]), "prompts hold b'tell me'"),
    ("generate: raw, number", lambda w: w.generate([3], raw=True), "prompts hold 3"),
    *[
        (f"generate: {key}={value!r}", lambda w, key=key, value=value: w.generate(**{key: value}), pattern
            if " " in pattern else rf"{key} is {pattern}; expected")
        for key, value, pattern in [
            ("max_new_tokens", 0, "0"), ("max_new_tokens", -1, "-1"), ("max_new_tokens", 1.5, "1.5"), ("max_new_tokens",
                True, "True"),
            ("max_new_tokens", "80", "'80'"), ("max_new_tokens", None, "None"), ("max_new_tokens", 10**9,
                "shorten the text or"),
            ("batch_size", 0, "0"), ("batch_size", -3, "-3"), ("batch_size", 1.5, "1.5"), ("batch_size", True, "True"),
            ("writing", 0.7, "0.7"), ("writing", None, "None"), ("writing", {"seed": 1}, "{'seed': 1}"),
        ]
    ],
    *[
        (f"writing: {key}={value!r}", lambda w, key=key, value=value: Writing(**{key: value}),
            rf"{key} is {pattern}; expected")
        for key, value, pattern in [
            ("temperature", -0.1, "-0.1"), ("temperature", NAN, "nan"), ("temperature", INF, "inf"), ("temperature",
                "1", "'1'"), ("temperature", True, "True"),
            ("top_p", 0, "0"), ("top_p", 1.1, "1.1"), ("top_p", NAN, "nan"), ("top_p", "1", "'1'"),
            ("repetition_penalty", 0.1, "0.1"), ("repetition_penalty", INF, "inf"), ("repetition_penalty", None,
                "None"),
            ("seed", "x", "'x'"), ("seed", None, "None"), ("seed", 1.5, "1.5"),
        ]
    ],
    ("responses: temperature for writing", lambda w: emolab.collect_responses(w.model, ["tell me"], writing=0.7),
        "writing is 0.7; expected emolab.Writing"),
    ("generate: steerings", lambda w: w.generate(["tell me"], steering=[None, w.steering()]),
        "2 steerings for 1 prompts"),
    ("generate: vectors for steering", lambda w: w.generate(steering=w.vectors), "steering is EmotionVectors"),
    ("generate: other model", lambda w: w.generate(steering=Steering(w.foreign, {"joy": 1.0})), "of another model"),
    ("logprobs: unequal", lambda w: token_logprobs(w.model, ["tell"], ["me", "you"]), "1 prompts and 2 texts"),
    ("logprobs: number", lambda w: token_logprobs(w.model, ["tell"], [3]), "texts hold 3"),
    ("kl: unequal", lambda w: next_token_kl(w.model, ["tell"], ["me", "you"]), "1 prompts, 2 texts"),
    ("encode: nothing", lambda w: encode(w.other, [""]), "row 0 has no token"),
    ("render: template", lambda w: render_prompts(w.model, ["tell me"], "joy", templates={"neutral": "{query}"}),
        r"templates\['joy'\] is None"),
    ("render: template without query", lambda w: render_prompts(w.model, ["tell me"], templates={"neutral": "say"}),
        "expected a text with"),
    ("render: template number", lambda w: render_prompts(w.model, ["tell me"], templates={"neutral": 3}),
        r"templates\['neutral'\] is 3"),
    ("render: templates list", lambda w: render_prompts(w.model, ["tell me"], templates=["{query}"]), "templates"),
    ("render: intensity", lambda w: render_prompts(w.model, ["tell me"], "joy", intensity="huge"),
        "unknown intensity 'huge'"),
    ("load: None", lambda w: load_model(None), "cannot load a model from NoneType"),
    ("load: number", lambda w: load_model(3), "cannot load a model from int"),
    ("load: no such", lambda w: load_model(w.folder / "absent"), "no model '/.*no such directory"),
    ("load: dtype", lambda w: load_model("smollm2", dtype="float33"), "unknown dtype.*float33"),
    ("load: device", lambda w: load_model("smollm2", device="gpu"), "cannot use device 'gpu'"),
    ("load: empty name", lambda w: load_model(""), "model ''"),
    # Vectors
    ("vectors: no site", lambda w: made(w, data={}), "no site given"),
    ("vectors: unknown site", lambda w: made(w, data={"residual": w.vectors.data["resid"]}), "unknown site 'residual'"),
    ("vectors: data list", lambda w: made(w, data=[w.vectors.data["resid"]]), "data hold list .*expected a tensor"),
    ("vectors: array for tensor", lambda w: made(w, data={"resid": w.vectors.data["resid"].numpy()}),
        "data hold ndarray .*expected a tensor"),
    ("vectors: NaN", lambda w: broken(w, "attn", NAN), "vectors at attn hold NaN or infinity"),
    ("vectors: infinity", lambda w: broken(w, "head", INF), "vectors at head hold NaN or infinity"),
    ("vectors: too few labels", lambda w: made(w, emotions=("joy",)), "do not fit their 1 labels"),
    ("vectors: doubled label", lambda w: made(w, emotions=("joy", "joy")), "a label occurs twice"),
    ("vectors: empty label", lambda w: made(w, emotions=("joy", "")), "the label ''"),
    ("vectors: number for label", lambda w: made(w, emotions=("joy", 2)), "the label 2"),
    ("vectors: no emotion", lambda w: made(w, data={"resid": torch.zeros(0, 3, 32)}, emotions=()), "no label"),
    ("vectors: sites of two widths", lambda w: made(w, data={**w.vectors.data, "attn": torch.zeros(2, 3, 16)}),
        "differ in d_model .*32.*16"),
    ("vectors: layers", lambda w: made(w, resid_norm=torch.ones(4)), "do not fit their 2 labels and 4 layers"),
    ("vectors: norm NaN", lambda w: made(w, resid_norm=torch.tensor([1.0, NAN, 1.0])), "resid_norm.*nan"),
    ("vectors: norm negative", lambda w: made(w, resid_norm=torch.tensor([1.0, -1.0, 1.0])), "resid_norm.*-1"),
    *[
        (f"get: {options}", lambda w, options=options: w.vectors.get(**options), pattern)
        for options, pattern in [
            ({"site": "residual"}, "hold no site 'residual'"), ({"site": None}, "hold no site None"),
                ({"emotion": "jo"}, "unknown emotion 'jo'"),
            ({"emotion": 0}, "unknown emotion 0"), ({"layer": 3}, "layer 3 does not exist"), ({"layer": -4},
                "layer -4 does not exist"),
            ({"layer": 1.5}, "layer 1.5"), ({"layer": "1"}, "layer '1'"), ({"layer": True}, "layer True"),
                ({"layer": NAN}, "layer nan"),
            ({"site": "head", "head": 4}, "head 4 does not exist"), ({"site": "head", "head": "0"}, "head '0'"),
                ({"head": 0}, "head=0 goes with site 'head'"),
        ]
    ],
    ("vectors + other model", lambda w: w.vectors + w.foreign,
        "cannot add .* they must share model, sites and emotions"),
    ("vectors - other sites", lambda w: w.vectors - made(w, data={"resid": w.vectors.data["resid"]}), "cannot add"),
    *[(f"vectors * {x!r}", lambda w, x=x: w.vectors * x, "factor of vectors is .*finite number") for x in (NAN, INF,
        True)],
    *[(f"vectors / {x!r}", lambda w, x=x: w.vectors / x, "divisor of vectors is") for x in (0, 0.0, NAN, True)],
    ("vectors * huge", lambda w: w.vectors * 1e300, "hold NaN or infinity"),
    ("extract: nothing", lambda w: emolab.extract_vectors(w.model, None), "needs responses or means"),
    ("extract: list", lambda w: emolab.extract_vectors(w.model, ["a text"], progress=False), "responses lack"),
    ("extract: site", lambda w: emolab.extract_vectors(w.model, w.responses, sites=("resid", "x")), "unknown site 'x'"),
    ("extract: no site", lambda w: emolab.extract_vectors(w.model, w.responses, sites=()), "no site given"),
    ("extract: sites None", lambda w: emolab.extract_vectors(w.model, w.responses, sites=None), "no site given"),
    ("extract: name for model", lambda w: emolab.extract_vectors("mini", w.responses), "model is str.*load_model"),
    ("extract: foreign means", lambda w: emolab.extract_vectors(w.other, None, means=w.means),
        "the means are of model"),
    ("extract: path for means", lambda w: emolab.extract_vectors(w.model, None, means="means.safetensors"),
        "means are str .*expected ResponseMeans"),
    ("extract: site not measured", lambda w: vectors_from_means(w.means, sites=("head",)), "needs W_O"),
    ("means: rows", lambda w: w.means.select([True, False]), "or 30 times True"),
    ("means: row", lambda w: w.means.select([99]), "rows are .99.; expected positions below 30"),
    ("means: floats", lambda w: w.means.select([0.5]), "rows are .0.5.; expected positions"),
    ("geometry: site", lambda w: similarity.cosines(w.vectors, site="x"), "hold no site 'x'"),
    ("geometry: part", lambda w: similarity.cosines(w.vectors, part="shared"), "part must be"),
    ("geometry: layer", lambda w: similarity.cosine_matrix(w.vectors, layer=7), "no layer 7"),
    ("geometry: layer text", lambda w: similarity.cosine_matrix(w.vectors, layer="last"), "no layer 'last'"),
    ("geometry: variance", lambda w: similarity.denoise(w.vectors, w.means, variance=NAN), "variance nan"),
    ("geometry: permutations", lambda w: similarity.shared_energy(w.means, n_permutations=0), "n_permutations.* 0"),
    ("interop: no common emotion", lambda w: similarity.vector_agreement(w.vectors, made(w, emotions=("a", "b"))),
        "expected an emotion in common"),
    ("interop: other shape", lambda w: similarity.vector_agreement(w.vectors, w.foreign), "cannot compare"),
    ("weights: not read", lambda w: output_weights("mini"), "model is str"),
    ("frame for text", lambda w: w.generate(pd.DataFrame({"query": ["tell me"]})),
        "prompts are .*expected a list of texts"),
]  # fmt: skip


def marked(w, fingerprint):
    given = w.vectors
    return EmotionVectors(given.data, given.emotions, given.resid_norm, {**given.meta, "fingerprint": fingerprint})


@pytest.fixture(scope="module")
def world(tiny_llama, tiny_gpt2, tmp_path_factory):
    return World(tiny_llama, tiny_gpt2, tmp_path_factory.mktemp("refusals"))


@pytest.mark.parametrize(("call", "pattern"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused(world, call, pattern):
    refused(lambda: call(world), pattern)
