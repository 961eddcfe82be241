"""Sweeps: every row is what its columns say, controls are fair, and a broken sweep goes on where it was."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.answers import jobs
from emolab.answers.generation import generate
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.experiments import sweeps
from emolab.experiments.sweeps import COLUMNS, sweep
from emolab.models.prompts import render_prompts
from emolab.steering.conditions import When
from emolab.steering.settings import Setting, each_head, each_layer, each_third, mixture_name, parse_mixture, spoken
from emolab.steering.steering import Steering, at
from emolab.vectors.controls import DRAWN, match_summed_norm, other_like, random_like, shuffled_like
from emolab.vectors.vectors import EmotionVectors, extract_vectors
from tests import oracle, tiny

EMOTIONS = ("anger", "joy", "sadness")
SMALL = {"max_new_tokens": 6}
FOUR = Writing(seed=4)


@pytest.fixture(scope="module")
def queries():
    return oracle.queries(n_train=5, n_heldout=0)


@pytest.fixture(scope="module")
def vectors(tiny_llama, queries):
    responses = oracle.responses(tiny_llama, list(queries["query"]), EMOTIONS)
    return extract_vectors(tiny_llama, responses, sites=("resid", "attn", "mlp", "head"))


@pytest.fixture(scope="module")
def table(tiny_llama, vectors, queries):
    return sweep(tiny_llama, vectors, queries, alphas=(-2, 0, 3, 9), writing=FOUR, **SMALL)


class Counting:
    """`generate`, counting what it is asked for, and failing once after `fail_after` calls."""

    def __init__(self, fail_after=None):
        self.asked, self.calls, self.fail_after = 0, 0, fail_after

    def __call__(self, model, prompts, **options):
        if self.calls == self.fail_after:
            raise RuntimeError("power cut")
        self.calls += 1
        self.asked += len(prompts)
        return generate(model, prompts, **options)


def source_of(row, model, vectors):
    """The vectors that a row says it was steered with, made anew."""
    used = {"whole": vectors, "specific": vectors.part("specific"), "shared": vectors.part("shared")}[row.part]
    controls = {"random": random_like, "shuffled": lambda v, seed: shuffled_like(v, model=model, seed=seed)}
    control = used if row.control == "none" else controls[row.control](used, seed=row.seed)
    return match_summed_norm(control, used) if row.site == "head" else control


def written(model, row, steering):
    return generate(model, row.query, steering=steering, max_new_tokens=6)[0]


def asked_for(model, directions, queries, monkeypatch, **options):
    """The steerings that a sweep would generate with, and its table with empty texts."""
    made = []
    monkeypatch.setattr(
        jobs, "generate", lambda model, prompts, *, steering, **_: made.extend(steering) or [""] * len(prompts)
    )
    return made, sweep(model, directions, queries, **options)


def test_rows_and_columns(table, queries, vectors):
    assert tuple(table.columns) == tuple(column for column in COLUMNS if column != "when")
    n, e = len(queries), len(EMOTIONS)
    counts = table.groupby(["control", "alpha"]).size().to_dict()
    assert counts == {
        ("none", 0.0): n * e,
        **{(control, alpha): n * e for control in ("none", "random", "shuffled") for alpha in (-2.0, 3.0, 9.0)},
    }
    assert set(table["emotion"]) == set(EMOTIONS), "what is steered towards, not what the query evokes"
    defaults = {"site": "resid", "layers": "all", "part": "whole", "op": "add", "unit": "vector"}
    defaults |= {"positions": "generated", "heads": "all", "fade": float("inf")}
    assert (table[list(defaults)] == pd.Series(defaults)).all(axis=None)
    merged = table.merge(queries, on="query_id", suffixes=("", "_q"))
    assert len(merged) == len(table) and (merged["query"] == merged["query_q"]).all()
    assert (merged["situation"] == merged["situation_q"]).all()
    assert all(isinstance(text, str) for text in table["text"]) and not table.isna().any(axis=None)


def test_the_seed_column_names_the_control(table):
    assert set(table.loc[table["control"] == "none", "seed"]) == {-1}
    controls = table[table["control"] != "none"]
    assert set(controls["seed"]) == {4 + i for i in range(DRAWN)}
    taken = controls.groupby(["query_id", "control"])["seed"].nunique()
    assert (taken == 1).all(), "a query keeps its direction at every dose and emotion, so that doses can be compared"


def test_dose_zero_is_unsteered_once_for_all(table, tiny_llama, queries):
    plain = dict(zip(queries["query"], generate(tiny_llama, list(queries["query"]), max_new_tokens=6), strict=True))
    zero = table[table["alpha"] == 0]
    assert set(zero["control"]) == {"none"} and list(zero["text"]) == [plain[q] for q in zero["query"]]


def test_every_text_is_that_of_its_steering_alone(table, tiny_llama, vectors):
    different = 0
    for row in table.itertuples():
        used = source_of(row, tiny_llama, vectors)
        steering = Steering(used, {row.emotion: row.alpha}) if row.alpha else None
        assert written(tiny_llama, row, steering) == row.text, row
        different += row.alpha != 0 and row.text != generate(tiny_llama, row.query, max_new_tokens=6)[0]
    assert different > 0.3 * len(table), "else this compares unsteered texts"


@pytest.mark.parametrize("part", ["whole", "specific", "shared"])
def test_controls_are_as_long_as_what_they_control(tiny_llama, vectors, queries, part, monkeypatch):
    settings = [Setting(site=site, part=part, layers=[0, 2]) for site in ("attn", "head")]
    made, found = asked_for(tiny_llama, at(vectors, settings), queries, monkeypatch, alphas=(2,))
    assert len(found) == 2 * 3 * len(EMOTIONS) * len(queries) and set(found["layers"]) == {"0,2"}
    by_control = {}
    for steering in made:
        label = steering.vectors.meta.get("control", "none")
        norm = steering.table().norm(dim=-1)  # what is added; with heads, their sum
        emotions = ["shared"] if part == "shared" else steering.doses
        by_control.setdefault((steering.site, *emotions), {}).setdefault(label, []).append(norm)
    assert len(by_control) == 2 * (1 if part == "shared" else len(EMOTIONS))
    for norms in by_control.values():
        assert set(norms) == {"none", "random", "shuffled"}
        for control in ("random", "shuffled"):
            for norm in norms[control]:
                torch.testing.assert_close(norm, norms["none"][0], rtol=1e-5, atol=1e-6)


def test_every_setting_stands_in_the_table_as_it_is(tiny_llama, vectors, queries):
    settings = [
        Setting(site=site, layers=layers, part=part, unit="residual")
        for site in ("resid", "head")
        for layers in ("all", [1])
        for part in ("whole", "specific", "shared")
    ]
    directions = at(vectors, settings, ["joy"])
    found = sweep(tiny_llama, directions, queries.head(2), alphas=(0, 0.7), controls=("random",), **SMALL)
    cells = found.groupby(["site", "layers", "part", "unit"]).size()
    assert len(cells) == 12 and set(cells) == {2 * (1 + 2)}
    for row in found.sample(12, random_state=0).itertuples():
        if row.alpha:
            layers = "all" if row.layers == "all" else [int(x) for x in row.layers.split(",")]
            label = "shared" if row.part == "shared" else row.emotion
            used = source_of(row, tiny_llama, vectors)
            steering = Steering(used, {label: row.alpha}, site=row.site, layers=layers, unit=row.unit)
            assert written(tiny_llama, row, steering) == row.text, row


def test_the_base_is_one_vector_for_all_emotions(tiny_llama, vectors, queries, monkeypatch):
    counting = Counting()
    monkeypatch.setattr(jobs, "generate", counting)
    directions = at(vectors, Setting(part="shared"))
    found = sweep(tiny_llama, directions, queries, alphas=(0, 2), controls=("random",), **SMALL)
    assert set(found["part"]) == {"shared"} and set(found["emotion"]) == set(EMOTIONS)
    assert found.groupby(["query_id", "control", "alpha"])["text"].nunique().eq(1).all()
    assert counting.asked == 3 * len(queries), "unsteered, base and random: once for every query"


def test_mixtures_multiply_their_weights(tiny_llama, vectors, queries):
    half = {"anger": 0.5, "joy": 0.5}
    settings = [Setting(unit="vector"), Setting(unit="residual")]
    directions = at(vectors, settings, ["joy", half, "1 joy - 0.5 anger"])
    found = sweep(tiny_llama, directions, queries, alphas=(0, -2, 3), controls=(), **SMALL)
    assert set(found["emotion"]) == {"joy", "0.5 anger + 0.5 joy", "1 joy - 0.5 anger"}
    for row in found[found["alpha"] != 0].itertuples():
        doses = {e: row.alpha * w for e, w in parse_mixture(row.emotion).items()}
        assert written(tiny_llama, row, Steering(vectors, doses, unit=row.unit)) == row.text, row
    one = sweep(tiny_llama, Steering(vectors, half), queries, alphas=(3,), controls=(), **SMALL)
    same = (found["alpha"] == 3) & (found["unit"] == "vector") & found["emotion"].str.startswith("0.5")
    assert list(one["text"]) == list(found.loc[same, "text"]), "a direction alone needs no list"


@pytest.mark.parametrize("unit", ["vector", "residual"])
@pytest.mark.parametrize("site", ["resid", "head"])
def test_controls_of_a_mixture_add_as_long_a_vector(tiny_llama, vectors, queries, monkeypatch, site, unit):
    doses = {"anger": 0.25, "joy": 0.75}
    data = {s: torch.cat([x, 2 * x.flip(-1)[:2]]) for s, x in vectors.data.items()}  # "other" needs some outside
    vectors = EmotionVectors(data, (*EMOTIONS, "calm", "pride"), vectors.resid_norm, vectors.meta)
    directions = at(vectors, Setting(site=site, unit=unit), doses)
    options = {"alphas": (-2,), "controls": ("random", "other")}
    made, found = asked_for(tiny_llama, directions, queries, monkeypatch, **options)
    wanted = Steering(vectors, {e: -2 * w for e, w in doses.items()}, site=site, unit=unit).table()
    for row, steering in zip(found.itertuples(), made, strict=True):
        torch.testing.assert_close(steering.table().norm(dim=-1), wanted.norm(dim=-1), rtol=1e-5, atol=1e-6)
        cosine = torch.cosine_similarity(steering.table(), wanted, dim=-1)
        assert (cosine > 0.9999).all() == (row.control == "none")
    assert set(found.loc[found["control"] == "other", "seed"]) == {2, 3, 4}, "the emotions outside, in turn"


def test_other_is_the_next_emotion_in_turn(tiny_llama, vectors, queries):
    directions = at(vectors, [Setting(part=part) for part in ("whole", "specific", "shared")])
    found = sweep(tiny_llama, directions, queries, alphas=(0, 3), controls=("other",), **SMALL)
    other = found[found["control"] == "other"]
    assert set(other["part"]) == {"whole", "specific"} and set(other["alpha"]) == {3.0}
    for part, used in (("whole", vectors), ("specific", vectors.part("specific"))):
        for e, emotion in enumerate(EMOTIONS):
            rows = other[(other["part"] == part) & (other["emotion"] == emotion)]
            turns = [(e + 1) % 3, (e + 2) % 3]
            assert list(rows["seed"]) == [turns[i % 2] for i in range(len(queries))]
            for row in rows.itertuples():
                steering = Steering(other_like(used, {emotion: EMOTIONS[row.seed]}), {emotion: 3.0})
                assert written(tiny_llama, row, steering) == row.text, row


def test_the_prompt_stands_once_for_every_emotion_and_setting(tiny_llama, vectors, queries, monkeypatch):
    counting = Counting()
    monkeypatch.setattr(jobs, "generate", counting)
    blends = ["joy", {"anger": 0.5, "joy": 0.5}, {"joy": -1.0}]
    directions = at(vectors, [Setting(site="resid"), Setting(site="attn")], blends)
    found = sweep(tiny_llama, directions, queries, alphas=(2, 3), controls=("prompt",), **SMALL)
    told = found[found["control"] == "prompt"]
    assert len(told) == 2 * 2 * len(queries), "nothing can be said of less joy"
    assert set(told["alpha"]) == {0.0} and set(told["seed"]) == {-1} and set(told["site"]) == {"resid", "attn"}
    assert counting.asked == len(queries) * (2 + 2 * 2 * 3)
    for emotion, words in (("joy", "joy"), ("0.5 anger + 0.5 joy", "anger and joy")):
        prompts = render_prompts(tiny_llama, list(queries["query"]), words)
        expected = generate(tiny_llama, prompts, raw=True, max_new_tokens=6)
        own = told[(told["emotion"] == emotion) & (told["site"] == "attn")]
        assert list(own["text"]) == expected


def test_every_layer_head_position_and_fade_by_name(tiny_llama, vectors, queries, monkeypatch):
    def cells(*settings):
        directions = at(vectors, settings, ["joy"])
        return asked_for(tiny_llama, directions, queries.head(1), monkeypatch, alphas=(1,), controls=())

    made, found = cells(*each_layer(vectors), Setting(), *each_third(vectors), Setting(layers=[0, 2]))
    assert list(found["layers"]) == ["0", "1", "2", "all", "0,2"], "thirds of three layers are the layers again"
    assert [s.layer_numbers for s in made] == [[0], [1], [2], [0, 1, 2], [0, 2]]
    assert list(cells(Setting(layers="late"))[1]["layers"]) == ["1,2"]
    some = Setting(site="head", heads={0: [1, 2], 2: [0]})
    made, found = cells(Setting(site="attn"), Setting(site="head"), *each_head(vectors), some)
    assert list(found["heads"]) == ["all", "all", *(f"{x}.{h}" for x in range(3) for h in range(4)), "0.1,0.2,2.0"]
    assert list(found["site"]) == ["attn"] + ["head"] * 14
    v = vectors.get("head", emotion="joy")
    for row, steering in zip(found.itertuples(), made, strict=True):
        if "." in row.heads:
            chosen = [tuple(map(int, pair.split("."))) for pair in row.heads.split(",")]
            expected = torch.zeros(3, 32)
            for layer, head in chosen:
                expected[layer] += v[layer, head]
            torch.testing.assert_close(steering.table(), expected)
    assert len(cells(*each_head(vectors, Setting(site="head", layers=[1])))[0]) == 4
    made, found = cells(*(Setting(positions=positions) for positions in ("all", slice(0, 4), slice(None, -1, 2))))
    assert list(found["positions"]) == ["all", "0:4", ":-1:2"] and made[1].positions == slice(0, 4)
    made, found = cells(*(Setting(fade=fade) for fade in (None, 8, 2.5)))
    assert list(found["fade"]) == [float("inf"), 8, 2.5] and [s.fade for s in made] == [None, 8, 2.5]


def test_controls_of_chosen_heads_are_as_long_as_their_sum(tiny_llama, vectors, queries, monkeypatch):
    direction = Steering(vectors, {"joy": 1.0}, site="head", heads={0: [1, 2], 2: [0]})
    options = {"alphas": (2,), "controls": ("random", "shuffled", "other")}
    made, found = asked_for(tiny_llama, direction, queries, monkeypatch, **options)
    wanted = made[0].table().norm(dim=-1)
    assert wanted[1] == 0 and set(found["control"]) == {"none", "random", "shuffled", "other"}
    for steering in made:
        torch.testing.assert_close(steering.table().norm(dim=-1), wanted, rtol=1e-5, atol=1e-6)


def test_faded_texts_are_those_of_their_steering(tiny_llama, vectors, queries):
    directions = at(vectors, [Setting(), Setting(fade=1.5)], "joy")
    found = sweep(tiny_llama, directions, queries, alphas=(9,), controls=("random",), writing=FOUR, **SMALL)
    for row in found.itertuples():
        used = source_of(row, tiny_llama, vectors)
        assert written(tiny_llama, row, Steering(used, {"joy": 9.0}, fade=row.fade)) == row.text, row
    texts = found.pivot(index=["query_id", "control"], columns="fade", values="text")
    assert (texts[1.5] != texts[float("inf")]).mean() > 0.3


MIXTURES = [{"joy": 0.5}, {"anger": 0.5, "joy": 0.5}, {"joy": 1, "fear": -0.25}, {"a b": -1 / 3, "self - doubt": 2}]


@pytest.mark.parametrize("doses", MIXTURES)
def test_names_of_mixtures_are_read_back(doses):
    assert parse_mixture(mixture_name(doses)) == doses
    assert spoken(mixture_name(doses)) == " and ".join(e for e, w in doses.items() if w > 0)


def test_plain_names_stay_what_they_are():
    for name in ("joy", "self - doubt", "calm + quiet", "4 seasons of"):
        assert mixture_name({name: 1.0}) == name
    for name in ("joy", "self - doubt", "calm + quiet"):
        assert parse_mixture(name) == {name: 1.0}


def test_operations_and_conditions_stand_beside_each_other_in_one_table(tiny_llama, vectors, queries, tmp_path):
    when = When(vectors, "joy", above=0.0, layer=0)
    settings = [Setting(op="rotate"), Setting(layers=[1]), Setting(layers=[1], positions="prompt", when=when)]
    directions = at(vectors, settings, [{"joy": 1.0, "anger": 0.5}])
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "write_texts", lambda m, prompts, steerings, **_: made.extend(steerings) or prompts)
        found = sweep(tiny_llama, directions, queries, alphas=(2,), controls=("random",), out=tmp_path, **SMALL)
    assert list(found.columns) == list(COLUMNS)
    kinds = found[["op", "positions", "when"]].drop_duplicates().to_numpy().tolist()
    assert kinds == [["rotate", "generated", ""], ["add", "generated", ""], ["add", "prompt", str(when)]]
    for steering, row in zip(made, found.itertuples(), strict=True):
        own = directions[kinds.index([row.op, row.positions, row.when])]
        assert (steering.op, steering.when) == (own.op, own.when)
        # A mixture's control is as long as the mixture.
        torch.testing.assert_close(steering.affine()[0].norm(dim=1), 2 * own.affine()[0].norm(dim=1))
    again = sweep(tiny_llama, directions, queries, alphas=(2,), controls=("random",), out=tmp_path, **SMALL)
    pd.testing.assert_frame_equal(again, found)
    other = replace(directions[2], when=replace(when, vectors=2 * vectors))
    with pytest.raises(EmolabError, match="could not tell them apart"):
        sweep(tiny_llama, [directions[2], other], queries, alphas=(2,))


@pytest.mark.parametrize("op", ["clamp", "cap"])
def test_holding_a_component_at_zero_is_no_unsteered_text(tiny_llama, vectors, queries, op):
    direction = Steering(vectors, {"joy": 1.0}, op=op)
    found = sweep(tiny_llama, direction, queries, alphas=(0,), controls=("random",), **SMALL)
    assert set(found["control"]) == {"none", "random"}
    steering = Steering(vectors, {"joy": 0.0}, op=op)
    expected = generate(tiny_llama, list(queries["query"]), steering=steering, max_new_tokens=6)
    assert list(found.loc[found["control"] == "none", "text"]) == expected


def test_a_broken_sweep_goes_on_where_it_was(table, tiny_llama, vectors, queries, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "_CHUNK", 16)

    def call():
        return sweep(tiny_llama, vectors, queries, alphas=(-2, 0, 3, 9), out=tmp_path, writing=FOUR, **SMALL)

    n_texts = len(queries) * (1 + 3 * 3 * len(EMOTIONS))
    broken = Counting(fail_after=4)
    monkeypatch.setattr(jobs, "generate", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        call()
    assert broken.asked == 64 and len(pd.read_parquet(tmp_path / "sweep.parquet")) == 64
    monkeypatch.setattr(jobs, "generate", rest := Counting())
    pd.testing.assert_frame_equal(call(), table)
    assert rest.asked == n_texts - 64, "an unsteered text is made once, not once for every emotion"
    monkeypatch.setattr(jobs, "generate", nothing := Counting())
    pd.testing.assert_frame_equal(call(), table)
    assert nothing.asked == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "sweep.parquet"), table)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "sweep.parquet"]


def test_a_folder_of_another_sweep_is_refused(tiny_llama, vectors, queries, tmp_path):
    joy = Steering(vectors, {"joy": 1.0})
    options = {"alphas": (0, 1), "controls": ("random",), "out": tmp_path, **SMALL}
    sweep(tiny_llama, joy, queries, **options)
    changes = [
        {"alphas": (0, 2)}, {"writing": Writing(seed=1)}, {"max_new_tokens": 7}, {"controls": ()},
        {"controls": ("other",)}, {"writing": Writing(repetition_penalty=1)},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(EmolabError, match="made with other settings.*choose another out folder"):
            sweep(tiny_llama, joy, queries, **{**options, **change})
    others = [
        *({"doses": doses} for doses in ({"anger": 1.0}, {"joy": 0.5})), {"site": "attn"}, {"fade": 4},
        *({"vectors": v} for v in (2 * vectors, vectors.part("specific"), tiny.random_vectors(tiny_llama))),
    ]  # fmt: skip
    for change in others:
        with pytest.raises(EmolabError, match="made with other settings"):
            sweep(tiny_llama, replace(joy, **change), queries, **options)
    with pytest.raises(EmolabError, match="made with other settings"):
        sweep(tiny_llama, joy, queries.head(2), **options)
    (tmp_path / "sweep.parquet").write_bytes(b"PAR1")
    with pytest.raises(EmolabError, match="damaged"):
        sweep(tiny_llama, joy, queries, **options)


def test_vectors_of_unknown_source_are_told_apart_by_their_numbers(tiny_llama, queries, tmp_path):
    options = {"alphas": (1,), "controls": (), "out": tmp_path, **SMALL}
    sweep(tiny_llama, tiny.random_vectors(tiny_llama, seed=0), queries, **options)
    with pytest.raises(EmolabError, match="vectors: there"):
        sweep(tiny_llama, tiny.random_vectors(tiny_llama, seed=1), queries, **options)


def test_directions_that_the_table_cannot_tell_apart_are_refused(tiny_llama, vectors, queries):
    joy = Steering(vectors, {"joy": 1.0})
    twice = sweep(tiny_llama, [joy, *at(vectors, emotions="joy")], queries.head(1), alphas=(1,), controls=(), **SMALL)
    assert len(twice) == 1, "the same one counts once"
    with pytest.raises(EmolabError, match="two different vectors are called 'joy'"):
        sweep(tiny_llama, [joy, replace(joy, vectors=2 * vectors)], queries, alphas=(1,), controls=(), **SMALL)
    both = Steering(vectors, {"joy": 1, "anger": 1})
    with pytest.raises(EmolabError, match='control "other" needs another emotion for'):
        sweep(tiny_llama, both, queries, alphas=(1,), controls=("other",), **SMALL)


def test_shuffled_labels_need_means_and_questions_of_ones_own_are_numbered(tiny_llama, vectors, queries):
    with pytest.raises(EmolabError, match="need the response means"):
        sweep(tiny_llama, tiny.random_vectors(tiny_llama), queries, alphas=(1,), **SMALL)
    joy = at(vectors, emotions="joy")
    own = sweep(tiny_llama, joy, ["tell me about the dog ."], alphas=(0, 1, 1.0), controls=(), **SMALL)
    assert list(own["query_id"]) == ["u-0001"] * 2 and list(own["alpha"]) == [0.0, 1.0]
    assert set(own["emotion"]) == {"joy"}


def test_global_random_state_is_left_alone(tiny_llama, vectors, queries):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    sweep(tiny_llama, vectors, queries.head(1), alphas=(0, 1), **SMALL)
    assert states() == before


def test_templates_are_the_wording_of_every_prompt(tiny_gpt2, monkeypatch):
    asked = []

    def listen(model, prompts, **options):
        asked.extend(prompts)
        return ["a walk"] * len(prompts)

    monkeypatch.setattr(jobs, "generate", listen)
    vectors, templates = tiny.random_vectors(tiny_gpt2), {"neutral": "Q: {query} A:", "joy": "Happy! Q: {query} A:"}
    joy, writing = Steering(vectors, {"joy": 1.0}), Writing(templates=templates)
    sweep(tiny_gpt2, joy, ["tell me"], alphas=(0, 1), controls=("prompt",), writing=writing)
    assert sorted(asked) == ["Happy! Q: tell me A:", "Q: tell me A:", "Q: tell me A:"]
