"""Bad input to judges, scores, statistics, claims, figures and widgets: one clear error each."""

from __future__ import annotations

import math
from functools import partial

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest

import emolab
from emolab import plot
from emolab.base.stats import bootstrap_ci, interval
from emolab.comparisons import claims
from emolab.experiments import dose_response, parts
from emolab.experiments.headline import headline
from emolab.geometry import confounding, projections, reliability
from emolab.heads.attribution import top_words, word_tokens
from emolab.heads.head_vectors import embed_heads, head_cosines, head_maps, head_summary
from emolab.judges import calibration
from emolab.judges.judges import EmbeddingJudge, FunctionJudge, LexiconJudge
from emolab.judges.model_judges import ClassifierJudge, NLIJudge, SelfReportJudge
from emolab.judges.scoring import target_share
from emolab.widgets import SteeringPanel, head_view, token_view
from tests.refusing import each, judge, refused, table

NAN, INF = math.nan, math.inf
TEXTS = pd.DataFrame({"text": ["so glad", "so sad"], "query": ["how ?", "why ?"]})


def says(values, labels=("joy", "neutral"), texts=2):
    return FunctionJudge(lambda _: values, labels)(["a text"] * texts)


class Odd:
    """A judge of the user's own, without FunctionJudge around it."""

    name, labels = "odd", ("joy", "neutral")

    def __init__(self, values):
        self.values = values

    def __call__(self, texts):
        return self.values


def saved(w, **changes):
    given = {"fig": plot.norms(w.vectors), "name": "norms", "caption": "Norms.", "alt": "Lines."} | changes
    return plot.save_figure(given.pop("fig"), given.pop("name"), directory=w.folder / "f", **given)


# Functions that draw, or reckon with, a table of another function
OF_TABLES = {
    **{f"plot.{name}": getattr(plot, name) for name in (
        "ablation_curve agreement_curve dose_response effect_forest head_forest "
        "confound_curve head_map instruction_following judge_agreement layer_curve mixture_map probe_curve purity_dots "
        "reliability_curve shared_energy_curve site_map tradeoff words_table attention_html"
    ).split()},
    "plot.head_umap": lambda t: plot.head_umap(t, t), "geometry.text_features": confounding.text_features,
    "plot.response_map": lambda t: plot.response_map(t, t), "plot.signature": lambda t: plot.signature(t, t, t, t),
    "plot.claim_monotone": plot.claim_monotone, "plot.claim_linear": plot.claim_linear,
    "plot.claim_additive": plot.claim_additive, "plot.claim_preservation": plot.claim_preservation,
    **{f"dose_response.{name}": getattr(dose_response, name) for name in (
        "dose_table", "trend", "collapse", "compare",
    )},
    "headline": headline, "target_share": target_share, "agreement": calibration.agreement, "score": emolab.score,
    "claims.monotone": claims.monotone, "claims.linear": claims.linear, "claims.additive": claims.additive,
    "claims.preservation": claims.preservation, "purity.purity": parts.purity,
    "head_summary": lambda t: head_summary(t, t), "head_view": head_view,
}  # fmt: skip
NOT_TABLES = (None, [1, 2], pd.DataFrame(), pd.DataFrame({"x": [1.0, 2.0]}))
OF_VECTORS = [plot.norms, plot.cosine_by_layer, plot.cosine_grid, plot.layer_map]

CASES = [
    *[(partial(lambda w, f: f("ev.safetensors"), f=f), "vectors are str .*expected EmotionV") for f in OF_VECTORS],
    *[(partial(lambda w, f: f(w.vectors, site="x"), f=f), "hold no site 'x'") for f in OF_VECTORS],
    *each(lambda w, given: plot.cosine_map(w.vectors, given),
        [(9, "no layer 9; there are layers 0 to 2"), ("last", "no layer 'last'")]),
    (lambda w: plot.theme("poster").__enter__(), "unknown style 'poster'; there are notebook"),
    # Scored sweeps
    *each(lambda w, given: dose_response.dose_table(given(w.scored)), [
        (lambda t: t.query("alpha != 0"), "joy needs rows of control .none., alpha 0"),
        (lambda t: t.drop(columns="p_joy"), "no probability of 'joy': the judge knows"),
        (lambda t: t.drop(columns=[c for c in t if c.startswith("p_")]), "no p_<emotion> columns"),
        (lambda t: t.assign(site=["attn", "resid"] * (len(t) // 2)), "mixes site = attn, resid"),
        (lambda t: t.astype({"alpha": str}), "alpha holds something else than numbers"),
        (lambda t: t.assign(alpha=NAN), "alpha holds something else than numbers"),
        (lambda t: t.assign(emotion=None), "emotion holds None"),
        (lambda t: t.assign(p_joy=NAN), "hold missing values"),
        (lambda t: t.assign(p_joy=7.0), "p_joy holds 7.0"),
        (lambda t: t.assign(p_joy="high"), "p_joy holds .high"),
        (lambda t: t.assign(situation=[f"s{i}" for i in range(len(t))]), "stands in two situations"),
    ]),
    *each(lambda w, given: dose_response.dose_table(w.scored, given(w.scored)), [
        (lambda t: t.assign(emotion="fear"), "no answer under instruction for joy"),
        (lambda t: {"joy": 4.0}, "the table is dict"),
    ]),
    (lambda w: dose_response.trend(w.scored.query("alpha != 0")), "joy needs rows"),
    (lambda w: dose_response.compare(w.scored, control="shuffled"), "no control 'shuffled'.*random, unsteered"),
    (lambda w: dose_response.compare(w.scored, measure="joyfulness"), "no measure 'joyfulness' of numbers"),
    (lambda w: dose_response.compare(w.scored, measure="text"), "no measure 'text' of numbers"),
    (lambda w: plot.site_map(w.scored, control="shuffled"), "lacks texts of joy|without"),
    (lambda w: plot.layer_curve(w.scored.query("alpha in (0, 1)")), "steers no single layer"),
    (lambda w: claims.preservation(drift()), 'needs controls "none" and "random"'),
    (lambda w: claims.preservation(drift().drop(columns="topic")), "lacks topic"),
    (lambda w: claims.linear(w.scored.query("alpha in (0, 1)")), "at least four doses"),
    (lambda w: claims.monotone(w.scored.query("control == 'none'")), "random"),
    # Judges and scores
    *each(lambda w, given: emolab.score(TEXTS, judges=given), [
        ([], "there is no judge"), ("embedding", "judge.*'embedding'"), (3, "judge.* 3"),
        (lambda texts: texts, "the judge is <function.*FunctionJudge"), (EmbeddingJudge, "judge.*EmbeddingJudge"),
        ([judge(), judge()], "give each its own name"),
        (Odd(np.ones((2, 3)) / 3), r"judge 'odd' .*\(2, 3\).*\(2, 2\)"),
        (Odd([[NAN, 0.5], [0.5, 0.5]]), "judge 'odd' .*finite numbers"), (Odd(None), "judge 'odd'"),
    ]),
    (lambda w: emolab.score(pd.DataFrame({"text": ["a", None]}), judges=w.judge), "'text' hold nan at place 1"),
    (lambda w: emolab.score(["a text"], judges=w.judge), "takes a table with a column"),
    (lambda w: emolab.score(TEXTS.assign(query=NAN), judges=w.judge, model=w.model), "queries hold nan"),
    (lambda w: emolab.score(TEXTS, judges=w.judge, model="mini"), "model is str"),
    (lambda w: emolab.score(TEXTS[["text"]], judges=FunctionJudge(min, ("joy",), with_queries=True)), "queries too"),
    (lambda w: target_share(w.scored, "lexicon_top"), "lexicon_top"),
    *each(lambda w, given: says(given), [
        (np.ones((2, 3)), r"returned shape \(2, 3\); expected \(2, 2\)"),
        (np.array([[NAN, 1.0], [0.5, 0.5]]), "finite"),
        ([["high", "low"], ["low", "high"]], "'own'.*numbers from 0 to 1"),
        ([[1.0], [0.5, 0.5]], "'own'"),
        (np.array([[8.0, 2.0], [3.0, 7.0]]), "'own'.*0 to 1"),
        (np.array([[-0.5, 0.5], [0.5, 0.5]]), "'own'.*0 to 1"),
    ]),
    (lambda w: FunctionJudge("ask", ("joy", "neutral")), "function is 'ask'"),
    *each(lambda w, given: FunctionJudge(len, given), [("joy", "labels are 'joy'"), ((), r"labels are \(\)"),
        (("joy", "joy"), r"labels are \('joy', 'joy'\)")]),
    *each(lambda w, given: EmbeddingJudge(given), [
        ({"joy": "I am glad."}, "expected a list of at least one sentence"),
        ({"joy": []}, "expected a list of at least one sentence"), ({"joy": [3]}, "is .3.; expected a list"),
        ({}, r"prototypes are \{\}; expected"), (["I am glad."], "prototypes are"),
    ]),
    *each(lambda w, given: EmbeddingJudge(temperature=given), [(x, "temperature is") for x in (0, NAN)]),
    *each(lambda w, given: LexiconJudge(given), [
        ({"joy": "happy"}, r"words\['joy'\] is 'happy'"), ({}, r"words are \{\}"), (["happy"], "words are"),
        ({"joy": ["Happy"]}, "'Happy'.*lower case"),
    ]),
    (lambda w: SelfReportJudge(w.model, words={"joy": []}), "at least one word"),
    (lambda w: SelfReportJudge("mini")(["so glad"]), "model is str"),
    (lambda w: SelfReportJudge(w.model, baseline=())(["glad"]), "baseline"),
    (lambda w: ClassifierJudge(w.folder / "absent"), "no classifier"),
    (lambda w: NLIJudge("x", {"joy": "glad"}), "of two labels or more"),
    (lambda w: calibration.calibrated(w.judge, ["a"], [None]), "label 'None' is none of"),
    (lambda w: calibration.calibrated(w.judge, [3] * 15, [*"x" * 15]), "label 'x'|texts hold 3"),
    (lambda w: interval([1, 0], clusters=["a"]), "clusters are 1 for 2 values"),
    (lambda w: bootstrap_ci([1.0, 2.0, 3.0], np.mean, n=0), "n is 0"),
    # Reliability, maps, heads, words
    (lambda w: reliability.split_half(w.means, part="half"), "part must be"),
    (lambda w: reliability.split_half(w.means, n_splits=0), "n_splits is 0"),
    (lambda w: reliability.split_half("means.safetensors"), "expected ResponseMeans"),
    (lambda w: reliability.probe_accuracy(w.means, test=w.means), "in both"),
    (lambda w: projections.embed(w.means, methods=("tsne",)), "unknown method .*tsne"),
    (lambda w: projections.embed(w.means, layers=[7], methods=("pca",)), "no layer 7"),
    (lambda w: projections.embed(w.means.select([0, 1]), methods=("pca",)), "2 points are too few for a map"),
    (lambda w: head_cosines(w.vectors.select(["joy"])), "compared between emotions; these vectors hold joy"),
    (lambda w: embed_heads(w.vectors.part("specific") * 0.0), "too few for a map"),
    (lambda w: head_maps(w.vectors, w.means, W_O=np.ones(3)), "W_O"),
    *each(lambda w, given: word_tokens(w.model, {"joy": given}), [("happy", "expected a list of words"),
        ([], "no token of its own begins a word of joy"), (["xylophone"], "no token of its own begins")]),
    *each(lambda w, given: top_words(w.model, w.vectors, **given), [({"layer": 9}, "no layer 9"),
        ({"site": "head"}, "goes with heads="), ({"n": 0}, "n is 0")]),
    (lambda w: top_words(w.other, w.vectors, layer=0), "another model"),
    # Figures on disk
    *each(lambda w, given: saved(w, name=given), [(name, "figure name.*use small letters") for name in (
        "../x", "/tmp/x", "a/b", "..", "A", "a b", "", "x.png", "-x", "a\0b", "a\n", None, 3,
    )]),
    *each(lambda w, given: saved(w, caption=given), [(x, "has no caption") for x in ("", " ", 3)]),
    *each(lambda w, given: saved(w, alt=given), [(x, "has no alt") for x in ("", 3)]),
    (lambda w: saved(w, fig="norms.png"), "figure .norms. is a str"),
    (lambda w: saved(w, fig=matplotlib.figure.Figure()), "has no numbers; pass data="),
    (lambda w: saved(w, data=[1, 2]), "table is list"),
    # Widgets
    *each(lambda w, given: panel(w, **given), [
        ({"doses": {"jo": 1.0}}, "unknown emotion 'jo'"), ({"doses": {"joy": NAN}}, "dose of 'joy' is nan"),
        ({"setting": emolab.Setting(layers=[0, 2])}, "neighbouring layers"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"), ({"prompt": None}, "the prompt is empty"),
        ({"judge": "embedding"}, "judge.*'embedding'"),
    ]),
    (lambda w: SteeringPanel(w.other, w.vectors, judge=False), "another model"),
    (lambda w: SteeringPanel("mini", w.vectors, judge=False), "model is str"),
    *each(lambda w, given: token_view(w.model, given, w.vectors), [("", "no token; give at least one word"),
        (3, "text hold 3")]),
    *each(lambda w, given: token_view(w.model, "so glad", w.vectors, **given), [
        ({"measure": "dot"}, "unknown measure 'dot'"), ({"emotion": "jo"}, "unknown emotion 'jo'"),
        ({"site": "head"}, 'no single activation at site "head"'), ({"layers": [5]}, "unknown layer 5"),
    ]),
    (lambda w: token_view(w.other, "so glad", w.vectors), "another model"),
    (lambda w: head_view(heads(), "loudness"), "cannot show 'loudness'.*share"),
    (lambda w: head_view(heads(), emotion="fear"), "unknown emotion 'fear'"),
    (lambda w: head_view(pd.concat([heads(), heads()])), "one row for each layer, head and emotion"),
    (lambda w: plot.head_map(heads(), "loudness"), "cannot show 'loudness'"),
]  # fmt: skip


def drift():
    rows = [(f"q{q}", "", "joy", "none", a, 0.1, 0.1, 0.1) for q in range(4) for a in (0.5, 1.0)]
    return pd.DataFrame(rows, columns=["query_id", "situation", "emotion", "control", "alpha", "topic", "answer", "kl"])


def heads():
    rows = [(0, h, "joy", 0.5, 0.1) for h in range(3)]
    return pd.DataFrame(rows, columns=["layer", "head", "emotion", "share", "effect"])


def panel(w, **options):
    return SteeringPanel(w.model, w.vectors, **{"judge": False, "max_new_tokens": 2} | options)


@pytest.mark.parametrize("name", OF_TABLES)
@pytest.mark.parametrize("given", NOT_TABLES, ids=["nothing", "list", "empty", "other"])
def test_what_is_no_table_of_its_kind_is_refused(name, given):
    refused(lambda: OF_TABLES[name](given), "table|score|judges|claim|column|responses")


@table(CASES)
def test_refused(world, call, pattern):
    refused(lambda: call(world), pattern)
