"""figures/README.md says what the manifest holds, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from emolab.plot import save_figure
from emolab.plot.save import check_figures, read_manifest
from tools.gallery import gallery, gallery_problems, write_gallery

FIGURES = Path(__file__).parent.parent / "figures"


@pytest.fixture
def folder(tmp_path):
    """Two notebooks, three figures; written in another order than that of the gallery."""
    for notebook, name in (("01_b.ipynb", "01_b"), ("00_a.ipynb", "00_z"), ("00_a.ipynb", "00_a"), (None, "own")):
        fig = Figure()
        fig.subplots().plot([0, 1])
        data = pd.DataFrame({"x": [0, 1]})
        words = {"caption": f"Caption of {name}: a [b] *c*\nd.", "alt": f"Alt of {name}."}
        save_figure(fig, name, data=data, notebook=notebook, directory=tmp_path, **words)
    return tmp_path


def test_every_figure_stands_under_its_notebook_with_its_words_and_files(folder):
    text = write_gallery(folder).read_text(encoding="utf-8")
    assert re.findall(r"^##+ (.*)$", text, re.M) == [
        "Not drawn by a notebook", "own", "[00 a](../notebooks/00_a.ipynb)", "00_a", "00_z",
        "[01 b](../notebooks/01_b.ipynb)", "01_b",
    ]  # fmt: skip
    assert "![Alt of 00\\_a.](00_a.png)" in text
    assert "Caption of 00\\_a: a \\[b\\] \\*c\\* d." in text, "words are words, on one line"
    links = re.findall(r"\]\(([^)]+)\)", text)
    files = [name for name in links if not name.startswith("../notebooks/")]
    assert all((folder / name).is_file() for name in files)
    assert {f for e in read_manifest(folder).values() for f in e["files"].values()} <= set(files)


def test_it_is_fresh_until_the_manifest_changes(folder):
    assert gallery_problems(folder) == ["README.md is missing; run make figures"]
    first = write_gallery(folder).read_bytes()
    assert gallery_problems(folder) == [] == check_figures(folder)
    assert write_gallery(folder).read_bytes() == first
    manifest = read_manifest(folder)
    manifest["00_a"]["alt"] = "Another alt."
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert gallery_problems(folder) == ["README.md is stale; run make figures"]


def test_order_in_the_manifest_does_not_matter(folder):
    manifest = read_manifest(folder)
    assert gallery(manifest) == gallery(dict(reversed(manifest.items())))


@pytest.mark.skipif(not (FIGURES / "manifest.json").exists(), reason="no figures in this copy of the repository")
def test_the_committed_gallery_is_fresh_and_its_links_lead_somewhere():
    assert gallery_problems(FIGURES) == []
    for target in re.findall(r"\]\(([^)]+)\)", (FIGURES / "README.md").read_text(encoding="utf-8")):
        assert (FIGURES / target).exists(), target
