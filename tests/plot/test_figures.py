"""What figures show: the numbers of their tables, one look for one thing, no line where nothing was tested."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from emolab import plot
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS, NEUTRAL, styles
from emolab.comparisons.methods import METHODS
from emolab.plot.comparisons import METHOD_LOOKS
from emolab.plot.marks import pieces
from emolab.plot.panels import provenance
from emolab.plot.style import CONTROLS
from tests.plot import made


def lines_of(ax, **look) -> list:
    """The lines of a panel that have this colour, marker or label."""
    return [x for x in ax.get_lines() if all(getattr(x, f"get_{key}")() == value for key, value in look.items())]


def texts(fig) -> str:
    return " ".join(" ".join(t.get_text().split()) for t in fig.findobj(lambda x: hasattr(x, "get_text")))


def test_norms_carry_the_inputs():
    vectors = made.make_vectors()
    data = plot.norms(vectors).emolab_data
    expected = vectors.get("resid").double().norm(dim=-1).numpy()
    np.testing.assert_allclose(
        data.pivot(index="emotion", columns="layer", values="norm").loc[list(EMOTIONS)], expected
    )
    np.testing.assert_allclose(data[data.emotion == "joy"].relative, expected[3] / np.arange(1.0, 5.0))


def test_cosine_by_layer_pairs_mean_and_null():
    fig = plot.cosine_by_layer(made.make_vectors())
    data = fig.emolab_data
    assert set(data.part) == {"whole", "specific"} and data.pair.nunique() == 11
    ev = made.make_vectors().get("resid")
    expected = torch.cosine_similarity(ev[0], ev[3], dim=-1)
    np.testing.assert_allclose(data[(data.part == "whole") & (data.pair == "anger · joy")].cosine, expected, rtol=1e-5)
    pairs = data[(data.part == "specific") & (data.pair != "mean")].groupby("layer").cosine.mean()
    np.testing.assert_allclose(pairs, data[(data.part == "specific") & (data.pair == "mean")].cosine)
    nulls = [lines_of(ax, label="null: unrelated directions")[0].get_ydata()[0] for ax in fig.axes]
    assert nulls == [0, -0.25]
    assert plot.cosine_by_layer(made.make_vectors(), part="whole").emolab_data.part.unique().tolist() == ["whole"]


def test_cosine_maps_are_scaled_from_the_off_diagonal():
    fig = plot.cosine_map(made.make_vectors(), 2)
    cells = fig.axes[0].collections[0]
    off = fig.emolab_data.query("emotion != other")["cosine"]
    assert cells.get_clim() == (-off.abs().max(), off.abs().max()) and cells.get_cmap().name == "RdBu_r"
    assert cells.get_array().mask.sum() == 5, "the diagonal is 1 by definition"
    assert len(fig.axes[0].texts) == 20 and "null 0.00" in texts(fig)
    assert fig.emolab_data.query("emotion == other").cosine.to_numpy() == pytest.approx(1)
    assert "specific parts" in plot.cosine_map(made.make_vectors().part("specific"), 2).emolab_info["title"]
    assert plot.cosine_map(made.make_vectors(), -1).emolab_data.layer.unique() == [3]
    assert "null -0.25" in texts(plot.cosine_grid(made.make_vectors(), part="specific"))


def test_one_emotion_one_color_one_marker():
    drawn = plot.norms(made.make_vectors()).axes[0].get_lines()
    seen = {line.get_label(): (line.get_color(), line.get_marker()) for line in drawn}
    assert {e: seen[e] for e in EMOTIONS} == styles(EMOTIONS)
    fig = plot.dose_response(made.scored())
    for ax, (color, marker) in zip(fig.axes[:5], styles(EMOTIONS).values(), strict=True):
        assert lines_of(ax, color=color, marker=marker)


@pytest.mark.parametrize("name", ["dose_response", "layer_curve", "claim_monotone"])
def test_a_control_has_one_look_everywhere(name):
    fig = made.FIGURES[name]()
    assert any(lines_of(ax, color=CONTROLS["random"]["color"], marker=".") for ax in fig.axes)
    assert CONTROLS["random"]["label"] in [t.get_text() for t in fig.legends[0].get_texts()]


def test_no_line_crosses_a_dose_that_was_not_tested():
    assert list(pieces([0, 0.5, 1.5, 4], [0, 0.5, 1, 1.5, 2, 4])) == [0, 0, 1, 2]
    assert list(pieces([0, 1, 2, 8], [0, 1, 2, 8])) == [0, 0, 0, 1], "nothing is known between 2 and 8"
    assert list(pieces([3], [1, 2, 3])) == [0] and list(pieces([0, 0.75, 1.25, 1.75], [0, 0.75, 1.25, 1.75])) == [0] * 4
    table = made.dose_summary(("joy",))
    table = table[~((table["control"] == "none") & (table["alpha"] == 0.75))]
    drawn = [list(x.get_xdata()) for x in lines_of(plot.dose_response(table).axes[0], color=styles(["joy"])["joy"][0])]
    assert [0.0] in drawn and [1.25, 1.75] in drawn


def test_dose_response_shows_the_sweep_and_what_it_was_made_with():
    fig = plot.dose_response(made.scored(), best={"joy": 2.0}, measures=["target", "adherence", "perplexity_ratio"])
    curve = fig.emolab_data.query("emotion == 'joy' and control == 'none'").set_index(["measure", "alpha"])["value"]
    assert curve["target"].tolist() == [0, 0.25, 0.5, 1]
    assert curve["adherence"].to_numpy() == pytest.approx([1, 0.7 / 0.8, 0.6 / 0.8, 0.4 / 0.8])
    assert curve["perplexity_ratio"].to_numpy() == pytest.approx([1, 2, 3, 5])
    assert fig.emolab_info["params"]["best"] == {"joy": 2.0} and fig.emolab_info["model"]["name"] == "mini"
    assert fig.emolab_info["n"] == "8 queries" and fig.emolab_info["seed"] == 4
    assert [ax.get_title("left") for ax in fig.axes if lines_of(ax, linestyle=":") and ax.get_title("left")] == ["joy"]
    with pytest.raises(EmolabError, match="no measure 'loudness'"):
        plot.dose_response(made.scored(), measures=["loudness"])


def test_dose_response_says_what_perplexity_is_over():
    table = made.scored(emotions=("joy",))
    rows = {"measures": ["perplexity_ratio"]}
    assert "perplexity over unsteered" in texts(plot.dose_response(table, **rows))
    told = table.assign(condition="joy")
    assert "perplexity over instructed" in texts(plot.dose_response(table, reference=told, **rows))


def test_dose_response_shows_the_instruction_and_where_text_breaks():
    table = made.scored(emotions=("joy",)).assign(adherence_shuffled=0.1, distinct2=0.9)
    told = made.scored(emotions=("joy",), alphas=(4,), controls=("none",), n=4).drop(columns=["control", "alpha"])
    told = told.assign(condition="joy", adherence_shuffled=0.1, distinct2=0.9, perplexity=8.0)
    fig = plot.dose_response(table, reference=told, measures=["target", "perplexity_ratio"])
    assert [len(lines_of(ax, color=CONTROLS["prompt"]["color"])) for ax in fig.axes] == [1, 0], "there it is the unit"
    assert fig.emolab_info["params"]["alpha_star"] == {"joy": 2}, "perplexity 12 there, 8 when instructed"
    assert [p.get_x() for p in fig.axes[0].patches if p.get_hatch() and p.get_width()] == [2]
    assert "text breaks" in texts(fig)


def test_instruction_following_numbers():
    data = plot.instruction_following(made.answers()).emolab_data.set_index(["condition", "judged"])
    assert data.loc[("joy", "joy")].share == 0.75 and data.loc[("joy", NEUTRAL)].share == 0.25
    assert data.loc[(NEUTRAL, NEUTRAL)].share == 1


def test_response_map_says_what_it_is_worth():
    fig = plot.response_map(made.points(), made.map_scores())
    best = made.map_scores().query("method == 'full'")["silhouette"].max()
    assert f"silhouette {best:.2f} in all dimensions" in fig.emolab_info["title"].replace("at most ", "")
    row = fig.emolab_data.query("layer == 0 and method == 'pca'").iloc[0]
    assert f"{row.trustworthiness:.2f}" in fig.axes[0].get_xlabel()
    with pytest.raises(EmolabError, match="scores lack layer 0, pca"):
        plot.response_map(made.points(), made.map_scores().query("method == 'full'"))


def test_curves_carry_their_tables():
    shared = made.FIGURES["shared_energy_curve"]().emolab_data
    assert set(shared["panel"]) == {"resid", "attn"} and len(shared) == 2 * made.N_LAYERS
    fig = made.FIGURES["probe_curve"]()
    assert set(fig.emolab_data["probe"]) == {"centroid", "logistic", "words"} and "p ≤ 0.05" in texts(fig)
    bands = [c for c in fig.axes[0].collections if len(c.get_paths()) and c.get_alpha() == 0.22]
    assert len(bands) == 1, "bands that overlap cannot be told apart"
    with pytest.raises(EmolabError, match="one row per head"):
        plot.shared_energy_curve(made.shared_energy().assign(head=0))


def test_head_map_shows_every_head():
    table = made.effects()
    fig = plot.head_map(table, "share")
    cells = fig.axes[1].collections[0]
    wanted = table[table["emotion"] == "joy"].pivot(index="head", columns="layer", values="share")
    np.testing.assert_allclose(cells.get_array().reshape(wanted.shape), wanted)
    assert cells.get_clim() == (-table["share"].abs().max(), table["share"].abs().max())
    rings = fig.axes[1].collections[1].get_offsets()
    assert len(rings) == (table[table.emotion == "joy"]["q"] < 0.05).sum()
    assert fig.emolab_info["seed"] == 4 and len(fig.emolab_data) == len(table)
    with pytest.raises(EmolabError, match="contribution"):
        plot.head_map(table)


def test_head_forest_shows_the_same_heads_for_all():
    table = made.effects()
    fig = plot.head_forest(table, top=3)
    names = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    largest = table.assign(size=table["effect"].abs()).groupby(["layer", "head"])["size"].max().nlargest(3)
    assert names == [f"L{layer}H{head}" for layer, head in largest.index]
    assert len(fig.emolab_data) == 9 and len({ax.get_xlim() for ax in fig.axes}) == 1
    assert "not tested" not in texts(fig)
    for other in (plot.head_forest(table, top=3, title=""), plot.head_forest(table.set_axis([0] * len(table)), top=3)):
        assert other.emolab_info["title"] == fig.emolab_info["title"], "an index may hold a number twice"
    layer, head = largest.index[0]
    one = (table["layer"] == layer) & (table["head"] == head) & (table["emotion"] == "joy")
    screened = table.assign(effect=table["effect"].mask(one & (table["effect"].abs() < largest.iloc[0])))
    assert screened["effect"].isna().sum() == 1
    assert "no mark: not tested for that emotion" in texts(plot.head_forest(screened, top=3))
    with pytest.raises(EmolabError, match="mixes test"):
        plot.head_forest(pd.concat([table, table.assign(test="patch")]))


def test_ablation_curve():
    fig = plot.ablation_curve(made.ablation())
    np.testing.assert_allclose(lines_of(fig.axes[3], marker="o")[0].get_ydata(), [1, 0.8, 0.6, 0.2])
    assert fig.axes[3].get_title(loc="left") == "mean of all" and len(fig.legends[0].get_texts()) == 3
    assert "Ablating 4 ranked heads leaves 0.20 of the emotion, random heads 0.96" in texts(fig)
    with pytest.raises(EmolabError, match="comes from emolab.ablation_curve"):
        plot.ablation_curve(made.effects())


def test_heads_and_neurons_stand_side_by_side():
    fig = plot.heads_or_neurons(made.ablation(), made.neuron_curve())
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["heads", "neurons"]
    for ax, ks in zip(fig.axes, (["0", "1", "2", "4"], ["0", "10", "20", "40"]), strict=True):
        np.testing.assert_allclose(lines_of(ax, marker="o")[0].get_ydata(), [1, 0.8, 0.6, 0.2])
        assert [t.get_text() for t in ax.get_xticklabels()] == ks
    assert "4 heads 0.20 (random ones 0.96), 40 neurons 0.20 (random ones 0.96)" in texts(fig)
    assert set(fig.emolab_data["emotion"]) == {"all"}
    with pytest.raises(EmolabError, match="neurons are a table of heads"):
        plot.heads_or_neurons(made.ablation(), made.ablation())
    steered = made.neuron_curve()
    steered.attrs["about"] = {**steered.attrs["about"], "params": {"test": "steer"}}
    with pytest.raises(EmolabError, match="neurons by 'steer'; expected one test for both"):
        plot.heads_or_neurons(made.ablation(), steered)


def test_sublayers_show_shares_beside_random_directions():
    fig = plot.sublayers(made.sublayer_table())
    upper, lower = fig.axes[0], fig.axes[2]
    assert [list(x.get_ydata()) for x in lines_of(upper, marker="s") if len(x.get_ydata())] == [[0.2] * 3]
    attention, mlp = (lines_of(lower, marker=m) for m in "os")
    assert [list(x.get_ydata()) for x in attention] == [[0.5] * 3, []]  # filled, hollow
    assert [list(x.get_ydata()) for x in mlp] == [[], [0.0] * 3]
    np.testing.assert_allclose(lines_of(lower, marker="x")[0].get_ydata(), 0.05)
    low, high = fig.emolab_data.query("site == 'attn'")[["lo_share", "hi_share"]].iloc[0]
    assert (low, high) == pytest.approx((0.3, 0.6))  # of effects -1.2 to -0.6 on a way of -2
    assert "All attention layers write 0.10 of the vector, take away 0.50 of the emotion" in texts(fig)


def test_agreement_prints_kappa():
    fig = plot.judge_agreement(made.agreement())
    assert [t.get_text() for t in fig.axes[0].texts] == ["0.91", "0.42", "no kappa"]
    assert fig.emolab_info["n"] == "130 texts"
    pd.testing.assert_frame_equal(fig.emolab_data, made.agreement())
    with pytest.raises(EmolabError, match="comes from calibration.agreement"):
        plot.judge_agreement(made.agreement().iloc[:0])


def test_tradeoff_shows_the_numbers():
    table = made.methods()
    fig = plot.tradeoff(table)
    assert set(fig.emolab_data["measure"]) == {"emotion", "overall", "damage"}
    for ax in fig.axes:
        assert ax.get_xscale() == "log" and ax.get_ylim() == (-0.03, 1.03)
        for method in made.DOSED:
            curve = next(x for x in lines_of(ax, color=METHOD_LOOKS[method][0]) if len(x.get_xdata()) == 3)
            assert list(curve.get_xdata()) == [1.5, 3.0, 6.0]
            np.testing.assert_allclose(curve.get_ydata(), made.OVERALL[method] * 0.9)
        hollow = lines_of(ax, markerfacecolor="white")
        assert len(hollow) == len(made.DOSED) and all(x.get_xdata()[0] == pytest.approx(3.6) for x in hollow)
        assert lines_of(ax, label="unsteered")[0].get_ydata()[0] == 0.02
    part = plot.tradeoff(table[table["method"].isin(["instruction", "lora"])])
    assert [t.get_text() for t in part.legends[0].get_texts()][:2] == ["LoRA", "instruction"]
    with pytest.raises(EmolabError, match="all, joy"):
        plot.tradeoff(table, emotion="awe")


def test_methods_have_colours_and_markers_of_their_own():
    assert set(METHOD_LOOKS) == set(METHODS)
    colours = {colour.lower() for colour, _ in METHOD_LOOKS.values()}
    theirs = {colour.lower() for colour, _ in styles([*EMOTIONS, NEUTRAL]).values()}
    assert len(colours) == len(METHOD_LOOKS) and not theirs & colours
    assert len({shape for _, shape in METHOD_LOOKS.values()}) == len(METHOD_LOOKS)


@pytest.mark.parametrize("name", ["monotone", "preservation", "linear", "additive"])
def test_each_claim_has_its_figure(name):
    claim = made.claim(name)
    draw = getattr(plot, f"claim_{name}")
    fig = draw(claim)
    said = texts(fig)
    assert f"? {claim.verdict.capitalize()}." in said, "the title asks what is tested, and says the verdict"
    assert " ".join(claim.condition.split()) in said and "model mini" in said
    undrawn = ["share", "share_lo", "share_hi"] if name == "additive" else []  # a ratio: no machine repeats its digits
    pd.testing.assert_frame_equal(fig.emolab_data, claim.table.drop(columns=undrawn))
    assert fig.emolab_info["params"]["verdict"] == claim.verdict and fig.emolab_info["n"] == "12 queries"
    for other in {"monotone", "additive"} - {name}:
        with pytest.raises(EmolabError, match=f"shows the claim '{name}', not '{other}'"):
            draw(made.claim(other))
    with pytest.raises(EmolabError, match="not 'DataFrame'"):
        draw(claim.table)


def test_monotone_shows_the_drop_and_linear_its_lines():
    assert (
        lines_of(plot.claim_monotone(made.claim("monotone")).axes[1], label="first significant drop")[0].get_xdata()[0]
        == 4
    )
    claim = made.claim("linear")
    ax = plot.claim_linear(claim).axes[1]
    for reach in ("1", "2", "4"):
        x, y = lines_of(ax, label=f"line within {reach}")[0].get_data()
        fitted = claim.evidence["judge"]["joy"][reach]["slope"][0]
        assert max(abs(x)) == float(reach) and (y[-1] - y[0]) / (x[-1] - x[0]) == pytest.approx(fitted, rel=1e-3)


def test_signature_needs_three_layers():
    with pytest.raises(EmolabError, match="maps are of 2 layers; expected three"):
        plot.signature(
            made.points((0, 1)), made.purity(), made.by_layer(cosine=1).assign(other=0), made.effects().assign(direct=1)
        )


def test_the_footer_says_what_the_table_knows():
    info = {
        "model": {"name": "smollm2"},
        "n": {"joy": 12, "fear": 10},
        "seed": 0,
        "control": "random",
        "interval": "95 %",
    }
    info["params"] = {"site": "attn", "layers": "15,16,17", "part": "specific", "alpha": "2.0", "unit": "breaking"}
    assert provenance(info) == (
        "model smollm2 · attention output · layers 15-17 · specific part · dose 2 · dose: 1 breaks the text · "
        "n = 10 to 12 answers per condition · seed 0 · control: random · 95 %"
    )


class PlotOfUnknown:
    """In place of `plot` in `made`: every figure, of tables in which no value is known."""

    def __getattr__(self, name):
        return lambda *given, **named: getattr(plot, name)(*map(made.unknown, given), **named)


UNMEASURED = "token_trace rank_curve affect_curve cosine_map cosine_grid layer_map reliability_curve response_map"
UNMEASURED += " probe_curve effect_forest layer_curve head_forest signature"
KNOWN = {"instruction_following", "head_umap"}  # their tables are refused without scores, and without places on the map


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(made.FIGURES) - KNOWN))
def test_a_title_tells_no_number_that_nobody_knows(name, monkeypatch):
    monkeypatch.setattr(made, "plot", PlotOfUnknown())
    title = made.FIGURES[name]().emolab_info["title"]
    assert "nan" not in title
    assert (title == "No value was measured.") == (name in UNMEASURED.split())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.norms(made.make_vectors(), site="head"), "heads sum to"),
        (lambda: plot.norms(made.make_vectors(), site="mlp"), "no site 'mlp'"),
        (lambda: plot.cosine_map(made.make_vectors(), 9), "layers 0 to 3"),
        (lambda: plot.cosine_map(made.make_vectors(), 1, part="half"), "part must be"),
        (lambda: plot.dose_response(made.scored().drop(columns="control")), "lacks control"),
        (lambda: plot.dose_response(made.scored(alphas=(1, 2))), "alpha 0"),
        (lambda: plot.dose_response(made.scored().assign(part=["whole", "shared"] * 240)), "mixes part"),
        (lambda: plot.instruction_following(made.answers()[["query_id", "condition"]]), "score"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(EmolabError, match=message):
        call()
