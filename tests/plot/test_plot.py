"""Figures: the numbers they carry, their looks, and what save_figure writes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

from emolab import EmolabError, EmotionVectors, plot
from emolab.base.labels import EMOTIONS, NEUTRAL, color, marker

LABELS = [*EMOTIONS, NEUTRAL]
META = {"model": "mini", "revision": None, "fingerprint": "abc", "n_responses": dict.fromkeys(LABELS, 12), "seed": 3}


def make_vectors() -> EmotionVectors:
    """5 emotions, 4 layers, 16 dimensions, all sharing a part."""
    g = torch.Generator().manual_seed(0)
    ev = torch.randn(5, 4, 16, generator=g) + 2 * torch.randn(1, 4, 16, generator=g)
    return EmotionVectors({"resid": ev}, EMOTIONS, torch.arange(1.0, 5.0), META)


def make_table(alphas=(0, 1, 2, 4), controls=("none", "random", "shuffled"), emotions=EMOTIONS, n=8) -> pd.DataFrame:
    """Scores in which the share of hits with the vector's own direction is alpha/4, and 0 with a control."""
    rows = []
    for emotion in emotions:
        for control in controls:
            for alpha in alphas:
                for q in range(n):
                    hit = control == "none" and q < n * alpha / 4
                    top = emotion if hit else NEUTRAL
                    p = {f"p_{label}": 0.9 if label == top else 0.02 for label in LABELS}
                    score = {"adherence": 0.8 - 0.1 * alpha, "perplexity": 4.0 * (1 + alpha)}
                    rows.append(
                        {"query_id": f"q{q}", "emotion": emotion, "alpha": alpha, "control": control, **score, **p}
                    )
    return pd.DataFrame(rows)


def make_answers() -> pd.DataFrame:
    rows = [(f"q{q}", c, c if q else NEUTRAL) for c in LABELS for q in range(4)]
    p = [{f"p_{label}": float(label == top) for label in LABELS} for _, _, top in rows]
    return pd.DataFrame(rows, columns=["query_id", "condition", "top"]).drop(columns="top").join(pd.DataFrame(p))


def test_norms_carry_the_inputs():
    vectors = make_vectors()
    data = plot.norms(vectors).emolab_data
    expected = vectors.get("resid").double().norm(dim=-1).numpy()
    np.testing.assert_allclose(
        data.pivot(index="emotion", columns="layer", values="norm").loc[list(EMOTIONS)], expected
    )
    joy = data[data.emotion == "joy"]
    np.testing.assert_allclose(joy.relative, expected[3] / np.arange(1.0, 5.0))


def test_cosine_by_layer_pairs_and_mean():
    fig = plot.cosine_by_layer(make_vectors())
    data = fig.emolab_data
    assert set(data.part) == {"whole", "specific"} and data.pair.nunique() == 11
    ev = make_vectors().get("resid")
    expected = torch.cosine_similarity(ev[0], ev[3], dim=-1)
    got = data[(data.part == "whole") & (data.pair == "anger · joy")].cosine
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    pairs = data[(data.part == "specific") & (data.pair != "mean")].groupby("layer").cosine.mean()
    np.testing.assert_allclose(pairs, data[(data.part == "specific") & (data.pair == "mean")].cosine)
    assert all(ax.get_ylim() == (-1.03, 1.03) for ax in fig.axes)
    assert plot.cosine_by_layer(make_vectors(), part="whole").emolab_data.part.unique().tolist() == ["whole"]


def test_cosine_map_has_fixed_limits_and_prints_values():
    fig = plot.cosine_map(make_vectors(), 2)
    image = fig.axes[0].images[0]
    assert image.get_clim() == (-1, 1) and image.get_cmap().name == "RdBu_r"
    assert len(fig.axes[0].texts) == 25
    assert fig.emolab_data.query("emotion == other").cosine.to_numpy() == pytest.approx(1)
    assert "specific part" in plot.cosine_map(make_vectors().part("specific"), 2).axes[0].get_title()
    assert plot.cosine_map(make_vectors(), -1).emolab_data.layer.unique() == [3]


def test_one_emotion_one_color_one_marker():
    norms = plot.norms(make_vectors()).axes[0].get_lines()
    seen = {line.get_label(): (line.get_color(), line.get_marker()) for line in norms}
    assert {e: seen[e] for e in EMOTIONS} == {e: (color(e), marker(e)) for e in EMOTIONS}
    fig = plot.dose_response(make_table())
    for ax, emotion in zip(fig.axes[:5], EMOTIONS, strict=True):
        line = next(line for line in ax.get_lines() if line.get_label() == "emotion vector")
        assert (line.get_color(), line.get_marker()) == (color(emotion), marker(emotion))


def test_dose_response_numbers():
    data = plot.dose_response(make_table(), best=dict.fromkeys(EMOTIONS, 2)).emolab_data
    ev = data[(data.emotion == "joy") & (data.control == "none")].set_index(["measure", "alpha"])
    assert ev.loc["target"].value.tolist() == [0, 0.25, 0.5, 1]
    assert ev.loc["adherence"].value.to_numpy() == pytest.approx([1, 0.7 / 0.8, 0.6 / 0.8, 0.4 / 0.8])
    assert ev.loc["perplexity_ratio"].value.to_numpy() == pytest.approx([1, 2, 3, 5])
    half = ev.loc[("target", 2)]
    assert 0 <= half.lo < half.value < half.hi <= 1
    assert data[(data.measure == "target") & (data.control == "random")].value.eq(0).all()


def test_dose_response_perplexity_over_instructed_answers():
    table = make_table(emotions=("joy",))
    data = plot.dose_response(table, reference={"joy": 8.0}).emolab_data
    own = data[(data.measure == "perplexity_ratio") & (data.control == "none")]
    assert own.value.to_numpy() == pytest.approx([0.5, 1, 1.5, 2.5])
    prompt = make_table(alphas=(0,), controls=("prompt",), emotions=("joy",)).assign(perplexity=2.0)
    fig = plot.dose_response(pd.concat([table, prompt]))
    data = fig.emolab_data
    own = data[(data.measure == "perplexity_ratio") & (data.control == "none")]
    assert own.value.to_numpy() == pytest.approx([2, 4, 6, 10])
    assert any("instructed" in ax.get_ylabel() for ax in fig.axes)


def test_dose_response_shows_the_level_of_the_instruction_and_where_fluency_collapses():
    table = make_table(emotions=("joy",)).assign(adherence_shuffled=0.1, distinct2=0.9)
    told = make_table(emotions=("joy",), alphas=(4,), controls=("none",), n=4).drop(columns=["control", "alpha"])
    told = told.assign(condition="joy", adherence_shuffled=0.1, distinct2=0.9, perplexity=8.0)
    fig = plot.dose_response(table, reference=told)
    assert len(fig.axes) == 4 and [ax.get_ylim() for ax in fig.axes[::3]] == [(-0.03, 1.03)] * 2
    level = fig.emolab_data.query("control == 'prompt'").set_index("measure")["value"]
    assert level["target"] == 1 and level["adherence"] == pytest.approx(0.4 / 0.8)
    lines = [[x for x in ax.get_lines() if x.get_label() == "instructed, not steered"] for ax in fig.axes]
    assert [len(found) for found in lines] == [1, 1, 0, 1]  # of perplexity it is the unit
    assert lines[1][0].get_ydata()[0] == pytest.approx(0.5)
    assert fig.emolab_info["params"]["alpha_star"] == {"joy": 2}  # perplexity 12 there, 8 when instructed
    shaded = [p for p in fig.axes[0].patches if "collapsed" in p.get_label()]
    assert len(shaded) == 1 and shaded[0].get_x() == 2


def test_dose_response_marks_the_frozen_dose_and_needs_no_fluency():
    table = make_table().drop(columns=["adherence", "perplexity"])
    fig = plot.dose_response(table, best={"joy": 2.0})
    marked = [
        ax.get_title("left")
        for ax in fig.axes
        if any(line.get_label() == "frozen dose" and line.get_xdata()[0] == 2 for line in ax.get_lines())
    ]
    assert len(fig.axes) == 5 and marked == ["joy"]


def test_instruction_following_numbers():
    fig = plot.instruction_following(make_answers(), model="mini", seed=1)
    data = fig.emolab_data.set_index(["condition", "judged"])
    assert data.loc[("joy", "joy")].share == 0.75 and data.loc[("joy", NEUTRAL)].share == 0.25
    assert data.loc[(NEUTRAL, NEUTRAL)].share == 1
    assert "model mini · n = 4 queries · seed 1" in fig.get_supxlabel()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.norms(make_vectors(), site="head"), "heads sum to"),
        (lambda: plot.norms(make_vectors(), site="mlp"), "no site 'mlp'"),
        (lambda: plot.cosine_map(make_vectors(), 9), "layers 0 to 3"),
        (lambda: plot.cosine_map(make_vectors(), 1, part="half"), "part must be"),
        (lambda: plot.dose_response(make_table().drop(columns="control")), "lacks control"),
        (lambda: plot.dose_response(make_table(alphas=(1, 2))), "alpha 0"),
        (lambda: plot.dose_response(make_table().assign(part=["whole", "shared"] * 240)), "mixes part"),
        (lambda: plot.dose_response(make_table(), reference={"joy": 2.0}), "no perplexity for anger"),
        (lambda: plot.instruction_following(make_answers()[["query_id", "condition"]]), "score"),
        (lambda: plot.theme("poster").__enter__(), "notebook, print, slides"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(EmolabError, match=message):
        call()


def test_tables_of_texts_show_doses_as_numbers_and_words_as_words():
    table = make_table(alphas=(0.0, 0.5), emotions=("joy",), n=1).assign(text="<b>loud</b>", query="<i>why?</i>")
    html = plot.text_table(table).to_html()
    assert re.findall(r"col_heading[^>]*>([^<]*)<", html) == ["0", "0.5"]
    assert "&lt;b&gt;loud" in html and "<i>" not in plot.text_table(table, columns="query").to_html()


def test_theme_sizes_and_leaves_no_trace():
    before = dict(mpl.rcParams)
    with plot.theme("print"):
        small = plot.norms(make_vectors())
        with plot.theme("slides"):
            large = plot.norms(make_vectors())
    usual = plot.norms(make_vectors())
    assert small.get_figwidth() < usual.get_figwidth() < large.get_figwidth()
    assert small.axes[0].xaxis.label.get_size() == 8
    assert dict(mpl.rcParams) == before


@pytest.fixture
def save(tmp_path):
    def call(fig, name="norms", **changes):
        said = {"caption": "Vectors grow with depth.", "alt": "Five rising lines.", "directory": tmp_path}
        return plot.save_figure(fig, name, **(said | changes))

    return call


def test_save_writes_files_that_match_the_manifest(save, tmp_path):
    fig = plot.norms(make_vectors())
    image = save(fig, notebook="01.ipynb", params={"k": np.int64(2)})
    assert image.alt == "Five rising lines." and image.data.startswith(b"\x89PNG")
    entry = json.loads((tmp_path / "manifest.json").read_text())["norms"]
    csv = (tmp_path / entry["files"]["csv"]).read_bytes()
    assert entry["csv_sha256"] == hashlib.sha256(csv).hexdigest()
    assert entry["caption"] == "Vectors grow with depth. (model mini · n = 12 answers per condition · seed 3)"
    assert entry["model"] == {"name": "mini", "revision": None, "fingerprint": "abc"}
    assert (entry["function"], entry["notebook"], entry["params"]) == ("norms", "01.ipynb", {"k": 2})
    assert set(entry["versions"]) == {"emolab", "matplotlib", "torch", "transformer-lens"}
    assert "+" not in entry["versions"]["torch"]
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "data/norms.csv"), fig.emolab_data, rtol=1e-6, check_dtype=False
    )
    svg = (tmp_path / "norms.svg").read_text()
    assert "<title>norms</title>\n <desc>Five rising lines.</desc>" in svg and "<text" in svg
    assert plot.check_figures(tmp_path) == []


def test_same_input_same_bytes(save, tmp_path):
    def everything():
        save(plot.dose_response(make_table(emotions=("joy", "fear"))), "dose")
        save(plot.cosine_by_layer(make_vectors()), "cosine")
        return {p.name: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    first, second = everything(), everything()
    assert first == second and len(first) == 7
    assert not re.search(r"20\d\d-\d\d-\d\d", first["dose.svg"].decode())


def test_manifest_is_sorted_and_keeps_other_figures(save, tmp_path):
    for name in ("zebra", "apple", "zebra"):
        save(plot.norms(make_vectors()), name)
    assert list(json.loads((tmp_path / "manifest.json").read_text())) == ["apple", "zebra"]
    (tmp_path / "data/apple.csv").write_text("x\n1\n")
    (tmp_path / "zebra.svg").unlink()
    (tmp_path / "stray.png").touch()
    found = " / ".join(plot.check_figures(tmp_path))
    assert (
        "apple: data/apple.csv is not" in found and "zebra.svg is missing" in found and "stray.png is not in" in found
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"caption": " "}, "no caption"), ({"alt": ""}, "no alt"), ({"name": "../x"}, "figure name")],
)
def test_save_refuses(save, tmp_path, changes, message):
    with pytest.raises(EmolabError, match=message):
        save(plot.norms(make_vectors()), **changes)
    assert not list(tmp_path.iterdir())


def test_save_takes_a_users_own_figure_with_its_data(save, tmp_path):
    fig = mpl.figure.Figure()
    fig.subplots().plot([1, 2])
    with pytest.raises(EmolabError, match="pass data="):
        save(fig)
    save(fig, data=pd.DataFrame({"y": [1, 2]}), model="mine", n=2, seed=0)
    assert json.loads((tmp_path / "manifest.json").read_text())["norms"]["model"]["name"] == "mine"


def test_where_figures_go(tmp_path, monkeypatch):
    from emolab.plot.save import figures_directory

    monkeypatch.delenv("EMOLAB_FIGURES", raising=False)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert figures_directory() == tmp_path / "figures"
    monkeypatch.chdir(tmp_path / "notebooks")
    assert figures_directory() == tmp_path / "figures"
    monkeypatch.setenv("EMOLAB_FIGURES", "/elsewhere")
    assert figures_directory() == Path("/elsewhere") and figures_directory("here") == Path("here")


def test_committed_figures_match_their_manifest():
    folder = Path(__file__).parents[2] / "figures"
    assert plot.check_figures(folder) == []
