"""Edits meet the positions that they should, every pass runs every edit once, and what goes wrong ends in one error."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from emolab.answers.generation import generate
from emolab.base.errors import EmolabError
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.steering.edits import AffineEdit, hooked, keep_rows
from emolab.steering.positions import PositionMask
from emolab.steering.steering import Steering, build_edits, steered
from tests import tiny

QUERIES = ["tell me about the park .", "how ?", "was the rain cold today ?"]
CPU = torch.device("cpu")


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def vectors(model):
    return tiny.random_vectors(model)


# --- which positions


@pytest.mark.parametrize(
    ("positions", "expected"),  # of six tokens: two of padding, of which the mask need know nothing, then the row's own
    [
        ("all", None),
        ("generated", [5]),
        (slice(0, 3, 2), [2, 4]),
        (slice(1, None), [3, 4, 5]),
        (slice(-2, None), [4, 5]),
        (slice(-3, -1), [3, 4]),
        (slice(-9, 1), [2]),
        (slice(50, None), []),
    ],
)
def test_a_mask_holds_the_positions_of_each_row(positions, expected):
    prompt = PositionMask([positions, "generated"], [(2, 4), (0, 6)])
    keep = prompt.keep(0, 6, CPU)
    assert keep[1, :, 0].nonzero()[:, 0].tolist() == [5]
    if expected is not None:
        assert keep[0, :, 0].nonzero()[:, 0].tolist() == expected
        # In two calls, as with a cache, it is the same.
        parts = [PositionMask([positions, slice(0, 1)], [(2, 4), (0, 6)]).keep(*call, CPU) for call in ((0, 4), (4, 2))]
        parts = [
            part if torch.is_tensor(part) else torch.full((2, n, 1), part)
            for part, n in zip(parts, (4, 2), strict=True)
        ]
        assert torch.cat(parts, 1)[0, :, 0].nonzero()[:, 0].tolist() == expected
    # Without prompts the tensor's own positions count.
    assert PositionMask(["generated"]).keep(0, 6, CPU)[0, :, 0].nonzero()[:, 0].tolist() == [5]
    assert PositionMask(["all"]).keep(0, 6, CPU) is True and PositionMask([slice(9, None)]).keep(0, 6, CPU) is False


def test_a_mask_fades_from_the_first_edited_position():
    faded = PositionMask(["generated", "generated"], [(0, 2), (1, 4)], cached=True, fade=[2.0, np.inf])
    weight = faded.weight(0, 6, CPU)[..., 0]
    np.testing.assert_allclose(weight, [[1, 1, 0.5**0.5, 0.5, 0.5**1.5, 0.25], [1] * 6], rtol=1e-6)
    np.testing.assert_allclose(faded.weight(6, 1, CPU)[..., 0], [[0.5**2.5], [1]], rtol=1e-6)
    assert PositionMask(["generated"], [(0, 2)], fade=[np.inf]).weight(0, 6, CPU) is None


@pytest.mark.parametrize("op", ["add", "ablate"])
def test_rows_that_go_on_are_edited_as_before(model, vectors, op):
    x = torch.randn(3, 4, model.d_model, generator=torch.Generator().manual_seed(0))
    rows = [Steering(vectors, {"joy": 2.0}, op=op), None, Steering(vectors, {"anger": 1.0}, op=op, positions="all")]
    spans = [(1, 3), (0, 4), (2, 2)]
    whole, edit, left = (build_edits(model, rows, spans, cached=True) for _ in range(3))
    key = ("resid", 1)
    expected = [edit[key](x[:, :3]), edit[key](x[:, 3:])]
    torch.testing.assert_close(torch.cat(expected, 1), whole[key](x))
    keep_rows(left, torch.tensor([0, 2]))
    for part, of in zip(expected, (x[[0, 2], :3], x[[0, 2], 3:]), strict=True):
        assert torch.equal(left[key](of), part[[0, 2]]) and not torch.equal(part[[0, 2]], of)


# --- as often as it should


def test_every_pass_runs_every_edit_once(model, vectors):
    passes, made = [], []
    handle = model.hf.register_forward_pre_hook(lambda module, args: passes.append(1))

    @contextlib.contextmanager
    def watched(model, edits, *, plain):
        made.extend(edits.values())
        with hooked(model, edits, plain=plain) as runner:
            yield runner

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("emolab.answers.generation.hooked", watched)
            generate(model, QUERIES, steering=Steering(vectors, {"joy": 0.1}), max_new_tokens=5)
    finally:
        handle.remove()
    assert len(made) == model.n_layers and {edit.calls for edit in made} == {len(passes)} and len(passes) > 1


def test_a_hook_that_is_taken_off_meanwhile_is_told(model, vectors):
    batch = encode(model, render_prompts(model, QUERIES))
    with pytest.raises(EmolabError, match="resid of layer 0 ran 0 times .*leave the model's hooks alone"):
        with steered(model, Steering(vectors, {"joy": 1.0})):
            model(batch.input_ids, attention_mask=batch.attention_mask)
            model.bridge.reset_hooks()
            model(batch.input_ids, attention_mask=batch.attention_mask)


def test_a_layer_that_runs_twice_is_told(tiny_llama):
    vectors, block = tiny.random_vectors(tiny_llama), tiny_llama.hf.model.layers[1].mlp
    forward = block.forward
    block.forward = lambda x: forward(x) if getattr(block, "inside", False) else twice(x)

    def twice(x):
        block.inside = True
        try:
            return block(block(x))
        finally:
            block.inside = False

    try:
        with pytest.raises(EmolabError, match="mlp of layer 1 ran 3 times in one forward pass, expected once"):
            generate(tiny_llama, QUERIES, steering=Steering(vectors, {"joy": 1.0}, site="mlp"), max_new_tokens=3)
    finally:
        del block.forward


def test_a_pass_that_ends_early_is_not_held_against_the_next(model, vectors):
    """An exception in the middle (memory ran out) that the caller handles: earlier layers ran once more than later."""
    batch = encode(model, render_prompts(model, QUERIES))
    options = {"attention_mask": batch.attention_mask}

    def fail(x, hook):
        raise torch.OutOfMemoryError("in the middle")

    with steered(model, Steering(vectors, {"joy": 1.0})):
        with pytest.raises(torch.OutOfMemoryError), model.bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_in", fail)]):
            model(batch.input_ids, **options)
        after = model(batch.input_ids, **options)
    with steered(model, Steering(vectors, {"joy": 1.0})):
        assert torch.equal(model(batch.input_ids, **options), after)


def test_unsteered_passes_carry_no_hook(model):
    before = len(model.hf._forward_hooks)
    with hooked(model, {}):
        assert len(model.hf._forward_hooks) == before


# --- what it is given and hands on


def test_products_are_taken_in_float32_whatever_the_models_dtype():
    unit = torch.nn.functional.normalize(torch.randn(1, 64, 1, generator=torch.Generator().manual_seed(0)), dim=1)
    x = 10 * torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    edited = AffineEdit(torch.zeros(1, 64), unit, -unit.mT, PositionMask(["all"]))(x)
    assert torch.equal(edited, x - (x.float() @ unit @ unit.mT).bfloat16())


def test_another_shape_is_refused():
    edit = AffineEdit(torch.ones(1, 32), torch.zeros(1, 32, 0), torch.zeros(1, 0, 32), PositionMask(["all"]))
    with pytest.raises(EmolabError, match=r"has shape .*, expected \[row, token, 32\]"):
        edit(torch.zeros(1, 4, 31))


def test_what_is_not_finite_is_told(tiny_llama_dir):
    model = load_model(tiny_llama_dir, dtype="float16", device="cpu")
    steering = Steering(tiny.random_vectors(model), {"joy": 1e6})
    with pytest.raises(
        EmolabError,
        match=r"not finite at resid of layer 0 in float16; use a smaller dose, or load the model in bfloat16",
    ):
        generate(model, QUERIES, steering=steering, max_new_tokens=2)
