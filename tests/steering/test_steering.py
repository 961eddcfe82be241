"""Steering does exactly what its formula says, where it says, and leaves nothing behind."""

import copy

import pytest
import torch
import transformers

from emolab.answers.generation import generate
from emolab.answers.logprobs import token_logprobs
from emolab.base.errors import EmolabError, MismatchError
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.models.sites import hf_modules, site_hooks
from emolab.steering.edits import hooked
from emolab.steering.steering import Steering, as_rows, build_edits, steered
from emolab.vectors.vectors import EmotionVectors
from tests import tiny
from tests.answers.uncached import uncached
from tests.steering.conftest import QUERIES


def activations(model, batch, steering=None, sites=("resid", "attn", "mlp")):
    names = [n for s in sites for n in site_hooks(model, s)]
    with torch.inference_mode(), steered(model, steering):
        logits, cache = model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask, names_filter=names)
    return logits, cache


def hooks_left(model) -> int:
    bridge = sum(len(p.fwd_hooks) + len(p._forward_hooks) for p in model.bridge.hook_dict.values())
    return bridge + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


@pytest.mark.parametrize("positions", ["generated", "all", slice(1, 4), slice(-2, None), slice(0, None, 2)])
@pytest.mark.parametrize("site", ["resid", "attn", "mlp", "head"])
def test_shifts_one_layer_by_exactly_the_vector_and_no_earlier_one(model, vectors, batch, site, positions):
    layer, point = 1, "attn" if site == "head" else site
    steering = Steering(vectors, {"joy": 1.5, "anger": -0.5}, site=site, layers=[layer], positions=positions)
    before, after = activations(model, batch)[1], activations(model, batch, steering)[1]
    v = 1.5 * vectors.get(site, emotion="joy", layer=layer) - 0.5 * vectors.get(site, emotion="anger", layer=layer)
    v = v.sum(0) if site == "head" else v
    for earlier in range(layer):
        for name in (site_hooks(model, s)[earlier] for s in ("resid", "attn", "mlp")):
            assert torch.equal(before[name], after[name]), name
    name = site_hooks(model, point)[layer]
    expected, where = before[name].clone(), slice(-1, None) if positions == "generated" else positions
    where = slice(None) if positions == "all" else where
    expected[:, where] = expected[:, where] + v
    assert torch.equal(after[name], expected)
    assert not torch.equal(before[site_hooks(model, "resid")[-1]], after[site_hooks(model, "resid")[-1]])


def test_chosen_heads_only(model, vectors, batch):
    steering = Steering(vectors, {"joy": 1.0}, site="head", heads={1: [0, 3]}, positions="all")
    before, after = activations(model, batch)[1], activations(model, batch, steering)[1]
    name, v = site_hooks(model, "attn")[1], vectors.get("head", emotion="joy", layer=1)
    assert torch.equal(after[name], before[name] + (v[0] + v[3]))
    assert torch.equal(after[site_hooks(model, "attn")[0]], before[site_hooks(model, "attn")[0]])


@pytest.mark.parametrize("part", ["whole", "specific", "shared"])
def test_parts_are_those_of_the_vectors(vectors, part):
    emotion = "shared" if part == "shared" else "joy"
    of = {"whole": vectors, "specific": vectors.part("specific"), "shared": vectors.part("shared")}[part]
    for site in ("resid", "head"):
        table = Steering(vectors, {emotion: 2.0}, part=part, site=site, layers=[1]).table()
        v = of.get(site, emotion=emotion)
        torch.testing.assert_close(table[1], 2 * (v.sum(1) if site == "head" else v)[1])
        assert not table[0].any()


def test_zero_dose_changes_nothing(model, vectors, batch):
    before = activations(model, batch)[0]
    for steering in (Steering(vectors, {"joy": 0.0}), Steering(vectors, {"joy": 0.0}, op="ablate"), None, [None] * 3):
        assert torch.equal(before, activations(model, batch, steering)[0])


def test_plus_then_minus_restores(model, vectors, batch):
    before = activations(model, batch)[0]
    with steered(model, Steering(vectors, {"joy": 1.0}, positions="all")):
        after = activations(model, batch, Steering(vectors, {"joy": -1.0}, positions="all"))[0]
        middle = activations(model, batch)[0]
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, middle, atol=1e-2)


def test_relative_dose_has_the_norm_it_names(vectors):
    table = Steering(vectors, {"joy": -0.3}, unit="residual").table()
    torch.testing.assert_close(table.norm(dim=1), 0.3 * vectors.resid_norm)
    v = vectors.get("resid", emotion="joy")
    torch.testing.assert_close(torch.cosine_similarity(table, v), -torch.ones(len(v)))


def test_ablate_of_dependent_vectors_removes_their_span_and_nothing_more(model, vectors, batch):
    """The specific parts of all emotions sum to zero: three vectors, two dimensions."""
    doses = dict.fromkeys(vectors.emotions, 1.0)
    steering = Steering(vectors, doses, part="specific", layers=[1], op="ablate", positions="all")
    name, v = site_hooks(model, "resid")[1], vectors.part("specific").data["resid"][:, 1]
    before, after = activations(model, batch)[1][name], activations(model, batch, steering)[1][name]
    torch.testing.assert_close(after @ v.T, torch.zeros_like(after @ v.T), atol=1e-4, rtol=0)
    removed = torch.linalg.matrix_rank((before - after).flatten(0, 1), atol=1e-3)
    assert removed == 2


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_ablate_removes_the_share_of_the_span(model, vectors, batch, share):
    before = activations(model, batch)[1]
    doses = {"joy": share, "anger": share}
    after = activations(model, batch, Steering(vectors, doses, layers=[1], op="ablate", positions="all"))[1]
    name, v = site_hooks(model, "resid")[1], vectors.data["resid"][[1, 0], 1]
    torch.testing.assert_close(after[name] @ v.T, (1 - share) * (before[name] @ v.T), atol=1e-4, rtol=1e-4)
    rest = before[name] - (before[name] @ torch.linalg.pinv(v)) @ v  # what is orthogonal to both stays
    torch.testing.assert_close(after[name] - (after[name] @ torch.linalg.pinv(v)) @ v, rest, atol=1e-4, rtol=1e-4)


def test_clamp_sets_the_components(model, vectors, batch):
    name, v = site_hooks(model, "resid")[1], vectors.data["resid"][[1, 0], 1]
    unit = v / v.norm(dim=1, keepdim=True)
    one = Steering(vectors, {"joy": 0.7}, layers=[1], op="clamp", positions="all")
    after = activations(model, batch, one)[1][name]
    torch.testing.assert_close(after @ unit[0], (0.7 * v[0].norm()).expand(after.shape[:2]), atol=1e-4, rtol=1e-4)
    both = Steering(vectors, {"joy": 0.7, "anger": -0.2}, layers=[1], op="clamp", unit="residual", positions="all")
    after = activations(model, batch, both)[1][name]
    expected = torch.tensor([0.7, -0.2]) * vectors.resid_norm[1]
    torch.testing.assert_close(after @ unit.T, expected.expand(*after.shape[:2], 2), atol=1e-4, rtol=1e-4)


def test_fade_weighs_every_token_exactly(model, vectors):
    """The t-th token gets 0.5**(t / fade) times the vector, what comes before the last prompt token gets nothing."""
    texts = ["a dog and a cat in the rain", "sun", "we saw the sea and the sun"]
    batch, layer = encode(model, render_prompts(model, QUERIES), texts), model.n_layers - 1
    own = batch.attention_mask.sum(1)
    answer = batch.response_mask.sum(1)
    prompts = list(zip((batch.input_ids.shape[1] - own).tolist(), (own - answer).tolist(), strict=True))
    rows = [Steering(vectors, {"joy": 2.0}, layers=[layer], fade=fade) for fade in (3, None, 0.5)]
    plain, found = last_resid(model, batch, [None], prompts), last_resid(model, batch, rows, prompts)
    v = 2 * vectors.get("resid", emotion="joy", layer=layer)
    for row, fade in enumerate((3, float("inf"), 0.5)):
        first = batch.input_ids.shape[1] - int(answer[row]) - 1  # the last token of the prompt
        assert torch.equal(found[row, :first], plain[row, :first])
        for t in range(int(answer[row]) + 1):
            weight = torch.tensor(0.5 ** (t / fade))
            assert torch.equal(found[row, first + t], plain[row, first + t] + weight * v), (row, t)


@pytest.mark.parametrize("op", ["ablate", "clamp"])
def test_fade_weighs_what_any_op_changes(model, vectors, op):
    batch, layer = encode(model, render_prompts(model, QUERIES[:1]), ["a dog and a cat"]), model.n_layers - 1
    n = int((batch.attention_mask.sum() - batch.response_mask.sum()).item())
    plain, full, faded = (
        last_resid(model, batch, [s], [(0, n)])[0, n - 1 :]
        for s in (None, *(Steering(vectors, {"joy": 0.7}, op=op, layers=[layer], fade=fade) for fade in (None, 2)))
    )
    weight = 0.5 ** (torch.arange(len(plain)) / 2)[:, None]
    assert len(plain) == 6 and (full - plain).norm(dim=1).min() > 1e-2
    torch.testing.assert_close(faded - plain, weight * (full - plain), atol=1e-5, rtol=1e-4)


def last_resid(model, batch, rows, prompts):
    seen, module = [], hf_modules(model, "resid")[-1][0]
    with torch.inference_mode(), hooked(model, build_edits(model, rows, prompts), plain=True):
        handle = module.register_forward_hook(
            lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        model.hf(batch.input_ids, attention_mask=batch.attention_mask)
        handle.remove()
    return seen[0]


@pytest.mark.parametrize("op", ["add", "ablate", "clamp"])
def test_fading_is_the_same_by_row_batch_cache_and_hook(model, vectors, op):
    def steering(fade):
        return Steering(vectors, {"joy": 1.0}, site="attn", op=op, fade=fade)

    rows, options = [steering(2.0), None, steering(None)], {"max_new_tokens": 16}
    together = generate(model, QUERIES, steering=rows, **options)
    assert together == [generate(model, q, steering=s, **options)[0] for q, s in zip(QUERIES, rows, strict=True)]
    with uncached():
        assert together == generate(model, QUERIES, steering=rows, **options)
    one = generate(model, QUERIES, steering=rows[0], **options)  # one table for all rows
    assert one == [generate(model, q, steering=steering(2.0), **options)[0] for q in QUERIES] and one[0] == together[0]
    users = load_model(model.bridge, tokenizer=model.tokenizer)  # TransformerLens hooks instead of module hooks
    assert together == generate(users, QUERIES, steering=rows, **options)
    assert generate(model, QUERIES, steering=steering(float("inf")), **options) == generate(
        model, QUERIES, steering=steering(None), **options
    )


def test_faded_logprobs_are_between_unsteered_and_steered(model, vectors):
    """The first token is steered in full; the effect on the last is all but gone, if not for what it attends to."""
    prompts, text = render_prompts(model, QUERIES[:1]), ["a dog and a cat in the rain and the sun"]
    kept, gone, plain = (
        token_logprobs(model, prompts, text, steering=s)[0]
        for s in (Steering(vectors, {"joy": 1.0}), Steering(vectors, {"joy": 1.0}, fade=0.3), None)
    )
    assert gone[0] == pytest.approx(kept[0], abs=1e-6) and abs(kept[0] - plain[0]) > 1e-3
    assert abs(gone[1:] - plain[1:]).max() < 0.5 * abs(kept[1:] - plain[1:]).max()


def test_a_list_steers_each_row_by_itself(model, vectors, batch):
    steerings = [
        Steering(vectors, {"joy": 1.0, "anger": 0.5}, op="clamp", layers=[0], positions="all"),
        None,
        Steering(vectors, {"sadness": 2.0}, site="attn", positions=slice(-3, None)),
    ]
    name = site_hooks(model, "resid")[-1]
    together = activations(model, batch, steerings)[1][name]
    for i, steering in enumerate(steerings):
        apart = activations(model, batch, steering)[1][name]
        torch.testing.assert_close(together[i], apart[i], atol=1e-5, rtol=1e-5)
    assert torch.equal(together[1], activations(model, batch)[1][name][1])
    with pytest.raises(EmolabError, match="2 steerings for a batch of 3"):
        activations(model, batch, steerings[::2])


def test_nothing_is_left_behind(model, vectors, batch):
    before, clean = activations(model, batch)[0], hooks_left(model)
    mine = []
    with model.bridge.hooks(fwd_hooks=[("blocks.0.hook_out", lambda x, hook: mine.append(1))]):
        others = hooks_left(model)
        with steered(model, Steering(vectors, {"joy": 1.0})):
            assert hooks_left(model) > others
            model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)
            inside = model(batch.input_ids, attention_mask=batch.attention_mask)
        assert hooks_left(model) == others, "hooks of someone else were removed, or ours were not"
        with pytest.raises(RuntimeError, match="mine"), steered(model, Steering(vectors, {"joy": 1.0})):
            model(batch.input_ids, attention_mask=batch.attention_mask)
            raise RuntimeError("mine")
        assert hooks_left(model) == others and len(mine) == 3
    assert hooks_left(model) == clean and not torch.allclose(inside, before, atol=1e-3)
    assert torch.equal(activations(model, batch)[0], before)


def test_a_hook_that_never_fires_is_an_error(model, vectors, batch):
    last = model.n_layers - 1
    with pytest.raises(EmolabError, match=f"resid of layer {last} ran 0 times"):
        with steered(model, Steering(vectors, {"joy": 1.0}, layers=[0, last])):
            model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask, stop_at_layer=1)
    with steered(model, Steering(vectors, {"joy": 1.0})):
        pass  # the model did not run at all: nothing to complain about


def test_vectors_follow_dtype(tiny_llama_dir):
    half = load_model(tiny_llama_dir, dtype="bfloat16", device="cpu")
    vectors = tiny.random_vectors(half)
    for op in ("add", "ablate"):
        logits, _ = activations(half, encode(half, QUERIES), Steering(vectors, {"joy": 1.0}, op=op))
        assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
        edits = build_edits(half, [Steering(vectors, {"joy": 1.0}, op=op, fade=2)], [(0, 2)])
        assert edits["resid", 0](torch.ones(1, 4, half.d_model).bfloat16()).dtype == torch.bfloat16


def test_vectors_of_another_model_are_refused_with_both_sides_named(tiny_llama, tiny_gpt2):
    foreign = tiny.random_vectors(tiny_gpt2)
    for refused in (
        lambda: foreign.for_model(tiny_llama),
        lambda: as_rows(tiny_llama, Steering(foreign, {"joy": 1.0})),
    ):
        with pytest.raises(MismatchError) as error:
            refused()
        for part in (tiny_gpt2.name, tiny_llama.name, "2 layers", "3 layers", tiny_llama.fingerprint):
            assert part in str(error.value)
    retrained = tiny.random_vectors(tiny_llama)
    retrained.meta = {**retrained.meta, "fingerprint": "0123456789abcdef", "model": "older", "breaking": {"x": {}}}
    own, other = (Steering(v, {"joy": 1.0}) for v in (tiny.random_vectors(tiny_llama), retrained))
    for rows in (other, [other, own], [own, other], [None, other]):  # every one is looked at
        with pytest.raises(
            MismatchError, match=r"(?s)'older'.*0123456789abcdef.*; vectors\.for_model\(model\) uses them"
        ):
            as_rows(tiny_llama, rows)
    bound = retrained.for_model(tiny_llama)
    assert as_rows(tiny_llama, [own, Steering(bound, {"joy": 1.0})]) and torch.equal(bound.get(), retrained.get())
    assert bound.meta["made_on"] == {"model": "older", "fingerprint": "0123456789abcdef"}
    assert "breaking" not in bound.meta
    assert bound.for_model(tiny_llama).meta["made_on"] == bound.meta["made_on"]
    retrained.meta = {**retrained.meta, "fingerprint": ""}  # not known, as in a file of another program
    assert as_rows(tiny_llama, [own, other])


def test_what_tells_emotions_apart_needs_two(tiny_gpt2):
    vectors = tiny.random_vectors(tiny_gpt2)
    pair, one = (
        EmotionVectors({"resid": vectors.get()[:n]}, vectors.emotions[:n], vectors.resid_norm, {}) for n in (2, 1)
    )
    Steering(pair, {pair.emotions[0]: 1.0}, part="specific")
    with pytest.raises(EmolabError, match="these vectors hold only one"):
        Steering(one, {one.emotions[0]: 1.0}, part="specific")


def test_what_vectors_lack(tiny_gpt2):
    vectors = copy.copy(tiny.random_vectors(tiny_gpt2))
    vectors.resid_norm = torch.zeros(2)
    with pytest.raises(EmolabError, match="norm of the residual stream"):
        Steering(vectors, {"joy": 1.0}, unit="residual")
    vectors.data = {"resid": torch.zeros_like(vectors.data["resid"])}
    with pytest.raises(EmolabError, match="a vector is zero"):
        Steering(vectors, {"joy": 1.0}, op="ablate").affine()
    vectors.resid_norm = torch.ones(2)
    with pytest.raises(EmolabError, match="a vector is zero"):
        Steering(vectors, {"joy": 1.0}, unit="residual").affine()
    assert not Steering(vectors, {"joy": 1.0}).affine()[0].any()  # adding nothing is no error


@pytest.mark.parametrize("kind", ["Gemma2", "Granite", "Phi3"])
def test_other_architectures_agree_on_both_paths_and_refuse_heads_where_they_have_no_vector(kind):
    """Norm after attention, attention scaled by the block itself (no plain module to hook), fused matrices."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    extra = {"Gemma2": {"head_dim": 8}, "Granite": {"residual_multiplier": 0.5}, "Phi3": {}}[kind]
    tokens = {"vocab_size": len(tiny.tokenizer()), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes, **tokens, **extra, num_key_value_heads=2)
    ours = load_model((tiny.build(config), tiny.tokenizer()))
    theirs, vectors = load_model(ours.bridge, tokenizer=ours.tokenizer), tiny.random_vectors(ours, scale=0.5)
    assert theirs.fingerprint == ours.fingerprint
    assert (hf_modules(ours, "attn") is None) == (kind == "Granite")
    for site in ("resid", "attn", "mlp"):
        options = {"steering": Steering(vectors, {"joy": 1.0}, site=site), "max_new_tokens": 8}
        assert generate(ours, QUERIES, **options) == generate(theirs, QUERIES, **options), site
    if kind != "Phi3":
        with pytest.raises(EmolabError, match="heads have no vector"):
            generate(ours, QUERIES, steering=Steering(vectors, {"joy": 1.0}, site="head"))
