"""Figures of the claims: they show the verdict, its condition, the controls and the numbers they were given."""

from __future__ import annotations

import pandas as pd
import pytest

from emolab import plot
from emolab.base.errors import EmolabError
from emolab.base.labels import color
from emolab.comparisons import claims
from emolab.plot import claims as figures
from tests import claim_tables as made

CONTROLS = ("none", "random", "shuffled")


def both_scales(shape):
    return pd.concat([made.curves(shape, scale=s, controls=CONTROLS, n=12) for s in ("judge", "log-odds")])


@pytest.fixture(scope="module")
def found():
    grid = made.pairs({"whole": lambda a, b: a - a * b, "specific": lambda a, b: a, "random": lambda a, b: 0.0}, n=12)
    return {
        "monotone": claims.monotone(both_scales(lambda a: a if a <= 2 else 0.0)),
        "preservation": claims.preservation(made.drift(lambda a: 0.2 * a, lambda a: 0.02 * a**2, n=12)),
        "linear": claims.linear(both_scales(lambda a: 2.0 * a)),
        "additive": claims.additive(grid),
    }


def texts(fig):
    return " ".join(" ".join(t.get_text().split()) for t in fig.findobj(lambda x: hasattr(x, "get_text")))


def labels(fig):
    return [t.get_text() for t in fig.legends[0].get_texts()]


@pytest.mark.parametrize("name", ["monotone", "preservation", "linear", "additive"])
def test_each_claim_has_its_figure(found, name):
    claim = found[name]
    draw = getattr(figures, f"claim_{name}")
    with plot.theme("print"):
        fig = draw(claim, model="mini", seed=3)
    fig.draw_without_rendering()
    said = texts(fig)
    assert f"? {claim.verdict.capitalize()}." in said, "the title asks what is tested, and says the verdict"
    assert " ".join(claim.condition.split()) in said
    assert "model mini" in said and "n = 12 queries" in said and "seed 3" in said
    undrawn = ["share", "share_lo", "share_hi"] if name == "additive" else []  # a ratio: no machine repeats its digits
    pd.testing.assert_frame_equal(fig.emolab_data, claim.table.drop(columns=undrawn))
    assert fig.emolab_info["params"]["verdict"] == claim.verdict and fig.emolab_info["function"] == f"claim_{name}"
    assert {label for label in labels(fig) if "random" in label}, "no effect without its control"
    for other in {"monotone", "additive"} - {name}:
        with pytest.raises(EmolabError, match=f"shows the claim '{name}', not '{other}'"):
            draw(found[other])
    with pytest.raises(EmolabError, match="not 'DataFrame'"):
        draw(claim.table)


@pytest.mark.parametrize("name", ["monotone", "preservation", "linear", "additive"])
def test_nothing_overlaps(found, name):
    fig = getattr(figures, f"claim_{name}")(found[name])
    fig.draw_without_rendering()
    (told,) = [t for t in fig.texts if t is not fig._suptitle and t is not fig._supxlabel]
    lines = fig._suptitle.get_text().split("\n")
    title, told, legend = (x.get_window_extent() for x in (fig._suptitle, told, fig.legends[0]))
    words = title.height * len([line for line in lines if line]) / len(lines)  # the rest of the title are empty lines
    assert told.y1 <= title.y1 - words and legend.y1 <= told.y0, "title, condition, legend, panels"
    assert all(ax.get_tightbbox().y1 <= legend.y0 + 1 for ax in fig.axes)
    assert told.x0 >= 0 and told.x1 <= fig.bbox.x1


def test_monotone_shows_slope_and_drop(found):
    fig = figures.claim_monotone(found["monotone"])
    assert len(fig.axes) == 4 and [ax.get_title(loc="left") for ax in fig.axes[:2]] == ["fear", "joy"]
    lines = {line.get_label(): line for line in fig.axes[1].lines}
    assert lines["first significant drop"].get_xdata()[0] == 4
    x, y = lines["slope at 0"].get_data()
    slope = found["monotone"].evidence["judge"]["emotions"]["joy"]["slope"][0]
    assert list(x) == [-1, 1] and (y[1] - y[0]) / 2 == pytest.approx(slope)
    assert lines["emotion vector"].get_color() == color("joy")
    assert {"random direction", "shuffled labels"} <= set(lines)


def test_preservation_says_that_kl_is_no_evidence(found):
    fig = figures.claim_preservation(found["preservation"])
    assert "no evidence alone" in texts(fig) and fig.axes[2].get_yscale() == "log"
    assert [t.get_text() for t in fig.axes[3].get_xticklabels()] == ["0.25", "0.5", "1", "2", "4"]
    assert {"emotion vector", "random direction", "shared", "instructed answers"} <= set(labels(fig))


def test_linear_draws_the_lines_it_fitted(found):
    fig = figures.claim_linear(found["linear"])
    lines = {line.get_label(): line for line in fig.axes[1].lines}
    for reach in ("1", "2", "4"):
        x, y = lines[f"line within {reach}"].get_data()
        assert max(abs(x)) == float(reach)
        fitted = found["linear"].evidence["judge"]["joy"][reach]["slope"][0]
        assert (y[-1] - y[0]) / (x[-1] - x[0]) == pytest.approx(fitted, rel=1e-3)


def test_one_scale_and_one_emotion_are_enough():
    alone = claims.monotone(made.curves({"calm": lambda a: a}, n=6))
    assert len(figures.claim_monotone(alone).axes) == 1
