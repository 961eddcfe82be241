"""Rotation, caps, conditions and the prompt's positions: exact, and the same by row, batch, cache, bridge and twin."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from emolab.answers.generation import generate
from emolab.answers.logprobs import token_logprobs
from emolab.base.errors import EmolabError
from emolab.models import sharing
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.models.sites import site_hooks
from emolab.steering.conditions import When
from emolab.steering.edits import AffineEdit, keep_rows
from emolab.steering.positions import PositionMask
from emolab.steering.steering import Steering, as_rows, build_edits, steered
from tests import tiny
from tests.answers.uncached import uncached
from tests.steering.conftest import QUERIES
from tests.steering.on_both import tokens_on_both

CPU = torch.device("cpu")


def states(model, batch, steering=None):
    """{(site, layer): activation}, and the logits, in a plain forward call on the bridge."""
    names = {(s, i): name for s in ("resid", "attn") for i, name in enumerate(site_hooks(model, s))}
    with torch.inference_mode(), steered(model, steering):
        logits, cache = model.run_with_cache(
            batch.input_ids, attention_mask=batch.attention_mask, names_filter=list(names.values())
        )
    return {place: cache[name] for place, name in names.items()}, logits


@pytest.fixture(scope="module")
def own(model, vectors, batch):
    """Directions along which activations lie: those of the last token of each query."""
    seen = states(model, batch)[0]
    data = {s: torch.stack([seen[s, i][:, -1] for i in range(model.n_layers)], 1) for s in ("resid", "attn")}
    return replace(vectors, data=data)


@pytest.fixture(scope="module")
def mixed(vectors, own) -> list[Steering | None]:
    """One of each kind."""
    below = When(own, "joy", below=0.4, layer=0)
    nothing = dict.fromkeys(vectors.emotions, 0.0)
    return [
        Steering(vectors, {"joy": 2.0}, op="rotate"),
        Steering(own, nothing, op="cap", positions="all"),
        Steering(vectors, {"joy": 3.0, "anger": -1.0}, op="rotate", site="attn", unit="residual", fade=4),
        Steering(vectors, {"joy": 4.0}, layers=[1], when=below),
        None,
        Steering(vectors, {"joy": 2.0}),
        Steering(vectors, {"joy": -4.0}, positions="prompt"),
        Steering(vectors, {"anger": 4.0}, op="rotate", layers=[1], positions="prompt", when=replace(below, below=0.3)),
        Steering(vectors, {"joy": 4.0}, op="clamp", site="attn", layers=[1], when=replace(below, site="attn", layer=1)),
        Steering(own, nothing, op="cap", layers=[1], when=below),
    ]


# --- what each does to an activation


@pytest.mark.parametrize("unit", ["vector", "residual"])
def test_rotation_turns_in_the_plane_of_both_and_keeps_the_norm(model, vectors, batch, unit):
    doses = {"joy": 1.5, "anger": -0.5}
    turning, adding = (
        Steering(vectors, doses, layers=[1], op=op, unit=unit, positions=slice(1, 3)) for op in ("rotate", "add")
    )
    before, after = states(model, batch)[0]["resid", 1], states(model, batch, turning)[0]["resid", 1]
    torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=1e-6, atol=0)
    added = before[:, 1:3] + adding.table()[1]
    torch.testing.assert_close(torch.cosine_similarity(after[:, 1:3], added, dim=-1), torch.ones(3, 2))
    for rest in (slice(0, 1), slice(3, None)):
        assert torch.equal(after[:, rest], before[:, rest])
    far = states(model, batch, replace(turning, doses={"joy": 1e6}))[0]["resid", 1][:, 1:3]
    v = vectors.get("resid", emotion="joy", layer=1)
    torch.testing.assert_close(far / far.norm(dim=-1, keepdim=True), (v / v.norm()).expand_as(far), atol=1e-4, rtol=0)


def test_a_cap_changes_what_lies_above_it_and_nothing_else(model, own, batch):
    before, v = states(model, batch)[0]["resid", 1], own.data["resid"][[1, 0], 1]
    unit = v / v.norm(dim=1, keepdim=True)
    tops = 0.8 * (before @ unit.T / v.norm(dim=1)).amax((0, 1))
    doses = dict(zip(("joy", "anger"), tops.tolist(), strict=True))
    capping = Steering(own, doses, layers=[1], op="cap", positions="all")
    after = states(model, batch, capping)[0]["resid", 1]
    passed = before @ unit.T > tops * v.norm(dim=1)
    assert passed.sum(dim=(0, 1)).min() >= 1 and 2 <= (~passed.any(-1)).sum()
    torch.testing.assert_close(after @ unit.T, torch.minimum(before @ unit.T, tops * v.norm(dim=1)), atol=1e-5, rtol=0)
    assert torch.equal(after[~passed.any(-1)], before[~passed.any(-1)])
    rest = before - (before @ torch.linalg.pinv(v)) @ v  # what is orthogonal to both stays
    torch.testing.assert_close(after - (after @ torch.linalg.pinv(v)) @ v, rest, atol=1e-5, rtol=0)


def test_a_dose_of_nothing_turns_nothing_and_a_cap_out_of_reach_cuts_nothing(model, vectors, batch):
    plain = states(model, batch)[1]
    for steering in (
        Steering(vectors, {"joy": 0.0}, op="rotate", positions="all"),
        Steering(vectors, {"joy": 1e3}, op="cap", positions="all"),
        Steering(vectors, {"joy": 9.0}, layers=[1], positions="all", when=When(vectors, "joy", above=1e3, layer=0)),
    ):
        assert torch.equal(states(model, batch, steering)[1], plain)


def test_a_faded_rotation_keeps_the_norm_and_a_faded_cap_goes_half_the_way(model, vectors):
    x = torch.randn(1, 3, model.d_model, generator=torch.Generator().manual_seed(0))
    turn, cap = (Steering(vectors, {"joy": d}, op=op, layers=[0], fade=1) for op, d in (("rotate", 2.0), ("cap", 0.0)))
    turned, capped = (build_edits(model, [s], [(0, 1)])["resid", 0](x)[0] for s in (turn, cap))
    v = vectors.get("resid", emotion="joy", layer=0)
    for t in range(3):
        added = x[0, t] + 0.5**t * 2 * v
        torch.testing.assert_close(turned[t], added * x[0, t].norm() / added.norm())
        excess = (x[0, t] @ v / v.norm()).clamp_min(0)
        torch.testing.assert_close(capped[t], x[0, t] - 0.5**t * excess * v / v.norm(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("site", ["resid", "attn"])
@pytest.mark.parametrize("bounds", [{"above": 0.31}, {"below": 0.61}, {"above": 0.21, "below": 0.76}])
def test_a_condition_is_read_at_each_token_of_each_row(model, vectors, batch, site, bounds):
    before, v = states(model, batch)[0], vectors.get(site, emotion="sadness", layer=0)
    projection = before[site, 0] @ v / (v @ v)
    bounds = {name: float(projection.quantile(share)) for name, share in bounds.items()}  # between two tokens
    when = When(vectors, "sadness", site=site, layer=0, **bounds)
    after = states(model, batch, Steering(vectors, {"joy": 1.0}, layers=[1], positions="all", when=when))[0]
    met = (projection > bounds.get("above", -1e9)) & (projection < bounds.get("below", 1e9))
    assert 10 <= met.sum() <= 18
    moved = before["resid", 1] + vectors.get("resid", emotion="joy", layer=1)
    assert torch.equal(after["resid", 1], torch.where(met[..., None], moved, before["resid", 1]))
    for place in (("resid", 0), ("attn", 0), ("attn", 1)):
        assert torch.equal(after[place], before[place])


def test_a_condition_at_the_steered_layer_is_read_before_the_edit(model, vectors, batch):
    """Adding the vector raises the projection by one, past the bound: read behind the edit, all would be undone."""
    before, v = states(model, batch)[0]["resid", 1], vectors.get("resid", emotion="joy", layer=1)
    highest = float((before @ v / (v @ v)).max())
    when = When(vectors, "joy", below=highest + 0.1, layer=1)
    steering = Steering(vectors, {"joy": 1.0}, layers=[1], positions="all", when=when)
    assert torch.equal(states(model, batch, steering)[0]["resid", 1], before + v)


def test_the_prompts_positions_are_its_own_tokens(model, vectors, batch):
    keep = PositionMask(["prompt", "generated"], [(2, 3), (0, 5)]).keep(0, 7, CPU)[..., 0]
    assert keep.int().tolist() == [[0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1]]
    assert PositionMask(["prompt"], [(2, 3)], cached=True).keep(5, 1, CPU) is False
    everywhere, prompt = (Steering(vectors, {"joy": 1.0}, positions=where) for where in ("all", "prompt"))
    assert torch.equal(states(model, batch, prompt)[1], states(model, batch, everywhere)[1])
    texts = ["sun and rain", "we saw the sea"]
    first, rest = zip(
        *(
            [row[0], row[-1]]
            for s in (everywhere, prompt)
            for row in token_logprobs(model, render_prompts(model, QUERIES[:2]), texts, steering=s)
        ),
        strict=True,
    )
    assert first[:2] == pytest.approx(first[2:], abs=1e-5) and abs(rest[0] - rest[2]) > 1e-3


# --- the same wherever it runs


def test_rows_of_every_kind_write_what_each_writes_alone(model, mixed):
    steerings = mixed
    queries = [QUERIES[i % 3] for i in range(len(steerings))]
    options = {"max_new_tokens": 12}
    together = generate(model, queries, steering=steerings, **options)
    alone = [generate(model, q, steering=s, **options)[0] for q, s in zip(queries, steerings, strict=True)]
    assert together == alone and together != generate(model, queries, **options)
    plain = generate(model, QUERIES, **options)
    assert [text != plain[i % 3] for i, text in enumerate(together)].count(True) >= 6
    with uncached():
        assert together == generate(model, queries, steering=steerings, **options)
    users = load_model(model.bridge, tokenizer=model.tokenizer)  # on the bridge, not on its twin
    assert together == generate(users, queries, steering=steerings, **options)
    late = [s if s is None or not (s.fade or s.positions == "prompt") else None for s in steerings]
    expected = generate(model, queries, steering=late, **options)
    with steered(model, late):  # a plain forward call knows no prompt
        assert generate(model, queries, **options) == expected


def test_bridge_and_twin_write_the_same_tokens(model, mixed):
    for steering in filter(None, mixed):
        assert torch.equal(*tokens_on_both(model, QUERIES, steering, max_new_tokens=8)), steering


def test_shared_prompts_are_read_once_unless_they_are_steered(model, mixed, monkeypatch):
    steerings = mixed
    late = [s for s in steerings if s is None or s.positions == "generated"] * 2
    texts = ["a dog and a cat in the rain"] * len(late)
    monkeypatch.setattr(sharing, "SHARE_FROM", 4)
    read = []
    forward = model.hf.forward
    watching = functools.wraps(forward)(
        lambda input_ids, **rest: read.append(input_ids.shape) or forward(input_ids, **rest)
    )
    with monkeypatch.context() as patch:  # no hook: a prompt is read by every row where others hook the model
        patch.setattr(model.hf, "forward", watching)
        written = generate(model, QUERIES[:1] * len(late), steering=late, max_new_tokens=8)
        assert [rows for rows, _ in read[:2]] == [1, len(late)] and read[1][1] == 1
        read.clear()
        scored = token_logprobs(model, render_prompts(model, QUERIES[:1] * len(late)), texts, steering=late)
        assert read[0][0] == 1 and len(read) == 2
        read.clear()
        generate(model, QUERIES[:1] * 4, steering=[s for s in steerings if s and s.positions == "prompt"] * 2)
        assert read[0][0] == 4
    for row, steering in enumerate(late):
        assert generate(model, QUERIES[:1], steering=steering, max_new_tokens=8) == written[row : row + 1]
        [alone] = token_logprobs(model, render_prompts(model, QUERIES[:1]), texts[:1], steering=steering)
        assert scored[row] == pytest.approx(alone, abs=1e-4)


def test_rows_that_go_on_are_edited_as_before(model, mixed):
    rows = mixed
    x = torch.randn(len(rows), 4, model.d_model, generator=torch.Generator().manual_seed(0))
    spans = [(i % 3, 3 - i % 3) for i in range(len(rows))]
    edit, left = (build_edits(model, rows, spans, cached=True) for _ in range(2))
    kept = torch.tensor([0, 1, 3, 5, 7, 8, 9])
    keep_rows(left, kept)
    for part in (x[:, :3], x[:, 3:]):
        for place in (("resid", 0), ("attn", 1), ("resid", 1)):  # the order of a pass
            after = edit[place](part)
            assert torch.equal(left[place](part[kept]), after[kept]) and torch.equal(after[4], part[4])


def test_a_model_in_bfloat16_keeps_the_norm_and_its_dtype(tiny_llama_dir):
    half = load_model(tiny_llama_dir, dtype="bfloat16", device="cpu")
    vectors = tiny.random_vectors(half)
    batch = encode(half, QUERIES)
    before = states(half, batch)[0]["resid", 1]
    after = states(half, batch, Steering(vectors, {"joy": 2.0}, layers=[1], op="rotate", positions="all"))[0][
        "resid", 1
    ]
    assert after.dtype == torch.bfloat16 and not torch.equal(after, before)
    torch.testing.assert_close(after.float().norm(dim=-1), before.float().norm(dim=-1), rtol=4e-3, atol=0)
    capped = states(half, batch, Steering(vectors, {"joy": 0.0}, layers=[1], op="cap", positions="all"))[0]["resid", 1]
    assert capped.dtype == torch.bfloat16 and not torch.equal(capped, before)


def test_what_only_adds_stays_an_affine_edit(model, vectors):
    edits = build_edits(model, [Steering(vectors, {"joy": 1.0}), None], [(0, 2), (0, 2)], cached=True)
    assert {type(edit) for edit in edits.values()} == {AffineEdit}


# --- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: Steering(v, {"joy": -0.5}, op="cap"), 'op "cap" takes a ceiling of at least 0'),
        (lambda v: Steering(v, {"joy": 0.5}, op="cap", unit="breaking"), 'in unit "vector" or "residual"'),
        (lambda v: Steering(v, {"joy": 1.0}, when="joy"), "when is 'joy'; expected emolab.When(vectors"),
        (lambda v: Steering(v, {"joy": 1.0}, layers=[0, 1], when=When(v, "joy", above=1, layer=1)), "too late"),
        (
            lambda v: Steering(v, {"joy": 1.0}, site="attn", layers=[1], when=When(v, "joy", above=1, layer=1)),
            "when reads resid of layer 1, too late for steering at attn of layer 1",
        ),
        (lambda v: When(v, "joy", layer=0), "expected above=, below=, or a band"),
        (lambda v: When(v, "joy", above=1, below=1, layer=0), "a band with above < below"),
        (lambda v: When(v, "joy", above=float("nan"), layer=0), "above of when"),
        (lambda v: When(v, "jo", above=1, layer=0), "jo"),
        (lambda v: When(v, "joy", above=1, layer=99), "99"),
        (lambda v: When(v, "joy", above=1, layer=0, site="head"), "when reads site 'head'; expected one"),
        (lambda v: When(0.0 * v, "joy", above=1, layer=0), "is zero at resid"),
        (lambda v: When("joy", "joy", above=1, layer=0), "vectors"),
    ],
)
def test_bad_input_gives_one_clear_error(tiny_llama, make, message):
    with pytest.raises(EmolabError) as error:
        make(tiny.random_vectors(tiny_llama))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_condition_of_another_model_or_site_is_refused(tiny_llama, tiny_gpt2, monkeypatch):
    vectors = tiny.random_vectors(tiny_llama)
    foreign = When(tiny.random_vectors(tiny_gpt2), "joy", above=1.0, layer=0)
    with pytest.raises(EmolabError, match="tiny"):
        as_rows(tiny_llama, Steering(vectors, {"joy": 1.0}, layers=[1], when=foreign))
    steering = Steering(vectors, {"joy": 1.0}, layers=[1], when=When(vectors, "joy", above=1.0, site="attn", layer=0))
    monkeypatch.setattr("emolab.steering.steering.site_layers", lambda model, site: [1, 2])
    with pytest.raises(EmolabError, match=r"has no site 'attn' in layers 0, where when reads; layers 1,2 have it"):
        as_rows(tiny_llama, steering)
