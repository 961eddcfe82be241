"""Bad input to what runs for long, to the command line and to what shares results: refused before anything is run."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

import emolab
from emolab.comparisons.claim_runs import check_claims, drift_runs, logodds_runs, pair_runs
from emolab.experiments import parts
from emolab.experiments.selection import Search, split_queries
from emolab.heads.attention import attention_pattern, attention_summary
from emolab.steering.settings import mixtures
from emolab.studies.plan import QUICK
from emolab.vectors.controls import other_like, random_like, shuffled_like
from emolab.vectors.directions import pca_vectors, probe_vectors
from tests.refusing import World, judge, refused

NAN, INF = math.nan, math.inf
Q = pd.DataFrame({"query_id": ["a", "b"], "query": ["tell me", "how ?"], "emotion": ["neutral", "joy"]})


def texts(table):
    return emolab.responses_from_texts(table)


def extract(w, responses, **options):
    return emolab.extract_vectors(w.model, responses, sites=("resid",), progress=False, **options)


def foreign_responses(w):
    made = w.responses.copy()
    made.attrs["emolab"] = {"model": "gpt2", "fingerprint": w.other.fingerprint}
    return made


def study(w, **options):
    sizes = {"n_queries": (4, 2, 2)} | {k: options.pop(k) for k in ("n_queries", "methods") if k in options}
    plan = replace(QUICK, **sizes)
    given = {"queries": w.queries, "emotions": ("joy", "sadness"), "judges": [w.judge], "plan": plan, "progress": False}
    return emolab.study(w.model, out=w.folder / "study", **given | options)


def compared(w, **options):
    own = w.queries
    given = {"methods": ("instruction",), "judges": [w.judge], "progress": False}
    sets = {"responses": w.responses[w.responses["query_id"].isin(own["query_id"][:4])], "chosen": own[4:7],
        "reported": own[7:]}
    sets |= {key: options.pop(key) for key in list(options) if key in sets}
    return emolab.compare_methods(w.model, w.vectors, *sets.values(), **given | options)


def claims_of(w, **options):
    return check_claims(w.model, w.vectors, w.queries, w.responses, w.scored, **{"setting": {"site": "resid"},
        "judge": w.judge, "progress": False} | options)


def curve(w, **options):
    given = {"ranked": {"joy": [(0, 0), (0, 1)], "sadness": [(0, 0), (0, 1)]}, "words": {"joy": ["happy"],
        "sadness": ["sad"]}, "n_queries": 2}
    return emolab.ablation_curve(w.model, w.vectors, w.responses, progress=False, **given | options)


CASES = [
    # Queries and texts
    *[
        (f"queries: {shown}", lambda w, given=given: emolab.load_queries(given), pattern)
        for shown, given, pattern in [
            ("None", None, "are a NoneType; expected"), ("number", 3, "are a int; expected"), ("no such file",
                "absent.json", "no queries at 'absent.json'"),
            ("empty list", [], "are empty"), ("empty dict", {}, "are empty"), ("empty groups", {"joy": []},
                "are empty"), ("empty query", ["tell me", " "], "number 2 is ' '"),
            ("number in list", ["tell me", 3], "number 2 is 3"), ("None in list", [None], "number 1 is None"),
                ("text for a list", {"joy": "tell me"}, "'joy' holds no list"),
            ("number for a list", {"joy": 3}, "'joy' holds no list"), ("nested", [["tell me"]], "number 1 is"),
                ("rows without query", [{"text": "tell me"}], "number 1 is None"),
            ("row of an odd emotion", [{"query": "tell me", "emotion": 3}], "has the emotion 3"),
                ("row of an odd split", [{"query": "tell me", "split": None}], "has the split None"),
            ("empty label", {"": ["tell me"]}, "has the emotion ''"), ("directory", "/", "no queries at '/'"),
                ("empty name", "", "no queries at ''"),
        ]
    ],
    ("queries: split", lambda w: emolab.load_queries(["tell me"], split="test"),
        "have no split 'test'; they have train"),
    ("queries: against a number", lambda w: emolab.load_queries(["tell me"], against=3), "are a int"),
    ("queries: against a table of others", lambda w: emolab.load_queries(["tell me"],
        against=pd.DataFrame({"text": ["a"]})), "lacks query"),
    *[
        (f"texts: {shown}", lambda w, given=given: texts(given), pattern)
        for shown, given, pattern in [
            ("None", None, "got something else"), ("list", ["glad"], "got something else"), ("text for a list",
                {"joy": "glad"}, "got something else"),
            ("nothing", {}, "there is none"), ("no text", {"joy": []}, "there is none"), ("number", {"joy": [3]},
                "found 3"), ("NaN", {"joy": [NAN]}, "found nan"),
            ("number for a list", {"joy": 3}, "got something else"), ("None for a list", {"joy": None},
                "got something else"), ("no file", "absent.csv", "cannot read absent.csv"),
            ("no label column", pd.DataFrame({"text": ["glad"]}), "no column 'label'"), ("label missing",
                pd.DataFrame({"label": [None], "text": ["glad"]}), "rows without a label"),
            ("directory", "/", "cannot read /"), ("empty label", {"": ["glad"]}, "conditions hold ''"),
                ("number for a label", {3: ["glad"]}, "conditions hold 3"),
        ]
    ],
    # Responses and vectors from them
    ("collect: name for model", lambda w: emolab.collect_responses("mini", ["tell me"]), "model is str"),
    ("collect: no emotion", lambda w: w.collect(emotions=()), "at least one emotion"),
    ("collect: neutral alone", lambda w: w.collect(emotions=("neutral",)), "at least one emotion"),
    *[(f"collect: emotion {e!r}", lambda w, e=e: w.collect(emotions=("joy", e)), "emotions hold .* at place 1")
        for e in (None, 3, "", " ")],
    ("collect: emotions None", lambda w: w.collect(emotions=None), "emotions are None"),
    ("collect: pairing", lambda w: w.collect(pairing="both"), "unknown pairing 'both'"),
    ("collect: own, no query of it", lambda w: w.collect(Q[Q["emotion"] == "joy"], emotions=("fear",), pairing="own"),
        "no query is labelled fear"),
    ("collect: no query", lambda w: w.collect([]), "are empty"),
    ("collect: empty table", lambda w: w.collect(Q.iloc[:0]), "are empty"),
    ("collect: columns", lambda w: w.collect(pd.DataFrame({"text": ["a"]})), "lack query_id, query, emotion"),
    ("collect: doubled id", lambda w: w.collect(Q.assign(query_id="a")), "has repeated query_id"),
    ("collect: id missing", lambda w: w.collect(Q.assign(query_id=[None, "a"])), "a missing query_id"),
    ("collect: query missing", lambda w: w.collect(Q.assign(query=[None, "tell me"])), "queries hold (None|nan)"),
    ("collect: query of white space", lambda w: w.collect(Q.assign(query=[" ", "tell me"])), "queries hold ' '"),
    ("collect: template missing", lambda w: w.collect(templates={"neutral": "{query}"}), r"templates\['joy'\] is None"),
    ("collect: length", lambda w: w.collect(max_new_tokens=0), "max_new_tokens is 0"),
    ("collect: writing", lambda w: w.collect(writing=NAN), "writing is nan; expected emolab.Writing"),
    ("collect: batch", lambda w: w.collect(batch_size=-1), "batch_size is -1"),
    ("sweep: writing", lambda w: w.sweep(writing="greedy"), "writing is 'greedy'; expected emolab.Writing"),
    ("extract: no neutral", lambda w: extract(w, w.responses.query("condition == 'joy'")),
        "needs neutral and an emotion"),
    ("extract: neutral alone", lambda w: extract(w, w.responses.query("condition == 'neutral'")),
        "needs neutral and an emotion"),
    ("extract: empty", lambda w: extract(w, w.responses.iloc[:0]), "are empty"),
    ("extract: no texts", lambda w: extract(w, w.responses.drop(columns="text")), "lack text"),
    ("extract: no condition", lambda w: extract(w, w.responses.drop(columns="condition")), "lack condition"),
    ("extract: text missing", lambda w: extract(w, w.responses.assign(text=None)), "column 'text' hold None"),
    ("extract: prompt missing", lambda w: extract(w, w.responses.assign(prompt=NAN)), "column 'prompt' hold nan"),
    ("extract: condition missing", lambda w: extract(w, w.responses.assign(condition=None)),
        "column 'condition' hold None"),
    ("extract: number for condition", lambda w: extract(w, w.responses.assign(condition=3)),
        "column 'condition' hold 3"),
    ("extract: empty texts", lambda w: extract(w, w.responses.assign(text="")), "no text under .* holds a token"),
    ("extract: one emotion without texts", lambda w: extract(w,
        w.responses.assign(text=w.responses["text"].where(w.responses["condition"] != "joy", ""))),
            "no text under joy"),
    ("extract: responses of another model", lambda w: extract(w, foreign_responses(w)),
        "responses are of 'gpt2'.*collect them again"),
    ("extract: too long", lambda w: extract(w, w.responses.assign(text="sun " * 300)), "does not fit"),
    ("extract: batch", lambda w: extract(w, w.responses, batch_size=0), "batch_size is 0"),
    ("extract: other responses than the means", lambda w: extract(w, w.responses.iloc[:9], means=w.means),
        "other responses"),
    ("controls: emotion", lambda w: other_like(w.vectors, {"joy": "fear"}), "fear"),
    ("controls: no means", lambda w: shuffled_like(w.foreign, model=w.other), "means"),
    ("controls: seed", lambda w: random_like(w.vectors, seed="x"), "seed is 'x'"),
    ("directions: site", lambda w: pca_vectors(w.means, sites=("x",)), "unknown site 'x'"),
    ("directions: strength", lambda w: probe_vectors(w.means, sites=("resid",), C=0), "C is 0"),
    # Sweeps
    ("sweep: name for model", lambda w: emolab.sweep("mini", w.vectors, ["tell me"]), "model is str"),
    ("sweep: path for vectors", lambda w: w.sweep(vectors="ev.safetensors"), "vectors are str"),
    ("sweep: vectors of another model", lambda w: w.sweep(vectors=w.foreign), "another model"),
    *[
        (f"sweep: alphas {alphas!r}", lambda w, alphas=alphas: w.sweep(alphas=alphas), pattern)
        for alphas, pattern in [((), r"alphas are \(\)"), (2.0, "alphas are 2.0"), (None, "alphas are None"), ((0, NAN),
            "one of alphas is nan"), ((0, INF), "one of alphas is inf"), (("1",), "one of alphas is '1'"), ((0, True),
                "one of alphas is True"), ("12", "alphas are '12'")]
    ],
    *[
        (f"sweep: emotions {given!r}", lambda w, given=given: w.sweep(emotions=given), pattern)
        for given, pattern in [(("fear",), "unknown emotion 'fear'"), ((), "no emotion"), (({},),
            "the mixture {} is none"), (({"joy": NAN},), "weight of 'joy' is nan"), (({"joy": "1"},), "mixture"), ((3,),
                r"emotions are \(3,\)"), (({"fear": 1.0},), "unknown emotion 'fear'")]
    ],
    *[
        (f"sweep: controls {given!r}", lambda w, given=given: w.sweep(controls=given), pattern)
        for given, pattern in [(("placebo",), "unknown control 'placebo'; controls are"), ((None,),
            "unknown control None"), ("placebo", "unknown control 'placebo'")]
    ],
    *[
        (f"sweep: grid {given!r}", lambda w, given=given: w.sweep(grid=given), pattern)
        for given, pattern in [
            ({"sites": ["resid"]}, "unknown field 'sites' in grid"), ({"site": []}, "names no value for 'site'"),
                ({"site": ["x"]}, "unknown site 'x'"), ({"layers": ["some"]}, "layers is 'some'"),
            ({"layers": [[9]]}, "unknown layer 9"), ({"op": "multiply"}, "unknown op"), ({"heads": ["each"]},
                'go with site "head"'), ({"fade": [0]}, "fade is 0"), (["site"], r"grid is \['site'\]"),
                    ({"part": ["half"]}, "unknown part"),
            ({"site": ["head"], "heads": ["some"]}, "heads in grid are 'some'"),
        ]
    ],
    ("sweep: columns", lambda w: w.sweep(pd.DataFrame({"text": ["a"]})), "lack query_id, query"),
    ("sweep: no query", lambda w: w.sweep(Q.iloc[:0]), "are empty"),
    ("sweep: doubled id", lambda w: w.sweep(Q.assign(query_id="a")), "repeated query_id"),
    ("sweep: query missing", lambda w: w.sweep(Q.assign(query=[None, "tell me"])), "queries hold (None|nan)"),
    ("sweep: length", lambda w: w.sweep(max_new_tokens=0), "max_new_tokens is 0"),
    ("sweep: seed", lambda w: w.sweep(seed=None, controls=("random",)), "seed is None"),
    ("sweep: template missing", lambda w: w.sweep(templates={"joy": "{query}"}), r"templates\['neutral'\]"),
    ("sweep: shuffled without means", lambda w: w.sweep(controls=("shuffled",), vectors=w.foreign),
        "another model|means"),
    ("mixtures: odd", lambda w: mixtures(3, ("joy",)), "emotions are 3"),
    ("purity: one emotion", lambda w: parts.part_purity(w.model, extract(w, w.responses.query("condition != 'joy'")),
        ["tell me"]), "single emotion sadness"),
    ("purity: dose missing", lambda w: parts.part_purity(w.model, w.vectors, ["tell me"], alpha={"joy": 1.0}),
        "no dose for 'sadness'"),
    ("purity: dose NaN", lambda w: parts.part_purity(w.model, w.vectors, ["tell me"], alpha=NAN),
        "dose of 'joy' is nan"),
    # Claims, methods, heads, attention
    ("claims: setting without site", lambda w: claims_of(w, setting={"site": "x"}),
        "unknown site 'x'|hold no site 'x'"),
    ("claims: setting None", lambda w: claims_of(w, setting=None), "setting is None"),
    ("claims: queries", lambda w: claims_of(w, n_queries=1), "n_queries is 1"),
    ("claims: base", lambda w: claims_of(w, setting={"site": "resid", "part": "shared"}), "expected whole or specific"),
    ("claims: unscored sweep", lambda w: check_claims(w.model, w.vectors, w.queries, w.responses, None,
        setting={"site": "resid"}, judge=w.judge, progress=False), "table is NoneType"),
    ("drift: no answers", lambda w: drift_runs(w.model, w.vectors, Q, w.responses, progress=False),
        "0 of 2 queries have answers"),
    ("drift: columns", lambda w: drift_runs(w.model, w.vectors, w.queries, w.responses.drop(columns="prompt"),
        progress=False), "lacks prompt"),
    ("drift: dose", lambda w: drift_runs(w.model, w.vectors, w.queries, w.responses, alphas=(NAN,), progress=False),
        "one of alphas is nan"),
    ("drift: no dose", lambda w: drift_runs(w.model, w.vectors, w.queries, w.responses, alphas=(0,), progress=False),
        "other than 0"),
    ("log-odds: layer", lambda w: logodds_runs(w.model, w.vectors, w.queries, w.responses, layers=[9], progress=False),
        "unknown layer 9"),
    ("pairs: one emotion twice", lambda w: pair_runs(w.model, w.vectors, w.queries, w.responses, pairs=[("joy", "joy")],
        progress=False), "two different ones"),
    ("pairs: unknown", lambda w: pair_runs(w.model, w.vectors, w.queries, w.responses, pairs=[("joy", "fear")],
        progress=False), "two different ones"),
    ("methods: unknown", lambda w: compared(w, methods=("magic",)), "unknown method .*magic"),
    ("methods: none", lambda w: compared(w, methods=()), "unknown method|expected some of"),
    ("methods: judge's labels", lambda w: compared(w, judges=[judge(("joy", "neutral"))]), "cannot tell sadness"),
    ("methods: a query in two sets", lambda w: compared(w, reported=w.queries[4:]),
        "what is learned, chosen and reported"),
    ("methods: no query to choose with", lambda w: compared(w, chosen=w.queries[:0]), "is empty"),
    ("methods: no query to report", lambda w: compared(w, reported=w.queries[:0]), "is empty"),
    ("methods: judge named by a word", lambda w: compared(w, judges="embedding"), "judge is 'embedding'"),
    ("methods: damage", lambda w: compared(w, target_kl=NAN), "target_kl is nan"),
    *[
        ("heads: {} {:.24}".format(*map(str, [*options.items()][-1])), lambda w, options=options: w.heads(**options),
            pattern)
        for options, pattern in [
            ({"test": "knock"}, "unknown test 'knock'"), ({"heads": []}, r"heads are \[\]"), ({"heads": [(0,)]},
                r"heads are \[\(0,\)\]"), ({"heads": "all"}, "heads are 'all'"), ({"heads": [(9, 0)]},
                    "no head 0 in layer 9"),
            ({"heads": [(0, -1)]}, "no head -1"), ({"heads": [(0.5, 1)]}, "heads are"), ({"dose": NAN}, "dose is nan"),
                ({"dose": True}, "dose is True"), ({"n_queries": 0}, "n_queries is 0"), ({"n_queries": 1.5},
                    "n_queries is 1.5"),
            ({"words": {"joy": ["happy"]}}, "words lack sadness"), ({"words": {"joy": "happy", "sadness": "sad"}},
                "expected a list of words"), ({"judge": "embedding"}, "judge is 'embedding'"), ({"max_new_tokens": 0,
                    "words": None, "judge": judge()}, "max_new_tokens is 0"),
        ]
    ],
    ("heads: responses without prompts", lambda w: w.heads(responses=w.responses.assign(prompt="")),
        "collect_responses"),
    ("heads: responses of another model", lambda w: w.heads(responses=foreign_responses(w)), "responses are of 'gpt2'"),
    ("heads: no responses", lambda w: w.heads(responses=None), "responses"),
    ("heads: vectors of another model", lambda w: w.heads(vectors=w.foreign), "another model"),
    *[(f"curve: {options}", lambda w, options=options: curve(w, **options), pattern) for options,
        pattern in [({"ks": [9]}, r"ks \[9\]"), ({"ks": [-1]}, "one of ks is -1"), ({"ks": ["x"]}, "one of ks is 'x'"),
            ({"n_random": 0}, "n_random is 0"), ({"test": "patch"}, "has no curve"), ({"ranked": {"joy": [(0, 0)]}},
                "ranking of sadness")]],
    ("attention: head", lambda w: attention_summary(w.model, w.responses, heads=[(0, 9)]), "no head"),
    ("attention: pairs", lambda w: attention_summary(w.model, w.responses, heads=[0]), "heads are"),
    ("attention: columns", lambda w: attention_summary(w.model, w.responses.drop(columns="prompt"), heads=[(0, 0)]),
        "lacks prompt"),
    ("attention: layer", lambda w: attention_pattern(w.model, "tell me", "so glad", layer=9, head=0), "no head"),
    ("attention: head alone", lambda w: attention_pattern(w.model, "tell me", "so glad", layer=0, head=9), "no head"),
    # The study
    ("study: no such model", lambda w: emolab.study("/absent/model", out=w.folder / "s"), "no model '/absent/model'"),
    ("study: sizes", lambda w: study(w, n_queries=(40, 20, 26)), "too few for"),
    ("study: two sizes", lambda w: study(w, n_queries=(4, 2)), r"n_queries are \(4, 2\)"),
    ("study: size 0", lambda w: study(w, n_queries=(0, 2, 2)), "one of n_queries is 0"),
    ("study: size of text", lambda w: study(w, n_queries=("4", 2, 2)), "one of n_queries is '4'"),
    ("study: no held-out", lambda w: study(w, queries=w.queries.assign(split="train")), "both splits are needed"),
    ("study: no split", lambda w: study(w, queries=w.queries.drop(columns="split")), "lack split"),
    ("study: doubled id", lambda w: study(w, queries=w.queries.assign(query_id="a")), "repeated query_id"),
    ("study: no emotion", lambda w: study(w, emotions=()), "(at least one emotion)"),
    ("study: emotion None", lambda w: study(w, emotions=(None,)), "emotions hold None"),
    ("study: no judge", lambda w: study(w, judges=[]), "there is no judge"),
    ("study: judge of other labels", lambda w: study(w, judges=[judge(("fear", "neutral"))]), "cannot tell joy"),
    ("study: only neutral", lambda w: study(w, emotions=("neutral",)), "(at least one emotion)"),
    ("study: plan", lambda w: study(w, plan="quick"), "plan is 'quick'; expected an emolab.studies.plan.Plan"),
    ("study: doses", lambda w: Search(doses=(1, NAN)), "one of doses is nan"),
    ("study: dose 0", lambda w: Search(doses=(0, 1)), "expected positive numbers"),
    ("study: window", lambda w: Search(windows=("each",)), "unknown window 'each'"),
    ("study: method", lambda w: study(w, methods=("magic",)), "unknown method .*magic"),
    ("study: number for queries", lambda w: study(w, queries=3), "are a int"),
    ("study: split queries", lambda w: split_queries(w.queries, (1, 1)), "n_queries are"),
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tiny_llama, tiny_gpt2, tmp_path_factory):
    return World(tiny_llama, tiny_gpt2, tmp_path_factory.mktemp("refusals"))


@pytest.mark.parametrize(("call", "pattern"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused(world, call, pattern):
    refused(lambda: call(world), pattern)
