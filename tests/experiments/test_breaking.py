"""The unit "breaking": the alpha that costs one nat at the worst tokens, and what is made of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from emolab.answers.logprobs import next_token_kl, p95_kl
from emolab.base.errors import EmolabError
from emolab.experiments.breaking import NATS, find_breaking
from emolab.experiments.sweeps import sweep
from emolab.models.prompts import render_prompts
from emolab.steering.settings import Setting
from emolab.steering.steering import Steering, at
from tests import tiny

QUERIES = ["tell me about the dog .", "how was the road ?", "tell me about the park ."]
TEXTS = ["the dog was glad", "the road was long and cold", "the park was quiet"]


@pytest.fixture(scope="module")
def found(tiny_llama):
    vectors = tiny.random_vectors(tiny_llama)
    doses = dict.fromkeys(vectors.emotions, 1.0)
    where = Steering(vectors, doses, site="resid", layers="late", part="specific")
    return find_breaking(tiny_llama, where, QUERIES, texts=TEXTS), where


def test_the_alpha_found_costs_one_nat_at_the_worst_tokens(tiny_llama, found):
    vectors, where = found
    alphas = vectors.meta["breaking"][where.breaking_key]
    assert set(alphas) == set(vectors.emotions) and min(alphas.values()) > 0
    for emotion, alpha in alphas.items():
        steering = replace(where, vectors=vectors, doses={emotion: alpha})
        kl = p95_kl(next_token_kl(tiny_llama, render_prompts(tiny_llama, QUERIES), TEXTS, steering=steering))
        assert kl == pytest.approx(NATS, rel=0.11)


def test_steerings_of_several_settings_are_found_setting_by_setting(tiny_llama, found, monkeypatch):
    vectors, where = found
    solved = []
    monkeypatch.setattr(
        "emolab.experiments.breaking._solve", lambda m, s, *rest: solved.append(s) or dict.fromkeys(s.doses, 1.0)
    )
    settings = [where.setting, replace(where.setting, site="attn")]
    both = find_breaking(tiny_llama, at(where.vectors, settings), QUERIES, texts=TEXTS).meta["breaking"]
    assert [s.site for s in solved] == ["resid", "attn"] and all(set(s.doses) == set(vectors.emotions) for s in solved)
    assert list(both) == [s.breaking_key for s in solved]


def test_one_in_the_unit_is_that_alpha(found):
    vectors, where = found
    alphas = vectors.meta["breaking"][where.breaking_key]
    for share in (1.0, -0.5):
        by_unit = replace(where, vectors=vectors, unit="breaking", doses=dict.fromkeys(alphas, share))
        by_hand = replace(where, vectors=vectors, doses={e: share * alpha for e, alpha in alphas.items()})
        assert torch.equal(by_unit.table(), by_hand.table())


def test_the_setting_says_where_and_names_layers_as_numbers(found):
    vectors, where = found
    assert where.breaking_key == "site=resid layers=1-2 part=specific op=add positions=generated"
    assert (
        replace(where, layers=[1, 2]).breaking_key == where.breaking_key != replace(where, layers=[0, 2]).breaking_key
    )


@pytest.mark.parametrize(
    "other", [{"site": "attn"}, {"layers": "all"}, {"part": "whole"}, {"op": "clamp"}, {"positions": "all"}]
)
def test_another_setting_is_refused_until_it_is_found(found, other):
    vectors, where = found
    with pytest.raises(EmolabError, match="do not know where text breaks .*find_breaking"):
        replace(where, vectors=vectors, unit="breaking", **other)


def test_changed_vectors_forget_where_they_broke_and_saved_ones_do_not(found, tmp_path):
    vectors, where = found
    for changed in (2 * vectors, vectors.part("specific"), vectors + vectors):
        assert "breaking" not in changed.meta
    vectors.save(tmp_path / "v.safetensors")
    again = type(vectors).load(tmp_path / "v.safetensors")
    assert again.meta["breaking"] == vectors.meta["breaking"]


def test_a_sweep_gives_controls_the_norm_of_the_vector(tiny_llama, found, monkeypatch):
    vectors, where = found
    made = []
    monkeypatch.setattr(
        "emolab.experiments.sweeps.write_texts", lambda m, prompts, steerings, **_: made.extend(steerings) or prompts
    )
    directions = at(vectors, replace(where.setting, unit="breaking"))
    table = sweep(tiny_llama, directions, QUERIES, alphas=(0.5,), controls=("random",))
    norms = [s.table().norm(dim=-1) for s in made]
    for emotion in vectors.emotions:
        rows = [i for i, e in enumerate(table["emotion"]) if e == emotion]
        for i in rows[1:]:
            torch.testing.assert_close(norms[i], norms[rows[0]])
    assert set(table["unit"]) == {"breaking"}


@pytest.mark.parametrize("most", [1.2, 1.5, 50.0])
def test_an_alpha_is_found_where_damage_levels_off(tiny_llama, monkeypatch, most):
    """KL that grows with the square of alpha at first, and then no further than to `most` nats."""
    asked = []

    def levels_off(model, prompts, texts, *, steering, held):
        alphas = [next(iter(row.doses.values())) for row in steering]
        asked.append(alphas[0])
        return [np.array([most * alpha**2 / (400 + alpha**2)]) for alpha in alphas]

    monkeypatch.setattr("emolab.experiments.breaking.next_token_kl", levels_off)
    where = Steering(tiny.random_vectors(tiny_llama), {"joy": 1.0})
    (alpha,) = find_breaking(tiny_llama, where, QUERIES, texts=TEXTS).meta["breaking"][where.breaking_key].values()
    assert most * alpha**2 / (400 + alpha**2) == pytest.approx(NATS, rel=0.11) and len(asked) <= 12


def test_a_rotation_breaks_at_an_alpha_of_its_own(tiny_llama, found):
    vectors, where = found
    turning = replace(where, vectors=vectors, doses={"joy": 1.0}, op="rotate")
    known = find_breaking(tiny_llama, turning, QUERIES, texts=TEXTS)
    steering = replace(turning, vectors=known, unit="breaking")
    kl = p95_kl(next_token_kl(tiny_llama, render_prompts(tiny_llama, QUERIES), TEXTS, steering=steering))
    assert kl == pytest.approx(NATS, rel=0.11)
    assert steering.in_vectors() != replace(steering, op="add").in_vectors()


def test_ablation_and_vectors_that_move_nothing_are_refused(tiny_llama, found):
    vectors, where = found
    for op in ("ablate", "cap"):
        with pytest.raises(EmolabError, match="removes a share"):
            find_breaking(tiny_llama, replace(where, op=op), QUERIES, texts=TEXTS)
    tiny_ones = replace(where, vectors=1e-30 * vectors)
    with pytest.raises(EmolabError, match="no alpha breaks text"):
        find_breaking(tiny_llama, tiny_ones, QUERIES, texts=TEXTS)


def test_alphas_are_kept_and_found_again(tiny_llama, tmp_path, monkeypatch):
    vectors = tiny.random_vectors(tiny_llama)
    where = at(vectors, Setting(site="attn", layers="late"))
    first = find_breaking(tiny_llama, where, QUERIES, out=tmp_path)
    (kept,) = tmp_path.glob("breaking-*.parquet")
    find_breaking(tiny_llama, where, QUERIES[:2], out=tmp_path)
    find_breaking(tiny_llama, where, QUERIES, texts=TEXTS, out=tmp_path)
    find_breaking(tiny_llama, at(2 * vectors, Setting(site="attn", layers="late")), QUERIES, out=tmp_path)
    assert len(list(tmp_path.glob("breaking-*.parquet"))) == 4, "other questions, texts and vectors are other alphas"
    for name in ("generate", "next_token_kl"):
        monkeypatch.setattr(f"emolab.experiments.breaking.{name}", lambda *_, **__: pytest.fail("asked the model"))
    assert find_breaking(tiny_llama, where, QUERIES, out=tmp_path).meta == first.meta
    monkeypatch.undo()
    kept.write_bytes(b"half")
    assert find_breaking(tiny_llama, where, QUERIES, out=tmp_path).meta == first.meta
