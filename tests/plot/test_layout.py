"""Every figure in one column, over a page and on a slide: words are legible, whole, and apart."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import pytest

from emolab import plot
from emolab.base.errors import EmolabError
from emolab.plot import panels
from tests.plot.layout import faults, words_of
from tests.plot.made import FIGURES, dose_summary, effects, make_vectors, numbers

TABLES = {"attention_html", "text_table", "words_table", "check_figures", "save_figure", "theme"}


def test_every_figure_function_is_looked_at():
    assert set(FIGURES) == set(plot.__all__) - TABLES


@pytest.mark.parametrize("width", [3.3, 7.0])
@pytest.mark.parametrize("name", FIGURES)
def test_words_are_legible_whole_and_apart(name, width):
    with plot.theme("paper", width=width):
        fig = FIGURES[name]()
    assert faults(fig) == []
    assert fig.get_figwidth() <= width + 1e-9 and fig.emolab_info["function"] == name
    assert len(fig.emolab_data) and fig.emolab_info["title"]
    footer = next(t.get_text() for t in words_of(fig) if t.get_gid() == "footer")
    assert "mini" in footer or name == "instruction_following", "its table was made by hand"


def test_a_footer_can_be_left_out_and_panels_lettered():
    with plot.theme("paper", footer=False, panel_letters=True):
        fig = FIGURES["dose_response"]()
    assert not [t for t in words_of(fig) if t.get_gid() == "footer"] and faults(fig) == []
    assert [ax.get_title("left") for ax in fig.axes[:2]] == ["a anger", "b disgust"]


@pytest.mark.slow
def test_many_labels_and_long_ones():
    labels = ["high valence", "low arousal", "Überraschung", "joy", "0.5 anger + 0.5 joy", *"abcdefg"]
    for width in (3.3, 13.0):
        with plot.theme("slides" if width > 7 else "paper", width=width):
            assert faults(plot.dose_response(dose_summary(labels))) == []
            assert faults(plot.head_forest(effects(28, 24, labels))) == []


@pytest.mark.parametrize("width", [3.3, 7.0])
def test_choices_by_number(width):
    with plot.theme("paper", width=width):
        fig = plot.choice_curve(numbers())
    assert faults(fig) == [] and [ax.get_title("left") for ax in fig.axes] == ["missing-dog", "page"]


def test_theme_sizes_and_leaves_no_trace():
    before = dict(mpl.rcParams)
    with plot.theme("paper", width=3.3):
        small = plot.norms(make_vectors())
        with plot.theme("slides"):
            large = plot.norms(make_vectors())
    usual = plot.norms(make_vectors())
    assert small.get_figwidth() < usual.get_figwidth() < large.get_figwidth()
    assert small.axes[0].yaxis.label.get_size() == 7 and large.axes[0].yaxis.label.get_size() == 13
    assert dict(mpl.rcParams) == before
    with pytest.raises(EmolabError, match="notebook, paper, slides"):
        plot.theme("poster").__enter__()


def test_fonts_of_the_user_serve_scripts_that_ours_lacks():
    with mpl.rc_context({"font.family": ["My Sans"]}), plot.theme():
        assert mpl.rcParams["font.family"] == ["DejaVu Sans", "My Sans"]


def test_a_script_without_a_font_is_told_once_and_drawn_with_a_font_of_the_user(monkeypatch, tmp_path):
    """The letter is one that STIX, which matplotlib brings, has and DejaVu has not."""
    monkeypatch.setattr(panels, "_TOLD", set())
    label, vectors = "\N{LATIN SMALL LETTER D WITH PALATAL HOOK}", make_vectors()
    vectors = replace(vectors, emotions=(f"{label} 1", f"{label} 2", *vectors.emotions[2:]))
    pattern = rf"no font among DejaVu Sans has the letters of '{label} 1', which become boxes: install .*font.family"
    with pytest.warns(UserWarning, match=pattern) as told:
        fig = plot.norms(vectors)
    assert len(told) == 1 and told[0].filename == __file__
    plot.save_figure(fig, "norms", directory=tmp_path)  # errors were warnings here
    plot.norms(vectors)
    assert f">{label} 1</text>" in (tmp_path / "norms.svg").read_text(encoding="utf-8"), "a viewer may have a font"
    for own in ({"font.family": ["STIXGeneral"]}, {"font.sans-serif": ["STIXGeneral"]}):
        with mpl.rc_context(own):
            monkeypatch.setattr(panels, "_TOLD", set())
            assert plot.norms(vectors)._repr_png_().startswith(b"\x89PNG")
