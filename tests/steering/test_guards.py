"""The guards of steering: what goes wrong under the hooks ends in one error, and what goes right is not disturbed."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from emolab.answers.generation import generate
from emolab.answers.logprobs import token_logprobs
from emolab.base.errors import EmolabError
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.steering import edits
from emolab.steering.edits import Edit, Window, counted
from emolab.steering.steering import Steering, build_edits, steered
from tests import tiny

QUERIES = ["tell me about the park .", "how ?", "was the rain cold today ?"]


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def vectors(model):
    return tiny.random_vectors(model)


def apply_as(monkeypatch, wrong) -> None:
    """Let every edit hand on `wrong(x, y)` in place of y, before its guard looks."""
    note = Edit._note

    def looked(self, x, y, offset):
        note(self, x, wrong(x, y), offset)

    monkeypatch.setattr(Edit, "_note", looked)


# --- as often as it should


def test_every_pass_runs_every_edit_once(model, vectors):
    passes, steering = [], Steering(vectors, {"joy": 0.1})
    handle = model.hf.register_forward_pre_hook(lambda module, args: passes.append(1))
    made = []
    real = edits.hooked
    try:
        with pytest.MonkeyPatch.context() as patch:

            @contextlib.contextmanager
            def watched(model, found, *, plain):
                made.extend(found.values())
                with real(model, found, plain=plain):
                    yield

            patch.setattr("emolab.answers.generation.hooked", watched)
            generate(model, QUERIES, steering=steering, max_new_tokens=5)
    finally:
        handle.remove()
    assert len(made) == model.n_layers and {edit.calls for edit in made} == {len(passes)} and len(passes) > 1


def test_a_hook_that_is_taken_off_meanwhile_is_told(model, vectors):
    batch = encode(model, render_prompts(model, QUERIES))
    with pytest.raises(EmolabError, match="resid of layer 0, .*never did; .*leave its hooks alone"):
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
    with counted(model.hf, {}) as ran:
        assert len(model.hf._forward_hooks) == before and ran == []


# --- at the right shape


@pytest.mark.parametrize("shape", [(1, 4, 31), (4, 32), (1, 2, 4, 32)])
def test_another_shape_is_refused(tiny_llama, shape):
    edit = next(iter(build_edits(tiny_llama, [Steering(tiny.random_vectors(tiny_llama), {"joy": 1.0})]).values()))
    with pytest.raises(EmolabError, match=r"has shape .*, expected \[row, token, 32\]"):
        edit(torch.zeros(shape))


def test_rows_that_do_not_fit_are_refused(tiny_llama):
    vectors, batch = tiny.random_vectors(tiny_llama), encode(tiny_llama, render_prompts(tiny_llama, QUERIES))
    with pytest.raises(EmolabError, match="2 steerings for a batch of 3"):
        with steered(tiny_llama, [Steering(vectors, {"joy": 1.0}), None]):
            tiny_llama(batch.input_ids, attention_mask=batch.attention_mask)


# --- moved by what was asked

WRONG = {
    "not at all": lambda x, y: x,
    "by half of it": lambda x, y: (x + y) / 2,
    "by a little more": lambda x, y: x + 1.05 * (y - x),
    "in another direction": lambda x, y: x + (y - x).flip(-1),
    "one row only": lambda x, y: torch.cat([y[:1], x[1:]]),
}


@pytest.mark.parametrize("op", ["add", "ablate", "clamp"])
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_step_is_told(tiny_llama, monkeypatch, op, what):
    steering = Steering(tiny.random_vectors(tiny_llama), {"joy": 1.0}, op=op)
    generate(tiny_llama, QUERIES, steering=steering, max_new_tokens=2)
    apply_as(monkeypatch, WRONG[what])
    with pytest.raises(EmolabError, match=r"moved the activation at resid of layer 0 by a step of norm .* asked"):
        generate(tiny_llama, QUERIES, steering=steering, max_new_tokens=2)


def test_a_step_where_none_was_asked_is_told(tiny_llama, monkeypatch):
    """Row 1 is not steered."""
    rows = [Steering(tiny.random_vectors(tiny_llama), {"joy": 1.0}), None, None]
    generate(tiny_llama, QUERIES, steering=rows, max_new_tokens=2)
    apply_as(monkeypatch, lambda x, y: y + 0.1)
    with pytest.raises(EmolabError, match="not steered as asked"):
        generate(tiny_llama, QUERIES, steering=rows, max_new_tokens=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("op", ["add", "ablate", "clamp"])
def test_rounding_is_no_wrong_step(tiny_llama_dir, dtype, op):
    """Small doses and large ones, several dependent vectors, every kind of position, fading, both kinds of hook."""
    model = load_model(tiny_llama_dir, dtype=dtype, device="cpu")
    vectors = tiny.random_vectors(model)
    vectors.data["resid"][1] = vectors.data["resid"][0] * 1.001 + 1e-3  # almost the same vector twice
    users = load_model(model.bridge, tokenizer=model.tokenizer)
    for dose, positions in ((1e-3, "all"), (30.0, slice(1, 9, 2))):
        steering = Steering(vectors, dict.fromkeys(("anger", "joy"), dose), op=op, positions=positions)
        rows = [steering, None, Steering(vectors, {"joy": 0.5}, site="attn", fade=1.5)]
        for one in (model, users):
            generate(one, QUERIES, steering=rows, max_new_tokens=2)
            token_logprobs(one, render_prompts(one, QUERIES), ["a dog"] * 3, steering=steering)


def test_what_is_not_finite_is_told(tiny_llama_dir):
    model = load_model(tiny_llama_dir, dtype="float16", device="cpu")
    steering = Steering(tiny.random_vectors(model), {"joy": 1e6})
    with pytest.raises(EmolabError, match=r"resid of layer 0 is not finite .*float16.*smaller dose"):
        generate(model, QUERIES, steering=steering, max_new_tokens=2)


def test_the_probe_is_the_last_edited_position():
    window = Window([slice(0, 3, 2), "all", "generated", slice(50, None)], [(2, 4), (0, 6), (3, 3), (0, 6)])
    at, weight = window.probe(0, 6, torch.device("cpu"))
    assert at.tolist()[:3] == [4, 5, 5] and weight[:, 0].tolist() == [1, 1, 1, 0]
    keep = window.keep(0, 6, torch.device("cpu"))
    assert all(keep[row, at[row], 0] for row in range(3)) and not keep[3].any()
    faded = Window(["generated"], [(0, 2), (1, 4)], fade=[2.0])
    at, weight = faded.probe(0, 6, torch.device("cpu"))
    expected = faded.weight(0, 6, torch.device("cpu"))
    assert at == 5 and np.allclose(weight, expected[:, 5])


def test_looking_happens_once_a_batch(tiny_llama, monkeypatch):
    looks, note = [], Edit._note
    monkeypatch.setattr(Edit, "_note", lambda self, *a: (looks.append(self), note(self, *a)))
    generate(tiny_llama, QUERIES, steering=Steering(tiny.random_vectors(tiny_llama), {"joy": 0.1}), max_new_tokens=6)
    assert len(looks) == len(set(map(id, looks))) == tiny_llama.n_layers


# --- left clean


@pytest.mark.parametrize("plain", [True, False])
def test_a_hook_that_stays_is_told(tiny_llama, monkeypatch, plain):
    vectors = tiny.random_vectors(tiny_llama)
    steering = Steering(vectors, {"joy": 1.0}, layers=[1])
    handle = torch.utils.hooks.RemovableHandle
    kept, remove = [], handle.remove

    def forget(self):
        kept.append(self)

    with pytest.raises(EmolabError, match="a hook is left on .*load the model again"):
        with pytest.MonkeyPatch.context() as patch:
            if plain:
                patch.setattr(handle, "remove", forget)
                generate(tiny_llama, QUERIES, steering=steering, max_new_tokens=1)
            else:
                with steered(tiny_llama, steering):
                    patch.setattr(handle, "remove", forget)
    for one in kept:
        remove(one)
    generate(tiny_llama, QUERIES, steering=steering, max_new_tokens=1)
