"""Shifts along axes by hand, the circle, and stories that do not name what they are full of."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import emolab
from emolab import experiments
from emolab.base.errors import EmolabError
from emolab.base.tables import about
from emolab.experiments import stories
from emolab.judges.words import named
from tests import tiny


def test_shifts_are_differences_to_unsteered_answers_to_the_same_query():
    rows = [
        (q, axis, control, alpha, value)
        for q, base in (("a", 5.0), ("b", 3.0))
        for axis, control, alpha, value in (
            ("valence", "none", 0.0, base),
            ("valence", "none", -1.0, base - 2),
            ("valence", "none", 1.0, base + 1),
            ("valence", "random", 1.0, base),
        )
    ]
    table = pd.DataFrame(rows, columns=["query_id", "emotion", "control", "alpha", "valence"])
    table.attrs["emolab"] = {"model": "tiny", "seed": 3}
    shifts = experiments.affect_shifts(table, measures=("valence",))
    assert about(shifts)["model"]["name"] == "tiny" and about(shifts)["seed"] == 3
    found = shifts.set_index(["control", "alpha"])
    assert found["shift"].to_dict() == {("none", -1.0): -2.0, ("none", 1.0): 1.0, ("random", 1.0): 0.0}
    assert (found["unsteered"] == 4).all() and found.loc[("none", 1.0), "value"] == 5 and (found["n"] == 2).all()
    with pytest.raises(EmolabError, match="arousal"):
        experiments.affect_shifts(table, measures=("arousal",))


def test_the_circle_is_of_equal_radius_and_steers(tiny_llama):
    directions = experiments.circle(8)
    assert directions[:3] == [{"valence": 1.0}, {"valence": 0.7071, "arousal": 0.7071}, {"arousal": 1.0}]
    for direction in directions:
        assert np.hypot(*[direction.get(axis, 0.0) for axis in ("valence", "arousal")]) == pytest.approx(1, abs=1e-4)
    axes = tiny.random_vectors(tiny_llama, emotions=("valence", "arousal"))
    assert [steering.doses for steering in emolab.at(axes, emotions=directions)] == directions


def test_stories_do_not_name_their_feeling(smollm2, tmp_path):
    options = {"prompt": "Say the word {label} about the {topic}.", "max_new_tokens": 8}
    plain = emolab.generate(smollm2, "Say the word joy about the garden.", max_new_tokens=8)
    assert named(plain[0], "joy"), "this prompt is one that would"
    found = experiments.write_stories(smollm2, ["joy", "grief"], ["garden"], out=tmp_path, **options)
    assert list(found.columns) == ["topic", "label", "text"] and list(found["label"]) == ["joy", "grief"]
    assert not any(named(text, label) for text, label in zip(found["text"], found["label"], strict=True))
    kept = experiments.write_stories(smollm2, ["joy", "grief"], ["garden"], out=tmp_path, **options)
    pd.testing.assert_frame_equal(kept, found)
    with pytest.raises(EmolabError, match='the prompt lacks "{topic}" or "{label}"'):
        experiments.write_stories(smollm2, ["joy"], prompt="Write {label}.")
    with pytest.raises(EmolabError, match="the story about 'garden' and 'joy' names it"):
        stories._checked(pd.DataFrame({"topic": ["garden"], "label": ["joy"], "text": ["So joyful."]}))


def test_forbidden_words_are_never_written(smollm2):
    asked = ["What is the capital of France?"]
    assert emolab.generate(smollm2, asked, max_new_tokens=8) == ["The capital of France is Paris."]
    other = emolab.generate(smollm2, asked, max_new_tokens=8, writing=emolab.Writing(forbidden=("paris", "the")))
    assert "paris" not in other[0].lower() and not other[0].startswith("The")
    assert emolab.Writing(forbidden=("a",)).settings()["forbidden"] == ["a"]
    with pytest.raises(EmolabError, match="forbidden words are 'joy'; expected a list"):
        emolab.Writing(forbidden="joy")
