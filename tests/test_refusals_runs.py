"""Bad input to what runs for long: refused before anything is run."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

import emolab
from emolab.answers.writing import Writing
from emolab.comparisons.claim_runs import check_claims, drift_runs, logodds_runs, pair_runs
from emolab.experiments import parts
from emolab.experiments.selection import split_queries
from emolab.heads.attention import attention_pattern
from emolab.steering.settings import mixtures
from emolab.studies.plan import QUICK
from emolab.vectors.controls import other_like, random_like, shuffled_like
from emolab.vectors.directions import pca_vectors, probe_vectors
from tests.refusing import each, head_test, judge, refused, table

NAN, INF = math.nan, math.inf
RESID = emolab.Setting()
Q = pd.DataFrame({"query_id": ["a", "b"], "query": ["tell me", "how ?"], "emotion": ["neutral", "joy"]})


def extract(w, responses, **options):
    return emolab.extract_vectors(w.model, responses, sites=("resid",), **options)


def foreign_responses(w):
    made = w.responses.copy()
    made.attrs["emolab"] = {"model": "gpt2", "fingerprint": w.other.fingerprint}
    return made


def study(w, **options):
    sizes = {"n_queries": (4, 2, 2)} | {k: options.pop(k) for k in ("n_queries", "methods") if k in options}
    given = {"queries": w.queries, "emotions": ("joy", "sadness"), "judges": [w.judge], "plan": replace(QUICK, **sizes)}
    return emolab.study(w.model, out=w.folder / "study", **given | options)


def compared(w, *, chosen=slice(4, 7), reported=slice(7, None), methods=("instruction",), judges=None, **options):
    learned = w.responses[w.responses["query_id"].isin(w.queries["query_id"][:4])]
    judges = [w.judge] if judges is None else judges
    sets = learned, w.queries[chosen], w.queries[reported]
    return emolab.compare_methods(steered(w), *sets, methods=methods, judges=judges, **options)


def steered(w, setting=RESID, **options):
    return emolab.Comparison(w.model, w.vectors, setting, **options)


def claims_of(w, table=None, setting=RESID, **options):
    table = w.scored if table is None else table
    return check_claims(steered(w, setting), w.queries, w.responses, table, judge=w.judge, **options)


def drift(w, queries=None, responses=None, **options):
    queries = w.queries if queries is None else queries
    return drift_runs(steered(w), queries, w.responses if responses is None else responses, **options)


def curve(w, **options):
    given = {"ranked": {"joy": [(0, 0), (0, 1)], "sadness": [(0, 0), (0, 1)]}, "test": head_test()}
    return emolab.ablation_curve(w.model, w.vectors, w.responses, **given | options)


CASES = [
    # Queries and texts
    *each(lambda w, given: emolab.load_queries(given), [
        (None, "are a NoneType; expected"), (3, "are a int; expected"), ("absent.json", "no queries at 'absent.json'"),
        ("/", "no queries at '/'"), ("", "no queries at ''"), ([], "are empty"), ({}, "are empty"),
        ({"joy": []}, "are empty"), (["tell me", " "], "number 2 is ' '"), (["tell me", 3], "number 2 is 3"),
        ([["tell me"]], "number 1 is"), ([{"text": "tell me"}], "number 1 is None"),
        ({"joy": "tell me"}, "'joy' holds no list"), ({"joy": 3}, "'joy' holds no list"),
        ([{"query": "tell me", "emotion": 3}], "emotion of number 1 is 3"), ({"": ["tell me"]}, "emotion of number 1"),
        ([{"query": "tell me", "split": None}], "split of number 1 is None"),
    ]),
    (lambda w: emolab.load_queries(["tell me"], split="test"), "have no split 'test'; they have train"),
    (lambda w: emolab.load_queries(["tell me"], against=3), "are a int"),
    (lambda w: emolab.load_queries(["tell me"], against=pd.DataFrame({"text": ["a"]})), "lacks query"),
    *each(lambda w, given: emolab.responses_from_texts(given), [
        (None, "got something else"), (["glad"], "got something else"), ({"joy": "glad"}, "got something else"),
        ({"joy": 3}, "got something else"), ({}, "there is none"), ({"joy": []}, "there is none"),
        ({"joy": [3]}, "found 3"), ({"joy": [NAN]}, "found nan"), ("absent.csv", "cannot read absent.csv"),
        ("/", "cannot read /"), (pd.DataFrame({"text": ["glad"]}), "no column 'label'"),
        (pd.DataFrame({"label": [None], "text": ["glad"]}), "rows without a label"),
        ({"": ["glad"]}, "conditions hold ''"), ({3: ["glad"]}, "conditions hold 3"),
    ]),
    # Responses and vectors from them
    (lambda w: emolab.collect_responses("mini", ["tell me"]), "model is str"),
    *each(lambda w, given: w.collect(emotions=given), [
        ((), "at least one emotion"), (("neutral",), "at least one emotion"), (None, "emotions are None"),
        (("joy", 3), "emotions hold 3 at place 1"), (("joy", " "), "emotions hold ' ' at place 1"),
    ]),
    *each(lambda w, given: w.collect(given), [
        ([], "are empty"), (Q.iloc[:0], "is empty"), (pd.DataFrame({"text": ["a"]}), "lacks query_id, query, emotion"),
        (Q.assign(query_id="a"), "has repeated query_id"), (Q.assign(query_id=[None, "a"]), "a missing query_id"),
        (Q.assign(query=[None, "tell me"]), "queries hold (None|nan)"),
        (Q.assign(query=[" ", "tell me"]), "queries hold ' '"),
    ]),
    *each(lambda w, given: w.collect(**given), [
        ({"pairing": "both"}, "unknown pairing 'both'"), ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"writing": Writing(templates={"neutral": "{query}"})}, r"templates\['joy'\] is None"),
        ({"writing": NAN}, "writing is nan; expected emolab.Writing"),
    ]),
    (lambda w: w.collect(Q[Q["emotion"] == "joy"], emotions=("fear",), pairing="own"), "no query is labelled fear"),
    *each(lambda w, given: extract(w, given(w.responses)), [
        (lambda t: t.query("condition == 'joy'"), "needs neutral and an emotion"),
        (lambda t: t.query("condition == 'neutral'"), "needs neutral and an emotion"),
        (lambda t: t.iloc[:0], "is empty"),
        (lambda t: t.drop(columns="text"), "lacks text"),
        (lambda t: t.drop(columns="condition"), "lacks condition"),
        (lambda t: t.assign(text=None), "column 'text' hold None"),
        (lambda t: t.assign(prompt=NAN), "column 'prompt' hold nan"),
        (lambda t: t.assign(condition=3), "column 'condition' hold 3"),
        (lambda t: t.assign(text=""), "no text under .* holds a token"),
        (lambda t: t.assign(text=t["text"].where(t["condition"] != "joy", "")), "no text under joy"),
        (lambda t: t.assign(text="sun " * 300), "does not fit"),
    ]),
    (lambda w: extract(w, foreign_responses(w)), "responses are of 'gpt2'.*collect them again"),
    (lambda w: extract(w, w.responses, batch_size=0), "batch_size is 0"),
    (lambda w: extract(w, w.responses.iloc[:9], means=w.means), "other responses"),
    (lambda w: other_like(w.vectors, {"joy": "fear"}), "fear"),
    (lambda w: shuffled_like(w.foreign, model=w.other), "means"),
    (lambda w: random_like(w.vectors, seed="x"), "seed is 'x'"),
    (lambda w: pca_vectors(w.means, sites=("x",)), "unknown site 'x'"),
    (lambda w: probe_vectors(w.means, sites=("resid",), C=0), "C is 0"),
    # Sweeps
    (lambda w: emolab.sweep("mini", w.vectors, ["tell me"]), "model is str"),
    (lambda w: w.sweep(vectors="ev.safetensors"), "vectors are 'ev.safetensors'; expected EmotionVectors"),
    (lambda w: w.sweep(vectors=w.foreign), "another model"),
    (lambda w: w.sweep(controls=("shuffled",), vectors=w.foreign), "another model|means"),
    (lambda w: w.sweep(alphas=(0, NAN)), "one of alphas is nan"),
    (lambda w: w.sweep(alphas=()), "at least one number"),
    *each(lambda w, given: emolab.at(w.vectors, emotions=given), [
        (("fear",), "unknown emotion 'fear'"), (({},), "the mixture {} is none"),
        (({"joy": NAN},), "dose of 'joy' is nan"), (({"joy": "1"},), "mixture"), ((3,), r"emotions are \(3,\)"),
        (({"fear": 1.0},), "unknown emotion 'fear'"),
    ]),
    *each(lambda w, given: w.sweep(controls=given), [
        (("placebo",), "unknown control 'placebo'; expected one of random"), ((None,), "unknown control None"),
        ("placebo", "unknown control 'placebo'"),
    ]),
    *each(lambda w, given: w.sweep(vectors=given), [
        ([], "at least one direction"), ({"joy": 1.0}, "expected EmotionVectors, a Steering or a list"),
        ([None], "expected EmotionVectors, a Steering or a list"),
    ]),
    *each(lambda w, given: emolab.at(w.vectors, emolab.Setting(**given)), [
        ({"site": "x"}, "unknown site 'x'"), ({"layers": "some"}, "layers is 'some'"),
        ({"layers": [9]}, "unknown layer 9"), ({"op": "multiply"}, "unknown op"), ({"fade": 0}, "fade is 0"),
        ({"heads": {0: [0]}}, 'goes with site="head"'), ({"part": "half"}, "unknown part"),
        ({"site": "head", "heads": "some"}, "heads are 'some'"),
    ]),
    *each(lambda w, given: w.sweep(given), [
        (pd.DataFrame({"text": ["a"]}), "lacks query_id, query"), (Q.iloc[:0], "is empty"),
        (Q.assign(query_id="a"), "repeated query_id"), (Q.assign(query=[None, "tell me"]), "queries hold (None|nan)"),
    ]),
    *each(lambda w, given: w.sweep(**given), [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"), ({"writing": "greedy"}, "writing is 'greedy'; expected"),
        ({"writing": Writing(templates={"joy": "{query}"})}, r"templates\['neutral'\]"),
    ]),
    (lambda w: mixtures(3, ("joy",)), "emotions are 3"),
    (lambda w: parts.part_purity(w.model, extract(w, w.responses.query("condition != 'joy'")), ["tell me"]),
        "single emotion sadness"),
    *each(lambda w, given: parts.part_purity(w.model, w.vectors, ["tell me"], alpha=given),
        [({"joy": 1.0}, "no dose for 'sadness'"), (NAN, "dose of 'joy' is nan")]),
    # Claims, methods, heads, attention
    *each(lambda w, given: claims_of(w, **given), [
        ({"setting": {"site": "resid"}}, "setting is .*emolab.Setting"), ({"setting": None}, "setting is None"),
        ({"setting": emolab.Setting(part="shared")}, "expected whole or specific"),
        ({"setting": (RESID, emolab.Setting(site="attn"))}, "at one setting"),
        ({"setting": emolab.Setting(op="ablate")}, 'expected op "add"'),
        ({"n_queries": 1}, "n_queries is 1"), ({"table": [1]}, "table is list"),
    ]),
    (lambda w: drift(w, Q), "0 of 2 queries have answers"),
    (lambda w: drift(w, responses=w.responses.drop(columns="prompt")), "lacks prompt"),
    (lambda w: drift(w, alphas=(NAN,)), "one of alphas is nan"),
    (lambda w: drift(w, alphas=(0,)), "other than 0"),
    (lambda w: logodds_runs(steered(w, emolab.Setting(layers=[9])), w.queries, w.responses), "unknown layer 9"),
    *each(lambda w, given: pair_runs(steered(w), w.queries, w.responses, pairs=[("joy", given)]),
        [("joy", "two different ones"), ("fear", "two different ones")]),
    *each(lambda w, given: compared(w, **given), [
        ({"methods": ("magic",)}, "unknown method .*magic"), ({"methods": ()}, "unknown method|expected some of"),
        ({"judges": [judge(("joy", "neutral"))]}, "cannot tell sadness"),
        ({"judges": "embedding"}, "judge is 'embedding'"),
        ({"reported": slice(4, None)}, "what is learned, chosen and reported"),
        ({"chosen": slice(0)}, "is empty"), ({"reported": slice(0)}, "is empty"),
    ]),
    *each(lambda w, given: w.heads(**given), [
        ({"test": "knock"}, "unknown test 'knock'"), ({"heads": []}, r"heads are \[\]"),
        ({"heads": [(0,)]}, r"heads are \[\(0,\)\]"), ({"heads": "all"}, "heads are 'all'"),
        ({"heads": [(9, 0)]}, "unknown layer 9"), ({"heads": [(0, -1)]}, "unknown head -1"),
        ({"heads": [(0.5, 1)]}, "heads are"), ({"responses": None}, "responses"),
    ]),
    *each(lambda w, given: w.heads(test=head_test(**given)), [
        ({"words": {"joy": ["happy"]}}, "words lack sadness"), ({"judge": "embedding"}, "judge is 'embedding'"),
        ({"words": {"joy": "happy", "sadness": "sad"}}, "expected a list of words"),
    ]),
    (lambda w: w.heads(responses=w.responses.assign(prompt="")), "collect_responses"),
    (lambda w: w.heads(responses=foreign_responses(w)), "responses are of 'gpt2'"),
    (lambda w: w.heads(vectors=w.foreign), "another model"),
    *each(lambda w, given: curve(w, **given), [
        ({"ks": [9]}, r"ks \[9\]"), ({"ks": [-1]}, "one of ks is -1"), ({"n_random": 0}, "n_random is 0"),
        ({"test": "patch"}, "is a test of heads"), ({"ranked": {"joy": [(0, 0)]}}, "ranking of sadness"),
    ]),
    *each(lambda w, given: attention_pattern(w.model, "tell me", "so glad", **given),
        [({"layer": 9, "head": 0}, "no head"), ({"layer": 0, "head": 9}, "no head")]),
    # The study
    (lambda w: emolab.study("/absent/model", out=w.folder / "s"), "no model '/absent/model'"),
    *each(lambda w, given: study(w, n_queries=given), [
        ((40, 20, 26), "too few for"), ((4, 2), r"n_queries are \(4, 2\)"), ((0, 2, 2), "one of n_queries is 0"),
        (("4", 2, 2), "one of n_queries is '4'"),
    ]),
    *each(lambda w, given: study(w, queries=given(w.queries)), [
        (lambda t: t.assign(split="train"), "both splits are needed"),
        (lambda t: t.drop(columns="split"), "lacks split"),
        (lambda t: t.assign(query_id="a"), "repeated query_id"), (lambda t: 3, "are a int"),
    ]),
    *each(lambda w, given: study(w, **given), [
        ({"emotions": ()}, "at least one emotion"), ({"emotions": ("neutral",)}, "at least one emotion"),
        ({"emotions": (None,)}, "emotions hold None"), ({"judges": []}, "there is no judge"),
        ({"judges": [judge(("fear", "neutral"))]}, "cannot tell joy"), ({"methods": ("magic",)}, "unknown method"),
        ({"plan": "quick"}, "plan is 'quick'; expected an emolab.studies.plan.Plan"),
    ]),
    (lambda w: split_queries(w.queries, (1, 1)), "n_queries are"),
]  # fmt: skip


@table(CASES)
def test_refused(world, call, pattern):
    refused(lambda: call(world), pattern)


def test_responses_of_the_same_model_in_another_dtype_are_its_own(world):
    made = world.responses.copy()
    made.attrs["emolab"] = {"model": "other name", "fingerprint": world.model.fingerprint}
    assert extract(world, made).data["resid"].isfinite().all()
