"""Settings say where and how to steer, once: as objects, as steerings, and as columns of a table."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

import emolab
from emolab.base.errors import EmolabError
from emolab.steering import each_head, each_layer, each_third
from emolab.steering.settings import FIELDS, Setting, described
from emolab.steering.steering import Steering
from tests import tiny


@pytest.fixture(scope="module")
def vectors(tiny_llama):
    return tiny.random_vectors(tiny_llama)  # three layers, four heads


def test_a_steering_has_the_fields_and_defaults_of_a_setting(vectors):
    own = {field.name: field.default for field in fields(Steering) if field.name in FIELDS}
    assert own == FIELDS and Steering(vectors, {"joy": 1.0}).setting == Setting()
    setting = Setting(site="head", layers=[1], part="specific", heads={1: [0, 3]})
    (steering,) = emolab.at(vectors, setting, ["joy"])
    assert steering.setting == setting and steering.doses == {"joy": 1.0} and steering.layer_numbers == [1]
    assert Setting(layers=[0, 1]) == Setting(layers=range(2)) != Setting(layers=[1, 0])


def test_at_makes_a_steering_per_setting_and_emotion(vectors):
    settings = [Setting(site="attn"), Setting(layers="late")]
    made = emolab.at(vectors, settings, ["joy", "0.5 anger + 0.5 joy", {"sadness": -1.0}])
    assert [steering.setting for steering in made] == [settings[0]] * 3 + [settings[1]] * 3
    assert [steering.doses for steering in made[:3]] == [{"joy": 1.0}, {"anger": 0.5, "joy": 0.5}, {"sadness": -1.0}]
    assert [steering.doses for steering in emolab.at(vectors)] == [{e: 1.0} for e in vectors.emotions]
    for emotions, message in ((["jo"], "unknown emotion 'jo'"), (3, "emotions are 3"), ([{}], "is none")):
        with pytest.raises(EmolabError, match=message):
            emolab.at(vectors, emotions=emotions)


def test_the_shared_part_is_one_direction_for_every_emotion(vectors):
    mixed, plain = (Steering(vectors, x, part="shared") for x in ({"joy": 0.5, "anger": 1.0}, {"shared": 1.5}))
    assert mixed.in_vectors() == plain.in_vectors() == {"shared": 1.5}
    assert mixed.table().equal(plain.table())


def test_lists_of_settings(vectors):
    attn = Setting(site="attn", unit="residual")
    assert [s.layers for s in each_layer(vectors, attn)] == [(0,), (1,), (2,)]
    assert {(s.site, s.unit) for s in each_layer(vectors, attn)} == {("attn", "residual")}
    assert [s.layers for s in each_third(vectors)] == [(0,), (1,), (2,)]
    heads = each_head(vectors)
    assert len(heads) == 12 and (heads[5].layers, heads[5].heads) == ("all", {1: [1]})
    assert [s.heads for s in each_head(vectors, Setting(site="head", layers=[2]))] == [{2: [h]} for h in range(4)]
    assert all(
        s.layer_numbers == [2] for s in emolab.at(vectors, each_head(vectors, Setting("head", "late")), "joy")[-4:]
    )


@pytest.mark.parametrize(
    ("setting", "column", "value"),
    [
        (Setting(), "layers", "all"),
        (Setting(layers="late"), "layers", "1,2"),
        (Setting(layers=[0, 2]), "layers", "0,2"),
        (Setting(positions=slice(0, 4)), "positions", "0:4"),
        (Setting(positions=slice(None, -1, 2)), "positions", ":-1:2"),
        (Setting(site="head", heads={0: [1, 2], 2: [0]}), "heads", "0.1,0.2,2.0"),
        (Setting(site="head"), "heads", "all"),
        (Setting(fade=4), "fade", 4),
        (Setting(), "fade", math.inf),
        (Setting(positions="prompt"), "positions", "prompt"),
        (Setting(positions="user"), "positions", "user"),
        (Setting(), "when", ""),
    ],
)
def test_a_setting_in_a_table(setting, column, value):
    row = described(setting, 3)
    assert list(row) == list(FIELDS) and row[column] == value


def test_a_condition_in_a_table_and_in_code(vectors):
    when = emolab.When(vectors, "joy", above=1.5, layer=0)
    band = emolab.When(vectors, "joy", above=-1, below=2, layer=1, site="attn")
    (steering,) = emolab.at(vectors, Setting(layers=[1], when=when), ["joy"])
    assert described(steering.setting, 3)["when"] == str(when) == "joy > 1.5 at resid 0"
    assert steering.setting == Setting(layers=[1], when=when) and steering.breaking_key.endswith(f" when={when}")
    assert str(band) == "-1 < joy < 2 at attn 1"
    again = eval(repr(band), {"emolab": emolab, "vectors": vectors})
    assert (str(again), again.vectors) == (str(band), vectors)


@pytest.mark.parametrize("where", [(0, 1), (None, 1), (2, None), (-2, -1), (-3, None), (3, -1), (-4, 1), (0, 4, 1)])
def test_positions_that_may_hold_something_are_taken(where):
    assert Setting(positions=slice(*where)).positions == slice(*where)


@pytest.mark.parametrize("where", [(4, 4), (5, 4), (0, 0), (None, 0), (-2, -2), (-1, -2)])
def test_positions_that_hold_nothing_are_refused(where):
    with pytest.raises(EmolabError, match="hold no position"):
        Setting(positions=slice(*where))
