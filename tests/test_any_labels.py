"""Labels of one's own (poles of valence and arousal, other languages, a dozen) through every step and figure."""

from __future__ import annotations

import warnings
from functools import cached_property

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text

import emolab
from emolab import plot
from emolab.base.labels import order, styles
from emolab.comparisons import claims
from emolab.experiments import choice_shifts, dose_response, parts
from emolab.geometry import confounding, projections, reliability, similarity
from emolab.heads import attention, attribution, effects, head_vectors
from emolab.heads.sublayers import sublayer_effects
from emolab.judges import calibration
from emolab.judges.judges import EmbeddingJudge
from emolab.models.load import load_model
from emolab.models.sites import output_weights
from emolab.steering.settings import Setting, each_layer
from emolab.vectors.activations import response_means
from tests import claim_tables, tiny
from tests.plot.layout import faults
from tests.plot.made import affect_points, methods, traced

pytestmark = pytest.mark.filterwarnings("ignore:no font among .* has the letters")  # matplotlib's own font has no kanji
WORDS = {
    "high valence": "happy", "low valence": "sad", "low arousal": "quiet", '<b>&"x"</b> a\\b': "very",
    "Überraschung": "rain", "anger/annoyance": "bad", "50% calm": "sea", "_hidden": "dog",
    "a label that goes on and on, as those that stand in a questionnaire do": "cat",
    "joy": "glad", "喜び": "bright", "-con + 0.5 $x$ · two\nlines": "road",
}  # fmt: skip
LABELS = ("joy", *(label for label in WORDS if label != "joy"))  # known ones first, then as they come
TEMPLATES = {"neutral": "{query}", **{label: f"{word} {word} {{query}}" for label, word in WORDS.items()}}
WORDED = emolab.Writing(templates=TEMPLATES)
QUERIES = ["tell me about the park", "did you see the dog ?", "a walk in the rain", "how did you feel today ?"]
RISING = dict.fromkeys(LABELS, np.tanh)  # tables in which a claim holds by construction
RENAMED = {"joy": "high valence", "fear": "Überraschung", "anger": "50% calm"}


class Study:
    """Each step of a study on a random model, made when first asked for."""

    queries = emolab.load_queries({"neutral": QUERIES})
    words = {label: [word] for label, word in WORDS.items()}
    judge = EmbeddingJudge(
        {**{label: [f"I feel {word}."] for label, word in WORDS.items()}, "neutral": ["It is a house."]}
    )

    @cached_property
    def model(self):
        hf = tiny.build(tiny.llama_config())
        with torch.no_grad():
            hf.lm_head.weight[:7] = 0  # special tokens: no answer ends early, so none is empty
        return load_model((hf, tiny.tokenizer()))

    @cached_property
    def responses(self):
        return emolab.collect_responses(
            self.model, self.queries, emotions=list(WORDS), max_new_tokens=6, writing=WORDED
        )

    @cached_property
    def means(self):
        return response_means(self.model, self.responses)

    @cached_property
    def W_O(self):
        return output_weights(self.model)

    @cached_property
    def vectors(self):
        sites = ("resid", "attn", "mlp", "head")
        return emolab.extract_vectors(self.model, self.responses, sites=sites, means=self.means)

    @cached_property
    def head_maps(self):
        return head_vectors.head_maps(self.vectors, self.means, W_O=self.W_O, n_splits=4)

    @cached_property
    def effects(self):
        return effects.head_effects(
            self.model, self.vectors, self.responses, test=emolab.HeadTest("patch", words=self.words, n_queries=2)
        )

    @cached_property
    def ablation(self):
        test = emolab.HeadTest(words=self.words, n_queries=2)
        return emolab.ablation_curve(
            self.model, self.vectors, self.responses, ranked=self.effects, test=test, ks=(0, 2), n_random=1
        )

    @cached_property
    def sublayers(self):
        test = emolab.HeadTest(words=self.words, n_queries=2)
        return sublayer_effects(self.model, self.vectors, self.responses, test=test, bands=1)

    @cached_property
    def scored(self):
        table = emolab.sweep(self.model, self.vectors, self.queries.head(2), alphas=(0, 1, 2), max_new_tokens=4)
        return emolab.score(table, judges=self.judge, model=self.model, writing=WORDED)

    @cached_property
    def purity(self):
        return parts.part_purity(self.model, self.vectors, QUERIES[:1], judge=self.judge, max_new_tokens=3)

    def swept(self, *settings, emotions=LABELS[1:3]):
        """A scored sweep of two queries and few labels."""
        directions = emolab.at(self.vectors, settings, emotions)
        queries = self.queries.head(2)
        table = emolab.sweep(self.model, directions, queries, alphas=(0, 1), controls=("random",), max_new_tokens=3)
        return emolab.score(table, judges=self.judge)

    def head_points(self):
        """As `head_vectors.embed_heads` gives them; a UMAP takes seconds, so here is a stand-in."""
        table = self.head_maps[["layer", "head", "name", "emotion", "norm"]].assign(trustworthiness=0.9)
        return table.assign(x=table["norm"], y=np.arange(len(table)) % 7)

    def response_map(self):
        points = projections.embed(self.means, methods=("pca",))
        return plot.response_map(points, projections.embed_scores(self.means, points, n_permutations=4))

    def attention_html(self):
        row = self.responses[self.responses["condition"] == "high valence"].iloc[0]
        return plot.attention_html(attention.attention_pattern(self.model, row["prompt"], row["text"], layer=1, head=0))

    def judge_agreement(self):
        other = EmbeddingJudge(self.judge.prototypes, temperature=0.5, name="other")
        scored = emolab.score(self.responses.head(20), judges=[self.judge, other])
        return plot.judge_agreement(calibration.agreement(scored, n=20))


def named_points():
    """A map of labels of any form, and some more."""
    points = affect_points()
    points["label"] = [*LABELS, *points["label"][len(LABELS) :]]
    return points


@pytest.fixture(scope="module")
def made():
    return Study()


FIGURES = {
    "agreement_curve": lambda s: plot.agreement_curve(
        {part: similarity.vector_agreement(s.vectors, -s.vectors, part=part) for part in ("whole", "specific")}
    ),
    "norms": lambda s: plot.norms(s.vectors),
    "cosine_by_layer": lambda s: plot.cosine_by_layer(s.vectors),
    "cosine_map": lambda s: plot.cosine_map(s.vectors, 1),
    "cosine_grid": lambda s: plot.cosine_grid(s.vectors, part="specific"),
    "layer_map": lambda s: plot.layer_map(s.vectors),
    "shared_energy_curve": lambda s: plot.shared_energy_curve(similarity.shared_energy(s.means, n_permutations=10)),
    "reliability_curve": lambda s: plot.reliability_curve(
        {part: reliability.split_half(s.means, part=part, n_splits=4) for part in ("whole", "specific")}
    ),
    "probe_curve": lambda s: plot.probe_curve(
        reliability.probe_accuracy(s.means, probes=("centroid",), n_permutations=4),
        words=reliability.word_accuracy(s.responses, n_permutations=4),
    ),
    "response_map": Study.response_map,
    "confound_curve": lambda s: plot.confound_curve(
        confounding.confounds(s.means, s.responses, n_permutations=4),
    ),
    "head_map": lambda s: plot.head_map(s.head_maps),
    "head_umap": lambda s: plot.head_umap(s.head_points(), head_vectors.head_cosines(s.vectors)),
    "head_forest": lambda s: plot.head_forest(s.effects, top=2),
    "ablation_curve": lambda s: plot.ablation_curve(s.ablation),
    "sublayers": lambda s: plot.sublayers(s.sublayers),
    "attention_html": Study.attention_html,
    "words_table": lambda s: plot.words_table(attribution.top_words(s.model, s.vectors, n=2)),
    "dose_response": lambda s: plot.dose_response(s.scored, best=dict.fromkeys(LABELS, 1.0)),
    "instruction_following": lambda s: plot.instruction_following(emolab.score(s.responses, judges=s.judge)),
    "text_table": lambda s: plot.text_table(s.scored),
    "token_trace": lambda s: plot.token_trace(traced(LABELS)),
    "choice_curve": lambda s: plot.choice_curve(
        choice_shifts(
            emolab.choices(s.model, QUERIES[1:2], ["rain", "sun"], steering=s.vectors).query("option == 'sun'")
        )
    ),
    "effect_forest": lambda s: plot.effect_forest(dose_response.compare(s.scored)),
    "layer_curve": lambda s: plot.layer_curve(s.swept(*each_layer(s.vectors))),
    "site_map": lambda s: plot.site_map(s.swept(Setting(), Setting(site="attn"))),
    "mixture_map": lambda s: plot.mixture_map(
        s.swept(Setting(), emotions=["50% calm", {"50% calm": 0.5, "Überraschung": 0.5}])
    ),
    "judge_agreement": Study.judge_agreement,
    "claim_monotone": lambda s: plot.claim_monotone(claims.monotone(claim_tables.curves(RISING, n=8))),
    "claim_linear": lambda s: plot.claim_linear(
        claims.linear(claim_tables.curves({e: np.tanh for e in LABELS[1:4]}, n=8))
    ),
    "claim_preservation": lambda s: plot.claim_preservation(
        claims.preservation(claim_tables.drift(np.square, np.abs, n=8).replace(RENAMED))
    ),
    "claim_additive": lambda s: plot.claim_additive(
        claims.additive(claim_tables.pairs({k: np.add for k in ("whole", "specific", "random")}, n=8).replace(RENAMED))
    ),
    "circumplex": lambda s: plot.circumplex(named_points()),
    "tradeoff": lambda s: plot.tradeoff(methods().replace(RENAMED), emotion="high valence"),
    "purity_dots": lambda s: plot.purity_dots(parts.purity(s.purity)),
}

# These name methods, heads or pairs.
UNNAMED = "tradeoff"
# These are drawn of a few labels.
SOME = "layer_curve site_map mixture_map claim_linear claim_preservation claim_additive"


def _letters(text):
    return "".join(text.split())  # a long label is wrapped, and cut along an axis


def test_every_figure_is_drawn_here():
    others = {"theme", "save_figure", "check_figures", "signature", "affect_curve", "affect_shift"}
    others |= {"turning_curve", "rank_curve", "two_models", "heads_or_neurons"}  # no user's labels
    missing = set(plot.__all__) - others - set(FIGURES)
    assert not missing, f"draw {', '.join(sorted(missing))} with labels of one's own, too"


@pytest.mark.parametrize("name", FIGURES)
def test_figure(made, name):
    fig = FIGURES[name](made)
    if not hasattr(fig, "emolab_data"):  # HTML
        return
    shown = [c for c in ("emotion", "condition") if c in fig.emolab_data]
    for column in shown:
        labels = set(fig.emolab_data[column]) - {"all", "neutral", "mean"}
        few = name in SOME.split() or len(labels) <= 1
        assert labels <= set(LABELS) if few else labels == set(LABELS), f"{name} loses {set(LABELS) - labels}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a legend that leaves no room for the axes, a value that cannot be drawn
        fig.canvas.draw()
    assert faults(fig) == []
    if name not in UNNAMED.split():
        named = {label for column in shown for label in fig.emolab_data[column].dropna() if label in WORDS}
        drawn = _letters(" ".join(text.get_text() for text in fig.findobj(Text) if text.get_visible()))
        assert not [label for label in named if _letters(label)[:15] not in drawn], "not named in the figure"
    if name in ("dose_response", "claim_monotone", "effect_forest"):
        drawn = {line.get_color() for ax in fig.axes for line in ax.lines}
        assert {color for color, _ in styles(LABELS).values()} <= drawn, f"{name}: labels share a colour"


@pytest.mark.slow
@pytest.mark.parametrize("style", ["paper", "slides"])
@pytest.mark.parametrize("name", FIGURES)
def test_figure_in_print_and_on_slides(made, name, style):
    """The same figure on a journal's width, and on a slide: no word runs into another or off the page."""
    with plot.theme(style):
        fig = FIGURES[name](made)
    if hasattr(fig, "emolab_data"):
        assert fig.get_figwidth() <= {"paper": 7.0, "slides": 13.0}[style] + 1e-9 and faults(fig) == []


def test_a_dozen_labels_go_on_below_and_share_their_scale(made):
    """Four panels side by side; of one row of the figure all panels have one y axis, in whatever block."""
    fig = FIGURES["dose_response"](made)
    titled = [ax for ax in fig.axes if ax.get_title(loc="left")]
    assert [_letters(ax.get_title(loc="left")) for ax in titled] == [_letters(label) for label in LABELS]
    assert len({round(ax.get_position().x0, 3) for ax in titled}) == 4
    assert len({round(ax.get_position().y0, 3) for ax in titled}) == 3
    assert len({ax.get_ylim() for ax in titled}) == 1
    assert all("mathdefault" not in t.get_text() for ax in fig.axes for t in ax.get_yticklabels())
    shown = made.scored[made.scored["emotion"].isin(LABELS[:7])]
    assert len(plot.dose_response(shown).axes) == 2 * 7, "no empty panel"


def test_vectors_hold_the_labels_and_tell_them_apart(made, tmp_path):
    assert made.vectors.emotions == LABELS == tuple(order(WORDS))
    assert list(dict.fromkeys(made.responses["condition"])) == ["neutral", *WORDS]
    made.vectors.save(tmp_path / "ev.safetensors")
    loaded = emolab.EmotionVectors.load(tmp_path / "ev.safetensors")
    assert loaded.emotions == LABELS and torch.equal(loaded.get("head"), made.vectors.get("head"))
    cosine = similarity.cosine_matrix(made.vectors, layer=1, part="specific")
    assert cosine.loc["Überraschung", "Überraschung"] == pytest.approx(1) and cosine.loc["Überraschung", "joy"] < 0.99


def test_without_templates_the_instruction_names_the_label(made):
    told = emolab.collect_responses(made.model, QUERIES[:1], emotions=["high valence"], max_new_tokens=2)
    assert "Answer with high valence." in told["prompt"].iloc[1]


def test_judge_scores_and_controls_know_the_labels(made):
    scored = made.scored
    assert set(scored["control"]) == {"none", "random", "shuffled"} and set(scored["emotion"]) == set(LABELS)
    probabilities = scored[[f"p_{label}" for label in (*LABELS, "neutral")]]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert set(scored["top"]) <= {*LABELS, "neutral"} and np.isfinite(scored["perplexity_instructed"]).all()
    found = made.judge(["I feel sad.", "It is a house."])
    assert [made.judge.labels[i] for i in found.argmax(1)] == ["low valence", "neutral"]


def test_heads_and_their_effects_name_every_label(made):
    for table in (made.head_maps, made.effects):
        assert set(table["emotion"]) == set(LABELS) and len(table) == 3 * 4 * len(LABELS)
    found = head_vectors.head_summary(made.effects, made.ablation)
    assert set(found["apart"]) == set(LABELS)


def test_tables_give_each_label_its_own_colour(made):
    for html in (FIGURES["text_table"](made), FIGURES["words_table"](made).to_html()):
        shown = {color for color, _ in styles(LABELS).values() if color in html}
        assert len(shown) > 2, "all labels have the colour of the first one"
    assert len(set(styles([f"label {i}" for i in range(60)] + ["joy", "neutral"]).values())) == 62


def test_a_label_is_drawn_as_it_is_written(made):
    x = made.vectors
    odd = emolab.EmotionVectors({"resid": x.get()[:2]}, ("$^$", "50% of $5"), x.resid_norm, x.meta)
    fig = plot.norms(odd)
    fig.canvas.draw()  # as mathematics the first one cannot be parsed
    assert [t.get_text() for t in fig.legends[0].get_texts()][:2] == ["$^$", "50% of $5"]


def test_vectors_that_do_not_know_the_residual_stream_have_norms_but_no_share_of_it(made):
    x = made.vectors
    imported = emolab.EmotionVectors(x.data, x.emotions, torch.zeros(3), x.meta)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="no font among .* has the letters")
        fig = plot.norms(imported)
    assert len(fig.axes) == 1 and fig.emolab_data["relative"].isna().all() and fig.emolab_data["norm"].gt(0).all()


def test_a_labelled_csv_becomes_vectors(made, tmp_path):
    path = tmp_path / "mine.csv"
    rows = [("low arousal", "it was quiet"), ("neutral", "a road"), ("low arousal", "quiet sea"), ("7", "sun !")]
    pd.DataFrame(rows, columns=["label", "text"]).to_csv(path, index=False)
    groups = pd.read_csv(path, dtype=str).groupby("label", sort=False)["text"]
    responses = emolab.responses_from_texts({label: list(texts) for label, texts in groups})
    vectors = emolab.extract_vectors(made.model, responses, sites=("resid",))
    assert vectors.emotions == ("low arousal", "7")
    assert vectors.meta["n_responses"] == {"low arousal": 2, "7": 1, "neutral": 1}


@pytest.mark.slow
def test_umaps_of_any_labels(made):
    table = head_vectors.embed_heads(made.vectors)
    assert set(table["emotion"]) == set(LABELS)
    plot.head_umap(table, head_vectors.head_cosines(made.vectors)).canvas.draw()
    points = projections.embed(made.means, layers=[1])
    scores = projections.embed_scores(made.means, points, n_permutations=4)
    plot.response_map(points, scores).canvas.draw()
