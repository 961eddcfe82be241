"""Bad input to judges, scores, statistics, claims, figures and widgets: one clear error each."""

from __future__ import annotations

import math

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
from emolab.geometry import projections, reliability
from emolab.heads.attribution import top_words, word_tokens
from emolab.heads.head_vectors import embed_heads, head_cosines, head_maps, head_summary
from emolab.judges import calibration
from emolab.judges.judges import EmbeddingJudge, FunctionJudge, LexiconJudge
from emolab.judges.model_judges import ClassifierJudge, NLIJudge, SelfReportJudge
from emolab.judges.scoring import target_share
from emolab.widgets import SteeringPanel, head_view, token_view
from tests.refusing import World, judge, refused

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
    given = {"fig": plot.norms(w.vectors), "name": "norms", "caption": "Norms.", "alt": "Lines.",
        "directory": w.folder / "f"}
    given |= changes
    return plot.save_figure(given.pop("fig"), given.pop("name"), **given)


# Functions that draw, or reckon with, a table of another function
OF_TABLES = {
    **{f"plot.{name}": getattr(plot, name) for name in (
        "ablation_curve affect_plane agreement_curve attention_bars cka_map confusion_map "
        "convergence_curve denoise_curve dose_response effect_forest fade_curve head_forest head_map head_umap "
        "instruction_following judge_agreement layer_curve method_table mixture_map probe_curve purity_dots "
        "reliability_curve shared_energy_curve site_map tradeoff trajectory_map words_table wrong_way attention_html"
    ).split()},
    "plot.head_cosine_map": lambda t: plot.head_cosine_map(t, emotion="joy"),
    "plot.response_map": lambda t: plot.response_map(t, t),
    "plot.claim_monotone": plot.claim_monotone, "plot.claim_linear": plot.claim_linear,
    "plot.claim_additive": plot.claim_additive, "plot.claim_preservation": plot.claim_preservation,
    **{f"dose_response.{f.__name__}": f for f in (
        dose_response.dose_table, dose_response.trend, dose_response.collapse, dose_response.wrong_way,
            dose_response.compare,
    )},
    "headline": headline, "target_share": target_share, "agreement": calibration.agreement, "score": emolab.score,
    "claims.monotone": claims.monotone, "claims.linear": claims.linear, "claims.additive": claims.additive,
    "claims.preservation": claims.preservation, "purity.confusion": parts.confusion, "purity.purity": parts.purity,
    "affect_scores": projections.affect_scores, "head_summary": lambda t: head_summary(t, t), "head_view": head_view,
}  # fmt: skip
NOT_TABLES = {
    "nothing": None, "a list": [1, 2], "an empty table": pd.DataFrame(), "another table": pd.DataFrame({"x": [1.0,
        2.0]}),
}  # fmt: skip
OF_VECTORS = [plot.norms, plot.cosine_by_layer, plot.cosine_grid, plot.layer_map]

CASES = [
    *[
        (f"{name} of {what}", lambda w, call=call, table=table: call(table),
            "table|score|judges|claim|column|responses")
        for name, call in OF_TABLES.items() for what, table in NOT_TABLES.items()
    ],
    *[(f"plot.{f.__name__} of a path", lambda w, f=f: f("ev.safetensors"), "vectors are str .*expected EmotionVectors")
        for f in OF_VECTORS],
    *[(f"plot.{f.__name__} of an unknown site", lambda w, f=f: f(w.vectors, site="x"), "hold no site 'x'")
        for f in OF_VECTORS],
    ("cosine map: layer", lambda w: plot.cosine_map(w.vectors, 9), "no layer 9; there are layers 0 to 2"),
    ("cosine map: layer text", lambda w: plot.cosine_map(w.vectors, "last"), "no layer 'last'"),
    ("theme", lambda w: plot.theme("poster").__enter__(), "unknown style 'poster'; there are notebook"),
    # Scored sweeps
    ("dose table: no unsteered rows", lambda w: dose_response.dose_table(w.scored.query("alpha != 0")),
        "joy needs rows of control .none., alpha 0"),
    ("dose table: emotion unknown to the judge", lambda w: dose_response.dose_table(w.scored.drop(columns="p_joy")),
        "no probability of 'joy'"),
    ("dose table: two settings", lambda w: dose_response.dose_table(mixed(w)), "mixes site = attn, resid"),
    ("dose table: doses as text", lambda w: dose_response.dose_table(w.scored.astype({"alpha": str})),
        "alpha holds something else than numbers"),
    ("dose table: dose NaN", lambda w: dose_response.dose_table(w.scored.assign(alpha=NAN)),
        "alpha holds something else than numbers"),
    ("dose table: emotion missing", lambda w: dose_response.dose_table(w.scored.assign(emotion=None)),
        "emotion holds None"),
    ("dose table: probability missing", lambda w: dose_response.dose_table(w.scored.assign(p_joy=NAN)),
        "hold missing values"),
    ("dose table: probability of 7", lambda w: dose_response.dose_table(w.scored.assign(p_joy=7.0)), "p_joy holds 7.0"),
    ("dose table: probability as text", lambda w: dose_response.dose_table(w.scored.assign(p_joy="high")),
        "p_joy holds .high"),
    ("dose table: query in two situations", lambda w: dose_response.dose_table(placed(w)), "stands in two situations"),
    ("dose table: instructed answers of others", lambda w: dose_response.dose_table(w.scored,
        w.scored.assign(emotion="fear")), "no answer under instruction for joy"),
    ("dose table: instructed lacks an emotion", lambda w: dose_response.dose_table(w.scored, {"fear": 4.0}),
        "no perplexity for joy"),
    ("dose table: instructed perplexity 0", lambda w: dose_response.dose_table(w.scored, {"joy": 0.0, "sadness": 2.0}),
        "for joy is 0"),
    ("dose table: instructed perplexity text", lambda w: dose_response.dose_table(w.scored, {"joy": "low",
        "sadness": 2.0}), "for joy is 'low'"),
    ("trend: no unsteered rows", lambda w: dose_response.trend(w.scored.query("alpha != 0")), "joy needs rows"),
    ("compare: control", lambda w: dose_response.compare(w.scored, control="shuffled"),
        "no control 'shuffled'.*random, unsteered"),
    ("compare: measure", lambda w: dose_response.compare(w.scored, measure="joyfulness"),
        "no measure 'joyfulness' of numbers"),
    ("compare: measure of texts", lambda w: dose_response.compare(w.scored, measure="text"),
        "no measure 'text' of numbers"),
    *[(f"collapse: margin {m!r}", lambda w, m=m: dose_response.collapse(w.scored, margin=m), "margin is") for m in (NAN,
        -0.1, "0.1", None, True)],
    ("plot: control without texts", lambda w: plot.site_map(w.scored, control="shuffled"),
        "lacks texts of joy|without"),
    ("plot: no single layer", lambda w: plot.layer_curve(w.scored.query("alpha in (0, 1)")), "steers no single layer"),
    ("plot: no fading", lambda w: plot.fade_curve(w.scored), "lacks fade"),
    ("plot: level", lambda w: plot.effect_forest(dose_response.compare(w.scored), level=NAN), "level is nan"),
    ("claims: drift without random", lambda w: claims.preservation(drift()), 'needs controls "none" and "random"'),
    ("claims: drift without topic", lambda w: claims.preservation(drift().drop(columns="topic")), "lacks topic"),
    ("claims: two doses", lambda w: claims.linear(w.scored.query("alpha in (0, 1)")), "at least four doses"),
    ("claims: no random control", lambda w: claims.monotone(w.scored.query("control == 'none'")), "random"),
    # Judges and scores
    ("score: text missing", lambda w: emolab.score(pd.DataFrame({"text": ["a", None]}), judges=w.judge),
        "'text' hold nan at place 1"),
    ("score: a list of texts", lambda w: emolab.score(["a text"], judges=w.judge), "takes a table with a column"),
    ("score: query missing for a model", lambda w: emolab.score(TEXTS.assign(query=NAN), judges=w.judge, model=w.model),
        "queries hold nan"),
    ("score: name for model", lambda w: emolab.score(TEXTS, judges=w.judge, model="mini"), "model is str"),
    ("score: no judge", lambda w: emolab.score(TEXTS, judges=[]), "there is no judge"),
    ("score: judge named by a word", lambda w: emolab.score(TEXTS, judges="embedding"), "judge.*'embedding'"),
    ("score: number for a judge", lambda w: emolab.score(TEXTS, judges=3), "judge.* 3"),
    ("score: function for a judge", lambda w: emolab.score(TEXTS, judges=lambda texts: texts),
        "the judge is <function.*FunctionJudge"),
    ("score: class for a judge", lambda w: emolab.score(TEXTS, judges=EmbeddingJudge), "judge.*EmbeddingJudge"),
    ("score: two of a name", lambda w: emolab.score(TEXTS, judges=[w.judge, judge()]), "give each its own name"),
    ("score: judge wants queries", lambda w: emolab.score(TEXTS[["text"]], judges=FunctionJudge(min, ("joy",),
        with_queries=True)), "expected queries too"),
    ("score: own judge, shape", lambda w: emolab.score(TEXTS, judges=Odd(np.ones((2, 3)) / 3)),
        r"judge 'odd' .*\(2, 3\).*\(2, 2\)"),
    ("score: own judge, NaN", lambda w: emolab.score(TEXTS, judges=Odd([[NAN, 0.5], [0.5, 0.5]])),
        "judge 'odd' .*finite numbers"),
    ("score: own judge, nothing", lambda w: emolab.score(TEXTS, judges=Odd(None)), "judge 'odd'"),
    ("target share: column", lambda w: target_share(w.scored, "lexicon_top"), "lexicon_top"),
    ("judge: shape", lambda w: says(np.ones((2, 3))), r"returned shape \(2, 3\); expected \(2, 2\)"),
    ("judge: NaN", lambda w: says(np.array([[NAN, 1.0], [0.5, 0.5]])), "finite"),
    ("judge: words for numbers", lambda w: says([["high", "low"], ["low", "high"]]), "'own'.*numbers from 0 to 1"),
    ("judge: ragged", lambda w: says([[1.0], [0.5, 0.5]]), "'own'"),
    ("judge: scores of 0 to 10", lambda w: says(np.array([[8.0, 2.0], [3.0, 7.0]])), "'own'.*0 to 1"),
    ("judge: negative", lambda w: says(np.array([[-0.5, 0.5], [0.5, 0.5]])), "'own'.*0 to 1"),
    ("judge: no function", lambda w: FunctionJudge("ask", ("joy", "neutral")), "function is 'ask'"),
    ("judge: label as one word", lambda w: FunctionJudge(len, "joy"), "labels are 'joy'"),
    ("judge: no label", lambda w: FunctionJudge(len, ()), r"labels are \(\)"),
    ("judge: doubled label", lambda w: FunctionJudge(len, ("joy", "joy")), r"labels are \('joy', 'joy'\)"),
    ("embedding: a sentence for a list", lambda w: EmbeddingJudge({"joy": "I am glad."}),
        "expected a list of at least one sentence"),
    ("embedding: no sentence", lambda w: EmbeddingJudge({"joy": []}), "expected a list of at least one sentence"),
    ("embedding: number for a sentence", lambda w: EmbeddingJudge({"joy": [3]}), "is .3.; expected a list"),
    ("embedding: no label", lambda w: EmbeddingJudge({}), r"prototypes are \{\}; expected"),
    ("embedding: list", lambda w: EmbeddingJudge(["I am glad."]), "prototypes are"),
    *[(f"embedding: temperature {t!r}", lambda w, t=t: EmbeddingJudge(temperature=t), "temperature is") for t in (0, -1,
        NAN, "1", True)],
    ("lexicon: a word for a list", lambda w: LexiconJudge({"joy": "happy"}), r"words\['joy'\] is 'happy'"),
    ("lexicon: nothing", lambda w: LexiconJudge({}), r"words are \{\}"),
    ("lexicon: list", lambda w: LexiconJudge(["happy"]), "words are"),
    ("lexicon: capitals", lambda w: LexiconJudge({"joy": ["Happy"]}), "'Happy'.*lower case"),
    ("self report: no word", lambda w: SelfReportJudge(w.model, words={"joy": []}), "at least one word"),
    ("self report: name for model", lambda w: SelfReportJudge("mini")(["so glad"]), "model is str"),
    ("self report: no baseline", lambda w: SelfReportJudge(w.model, baseline=(), progress=False)(["glad"]), "baseline"),
    ("classifier: absent", lambda w: ClassifierJudge(w.folder / "absent"), "no classifier"),
    ("entailment: one sentence", lambda w: NLIJudge("x", {"joy": "glad"}), "of two labels or more"),
    ("calibrated: missing label", lambda w: calibration.calibrated(w.judge, ["a"], [None]), "label 'None' is none of"),
    ("calibrated: number for a text", lambda w: calibration.calibrated(w.judge, [3] * 15, [*"x" * 15]),
        "label 'x'|texts hold 3"),
    ("stats: clusters", lambda w: interval([1, 0], clusters=["a"]), "clusters are 1 for 2 values"),
    ("stats: level", lambda w: interval([1, 0, 0.5], level=1.5), "level is 1.5"),
    ("stats: draws", lambda w: bootstrap_ci([1.0, 2.0, 3.0], np.mean, n=0), "n is 0"),
    # Reliability, maps, heads, words
    ("split half: part", lambda w: reliability.split_half(w.means, part="half"), "part must be"),
    ("split half: splits", lambda w: reliability.split_half(w.means, n_splits=0), "n_splits is 0"),
    ("split half: path", lambda w: reliability.split_half("means.safetensors"), "expected ResponseMeans"),
    ("convergence: sizes", lambda w: reliability.convergence(w.means, layer=1, sizes=[99]), "use 1 to 5"),
    ("probe: itself", lambda w: reliability.probe_accuracy(w.means, test=w.means), "in both"),
    ("map: method", lambda w: projections.embed(w.means, methods=("tsne",)), "unknown method .*tsne"),
    ("map: layer", lambda w: projections.embed(w.means, layers=[7], methods=("pca",)), "no layer 7"),
    ("map: too few", lambda w: projections.embed(w.means.select([0, 1]), methods=("pca",)),
        "at least five responses, not 2"),
    ("plane: two emotions", lambda w: projections.affect_plane(w.vectors), "needs three emotions"),
    ("heads: emotion", lambda w: head_cosines(w.vectors, emotion="jo"), "unknown emotion 'jo'"),
    ("heads: no heads", lambda w: embed_heads(w.vectors.part("specific") * 0.0), "too few for a map"),
    ("heads: W_O of another model", lambda w: head_maps(w.vectors, w.means, W_O=np.ones(3)), "W_O"),
    ("words: text", lambda w: word_tokens(w.model, {"joy": "happy"}), "expected a list of words"),
    ("words: none", lambda w: word_tokens(w.model, {"joy": []}), "no token of its own begins a word of joy"),
    ("words: unknown", lambda w: word_tokens(w.model, {"joy": ["xylophone"]}), "no token of its own begins"),
    ("top words: layer", lambda w: top_words(w.model, w.vectors, layer=9), "no layer 9"),
    ("top words: heads", lambda w: top_words(w.model, w.vectors, site="head"), 'goes with heads='),
    ("top words: other model", lambda w: top_words(w.other, w.vectors, layer=0), "another model"),
    ("top words: n", lambda w: top_words(w.model, w.vectors, n=0), "n is 0"),
    # Figures on disk
    *[(f"save: name {name!r}", lambda w, name=name: saved(w, name=name), "figure name") for name in ("../x", "/x", "A",
        "a b", "", "x.png", None, 3, "a\n")],
    *[(f"save: {word} {text!r}", lambda w, word=word, text=text: saved(w, **{word: text}), f"has no {word}")
        for word in ("caption", "alt") for text in ("", " ", None, 3)],
    ("save: no figure", lambda w: saved(w, fig="norms.png"), "figure .norms. is a str"),
    ("save: no numbers", lambda w: saved(w, fig=matplotlib.figure.Figure()), "has no numbers; pass data="),
    ("save: list for numbers", lambda w: saved(w, data=[1, 2]), "table is list"),
    # Widgets
    ("panel: emotion", lambda w: panel(w, doses={"jo": 1.0}), "unknown emotion 'jo'"),
    ("panel: dose", lambda w: panel(w, doses={"joy": NAN}), "dose of 'joy' is nan"),
    ("panel: site", lambda w: panel(w, site="x"), "unknown site 'x'"),
    ("panel: layers", lambda w: panel(w, layers=[0, 2]), "neighbouring layers"),
    ("panel: length", lambda w: panel(w, max_new_tokens=0), "max_new_tokens is 0"),
    ("panel: prompt", lambda w: panel(w, prompt=None), "the prompt is empty"),
    ("panel: other model", lambda w: SteeringPanel(w.other, w.vectors, judge=False), "another model"),
    ("panel: name for model", lambda w: SteeringPanel("mini", w.vectors, judge=False), "model is str"),
    ("panel: judge", lambda w: panel(w, judge="embedding"), "judge.*'embedding'"),
    ("tokens: measure", lambda w: token_view(w.model, "so glad", w.vectors, measure="dot"), "unknown measure 'dot'"),
    ("tokens: emotion", lambda w: token_view(w.model, "so glad", w.vectors, emotion="jo"), "unknown emotion 'jo'"),
    ("tokens: site head", lambda w: token_view(w.model, "so glad", w.vectors, site="head"),
        'no single activation at site "head"'),
    ("tokens: layer", lambda w: token_view(w.model, "so glad", w.vectors, layers=[5]), "unknown layer 5"),
    ("tokens: no text", lambda w: token_view(w.model, "", w.vectors), "no token; give at least one word"),
    ("tokens: number", lambda w: token_view(w.model, 3, w.vectors), "text hold 3"),
    *[(f"tokens: limit {x!r}", lambda w, x=x: token_view(w.model, "so glad", w.vectors, limit=x), "limit is")
        for x in (0, -1, NAN, "1", True)],
    ("tokens: other model", lambda w: token_view(w.other, "so glad", w.vectors), "another model"),
    ("head view: value", lambda w: head_view(heads(), "loudness"), "cannot show 'loudness'.*share"),
    ("head view: emotion", lambda w: head_view(heads(), emotion="fear"), "unknown emotion 'fear'"),
    ("head view: doubled", lambda w: head_view(pd.concat([heads(), heads()])),
        "one row for each layer, head and emotion"),
    ("head map: value", lambda w: plot.head_map(heads(), "loudness"), "cannot show 'loudness'"),
]  # fmt: skip


def mixed(w):
    return w.scored.assign(site=["attn", "resid"] * (len(w.scored) // 2))


def placed(w):
    return w.scored.assign(situation=[f"s{i}" for i in range(len(w.scored))])


def drift():
    rows = [(f"q{q}", "", "joy", "none", a, 0.1, 0.1, 0.1) for q in range(4) for a in (0.5, 1.0)]
    return pd.DataFrame(rows, columns=["query_id", "situation", "emotion", "control", "alpha", "topic", "answer", "kl"])


def heads():
    rows = [(0, h, "joy", 0.5, 0.1) for h in range(3)]
    return pd.DataFrame(rows, columns=["layer", "head", "emotion", "share", "effect"])


def panel(w, **options):
    return SteeringPanel(w.model, w.vectors, **{"judge": False, "max_new_tokens": 2} | options)


@pytest.fixture(scope="module")
def world(tiny_llama, tiny_gpt2, tmp_path_factory):
    return World(tiny_llama, tiny_gpt2, tmp_path_factory.mktemp("refusals"))


@pytest.mark.parametrize(("call", "pattern"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused(world, call, pattern):
    refused(lambda: call(world), pattern)
