"""What save_figure writes, and what a folder of figures says of itself."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from emolab import EmolabError, plot
from emolab.base.tables import noted
from emolab.plot.save import figures_directory
from tests.plot import made


@pytest.fixture
def save(tmp_path):
    def call(fig, name="norms", **changes):
        said = {"caption": "Vectors grow with depth.", "alt": "Five rising lines.", "directory": tmp_path}
        return plot.save_figure(fig, name, **(said | changes))

    return call


def norms():
    return plot.norms(made.make_vectors())


def test_save_writes_files_that_match_the_manifest(save, tmp_path):
    fig = norms()
    fig.emolab_info["params"]["k"] = np.int64(2)
    image = save(fig, notebook="01.ipynb")
    assert image.alt == "Five rising lines." and image.data.startswith(b"\x89PNG")
    entry = json.loads((tmp_path / "manifest.json").read_text())["norms"]
    csv = (tmp_path / entry["files"]["csv"]).read_bytes()
    assert entry["csv_sha256"] == hashlib.sha256(csv).hexdigest() and set(entry["files"]) == {
        "svg",
        "pdf",
        "png",
        "csv",
    }
    origin = "model mini · residual stream · n = 12 answers per condition · seed 3"
    assert entry["caption"] == f"Vectors grow with depth. ({origin})"
    assert entry["model"] == {"name": "mini", "revision": None, "fingerprint": "abc"}
    assert (entry["function"], entry["notebook"]) == ("norms", "01.ipynb")
    assert entry["params"] == {"site": "resid", "k": 2}
    assert set(entry["versions"]) == {"emolab", "matplotlib", "torch", "transformer-lens"}
    assert "+" not in entry["versions"]["torch"]
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "data/norms.csv"), fig.emolab_data, rtol=1e-6, check_dtype=False
    )
    svg = (tmp_path / "norms.svg").read_text()
    assert "<title>norms</title>\n <desc>Five rising lines.</desc>" in svg and "<text" in svg
    assert (tmp_path / "norms.pdf").read_bytes().startswith(b"%PDF")
    assert plot.check_figures(tmp_path) == []


def test_same_input_same_bytes(save, tmp_path):
    def everything():
        save(plot.dose_response(made.scored(emotions=("joy", "fear"))), "dose")
        save(plot.cosine_map(made.make_vectors(), 1), "cosine")
        return {p.name: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    first, second = everything(), everything()
    assert first == second and len(first) == 9
    for name in ("dose.svg", "dose.pdf"):
        assert not re.search(rb"20\d\d-?\d\d-?\d\d", first[name])


def test_manifest_is_sorted_and_keeps_other_figures(save, tmp_path):
    for name in ("zebra", "apple", "zebra"):
        save(norms(), name)
    assert list(json.loads((tmp_path / "manifest.json").read_text())) == ["apple", "zebra"]
    (tmp_path / "data/apple.csv").write_text("x\n1\n")
    (tmp_path / "zebra.svg").unlink()
    (tmp_path / "stray.png").touch()
    found = " / ".join(plot.check_figures(tmp_path))
    for fault in ("apple: data/apple.csv is not", "zebra.svg is missing", "stray.png is not in"):
        assert fault in found


def test_a_figure_of_ours_knows_its_caption(tmp_path):
    plot.save_figure(norms(), "norms", directory=tmp_path)
    entry = json.loads((tmp_path / "manifest.json").read_text())["norms"]
    assert entry["alt"].startswith("Vectors are longest against the residual stream at layer")
    assert entry["caption"].startswith(entry["alt"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"caption": " "}, "no caption"), ({"alt": ""}, "no alt"), ({"name": "../x"}, "figure name")],
)
def test_save_refuses(save, tmp_path, changes, message):
    with pytest.raises(EmolabError, match=message):
        save(norms(), **changes)
    assert not list(tmp_path.iterdir())


def test_save_takes_a_users_own_figure_with_its_data(save, tmp_path):
    fig = mpl.figure.Figure()
    fig.subplots().plot([1, 2])
    with pytest.raises(EmolabError, match="pass data="):
        save(fig)
    with pytest.raises(EmolabError, match="no caption"):
        save(fig, data=pd.DataFrame({"y": [1, 2]}), caption=None)
    save(fig, data=noted(pd.DataFrame({"y": [1, 2]}), {"model": "mine"}, n="2 texts", seed=0))
    entry = json.loads((tmp_path / "manifest.json").read_text())["norms"]
    assert entry["model"]["name"] == "mine" and entry["caption"].endswith("(model mine · n = 2 texts · seed 0)")


def test_where_figures_go(tmp_path, monkeypatch):
    monkeypatch.delenv("EMOLAB_FIGURES", raising=False)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert figures_directory() == tmp_path / "figures"
    monkeypatch.chdir(tmp_path / "notebooks")
    assert figures_directory() == tmp_path / "figures"
    monkeypatch.setenv("EMOLAB_FIGURES", "/elsewhere")
    assert figures_directory() == Path("/elsewhere") and figures_directory("here") == Path("here")


def test_committed_figures_match_their_manifest():
    assert plot.check_figures(Path(__file__).parents[2] / "figures") == []
