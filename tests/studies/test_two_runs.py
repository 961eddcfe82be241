"""Two runs side by side, in Python and on the command line: files, sentences, and what a run must hold."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import emolab
from emolab import ResponseMeans, geometry
from emolab.base.errors import EmolabError
from emolab.plot import save
from emolab.studies import compare_runs
from emolab.studies.cli import main
from tests import oracle, tiny

EMOTIONS = ("anger", "fear", "joy")


def scored(emotions, share: float, site="attn") -> pd.DataFrame:
    """What `sweep` and `score` would give: at dose 1 a share of 8 questions is read as the target."""
    rows = []
    for emotion in emotions:
        for control, alpha in (("none", 0.0), ("none", 1.0), ("random", 1.0)):
            for q in range(8):
                top = emotion if control == "none" and alpha and q < 8 * share else "neutral"
                p = {f"p_{label}": 0.9 if label == top else 0.02 for label in (*emotions, "neutral")}
                row = {"query_id": f"r{q}", "query": f"what of {q} ?", "situation": "", "emotion": emotion}
                setting = {"site": site, "layers": "0,1,2", "part": "whole", "op": "add", "unit": "breaking"}
                rows.append({**row, "alpha": alpha, **setting, "control": control, "top": top, **p})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two tiny models of other seeds, and one of other depth that knows another emotion."""
    root = tmp_path_factory.mktemp("runs")
    asked = list(oracle.queries(6, 0)["query"])
    for number, (name, config) in enumerate(
        {"one": tiny.llama_config(), "two": tiny.llama_config(), "flat": tiny.gpt2_config()}.items()
    ):
        model = emolab.load_model((tiny.build(config, seed=number), tiny.tokenizer()))
        emotions = ("disgust", *EMOTIONS) if name == "flat" else EMOTIONS
        responses = oracle.responses(model, asked, emotions, seed=number)
        emolab.extract_vectors(model, responses, sites=("resid",), out=root / name)
        responses.to_parquet(root / name / "responses.parquet")
        site = "resid" if name == "two" else "attn"
        scored(emotions, share=0.5 + 0.5 * (name == "two"), site=site).to_parquet(root / name / "scores.parquet")
    shutil.copytree(root / "one", root / "copy")
    return root


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr(save, "_render", oracle.drawn_once)


def test_a_run_and_its_copy_are_the_same(runs):
    found = compare_runs(runs / "one", runs / "copy")
    means = found.maps[found.maps["layer"].isna()].set_index("measure")
    np.testing.assert_allclose(means["value"], 1, atol=1e-9)
    np.testing.assert_array_equal(means["halves"], means["ceiling"])
    assert list(means.index) == ["rsa", "cka", "cosine"] and found.left_out == ()
    difference = found.doses[found.doses["model"] == "copy - one"]
    assert len(difference) and (difference[["value", "lo", "hi"]] == 0).all(axis=None)
    assert "cosine of the vectors 1.00" in str(found)
    assert "difference +0.00 [+0.00, +0.00]: no difference was found." in str(found)
    assert "For single emotions at dose 1 no difference was found. For single emotions unsteered no" in str(found)


def test_two_models_are_compared_and_files_written(runs, tmp_path):
    found = compare_runs(runs / "one", runs / "two", out=tmp_path / "both")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "both/maps.parquet"), found.maps, check_dtype=False)
    assert len(pd.read_parquet(tmp_path / "both/doses.parquet")) == len(found.doses)
    assert (tmp_path / "both/figures/two_models.png").exists()
    assert list(dict.fromkeys(found.doses["model"])) == ["one", "two", "two - one"], "both are called alike: folders"
    assert "brings 0.50 [" in str(found) and "] of the texts of one and 1.00 [" in str(found)
    assert "difference +0.50 [+0." in str(found) and "Of single emotions at dose 1 anger +0.50" in str(found)
    assert found.left_out == (
        "Each was steered in its own setting: one at site attn, layers 0-2, whole vectors; two at site resid, layers "
        "0-2, whole vectors.",
    )


def test_numbers_are_those_of_the_textbook(runs):
    """Of two tiny random models, layer by layer, by scipy and by hand."""
    one, two = (emolab.EmotionVectors.load(runs / name / "vectors.safetensors") for name in ("one", "two"))
    maps = compare_runs(runs / "one", runs / "two").maps.dropna(subset=["layer"]).set_index(["measure", "layer"])
    for layer in range(3):
        matrices = [geometry.cosine_matrix(v, layer=layer, part="specific").to_numpy() for v in (one, two)]
        pairs = [m[np.triu_indices(3, 1)].round(12) for m in matrices]
        assert maps["value"]["rsa", layer] == pytest.approx(spearmanr(*pairs).statistic)
        agreed = geometry.vector_agreement(one, two, part="specific").query("layer == @layer")["cosine"].mean()
        assert maps["value"]["cosine", layer] == pytest.approx(agreed)
        values = [
            ResponseMeans.load(runs / name / "response_means.safetensors").within_queries()
            for name in "one two".split()
        ]
        beside = replace(values[0], means={"resid": np.stack([v.means["resid"][:, layer] for v in values], 1)})
        assert maps["value"]["cka", layer] == pytest.approx(geometry.cka(beside).loc[0, 1], abs=1e-4)


def test_what_one_of_them_lacks_is_named(runs):
    found = compare_runs(runs / "one", runs / "flat")
    assert found.left_out[0].endswith("has disgust; left out.") and set(found.doses["emotion"]) == {*EMOTIONS, "all"}
    assert found.left_out[1] == "The cosine was left out: the models have 3 layers of 32 and 2 layers of 32 dimensions."
    assert set(found.maps["measure"]) == {"rsa", "cka"}


def told(capsys, *arguments) -> str:
    """The one line that a failing command writes."""
    capsys.readouterr()
    assert main(["study", "--compare", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_command(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "--compare", str(runs / "one"), str(runs / "two")]) == 0
    sentences, path = capsys.readouterr().out.splitlines()
    assert sentences == str(compare_runs(runs / "one", runs / "two"))
    assert path == "runs/compared/figures/two_models.png" and (tmp_path / path).exists()
    assert main(["study", "--compare", str(runs / "one"), str(runs / "two"), "--out", str(tmp_path / "x")]) == 0
    assert (tmp_path / "x/figures/two_models.png").exists()


def test_a_run_without_what_is_needed_is_told_in_one_line(runs, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    assert "given twice; expected the folders of two runs" in told(capsys, runs / "one", runs / "one", *out)
    assert "vectors.safetensors" in told(capsys, runs / "one", tmp_path / "nothing", *out)
    bare = shutil.copytree(runs / "two", tmp_path / "bare")
    (bare / "scores.parquet").unlink()
    assert "bare/scores.parquet is missing or damaged; run `emolab study" in told(capsys, runs / "one", bare, *out)
    scored(("calm", "hope"), 1).to_parquet(bare / "scores.parquet")
    assert "no emotion in common: anger, fear, joy with calm, hope" in told(capsys, runs / "one", bare, *out)
    scored(EMOTIONS, 1).assign(unit="vector").to_parquet(bare / "scores.parquet")
    assert "doses of bare are in the unit 'vector'" in told(capsys, runs / "one", bare, *out)
    scored(EMOTIONS, 1).to_parquet(bare / "scores.parquet")
    others = pd.read_parquet(bare / "responses.parquet").assign(query="how was the road ?")
    others.to_parquet(bare / "responses.parquet")
    with pytest.raises(EmolabError, match="query 'u-0000' is another question in one than in bare"):
        compare_runs(runs / "one", bare)
