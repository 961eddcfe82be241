"""Changes to heads do exactly what they say; tests of causes find the head that was planted."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from emolab import plot
from emolab.answers.generation import generate
from emolab.base.errors import EmolabError, ResourceError
from emolab.base.stats import sign_flip
from emolab.heads import patching
from emolab.heads.effects import FLIPS, _ranking, ablation_curve, head_effects
from emolab.heads.head_vectors import head_maps, head_summary
from emolab.heads.patching import Job, Judged, Words, answer_z
from emolab.heads.rereading import Reading, rereads
from emolab.judges.judges import FunctionJudge
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.models.sites import hf_modules, output_weights, site_hooks, site_layers
from emolab.steering.edits import Window
from emolab.steering.head_edits import Change, HeadEdit, HeadSpace, ablated, edited, head_edits
from emolab.steering.steering import Steering, steered
from emolab.vectors.activations import response_means
from emolab.vectors.vectors import extract_vectors
from tests import tiny
from tests.planted import HEAD, JOY, LAYER, SAD, planted_model, planted_responses


def hooks_left(model) -> int:
    bridge = sum(len(p.fwd_hooks) + len(p._forward_hooks) for p in model.bridge.hook_dict.values())
    return bridge + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


QUERIES = ["tell me about the park .", "how did you feel ?", "a dog and a cat in the rain"]
TEXTS = ["the park was quiet .", "i was happy and glad today", "it was"]


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2"])
def model(request):
    return request.getfixturevalue(request.param)


def written(vectors_model, seed=0):
    """Random vectors of which every head's part lies in that head's output space, as real ones do."""
    vectors = tiny.random_vectors(vectors_model)
    W_O = output_weights(vectors_model)
    z = torch.randn(3, *W_O.shape[:3], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors.data["head"] = torch.einsum("elhd,lhdm->elhm", z, W_O).float()
    return vectors


@pytest.fixture(scope="module")
def vectors(model):
    return written(model)


@pytest.fixture(scope="module")
def space(model, vectors):
    return HeadSpace(model, vectors)


@pytest.fixture(scope="module")
def batch(model):
    return encode(model, QUERIES)


def cached(model, batch, sites=("head", "attn")):
    names = [n for s in sites for n in site_hooks(model, s)]
    with torch.inference_mode():
        return model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask, names_filter=names)


def outputs(model, cache, layer):
    """[row, token, head, d_model]"""
    z = cache[site_hooks(model, "head")[layer]].double()
    return torch.einsum("bshd,hdm->bshm", z, output_weights(model)[layer])


def test_ablation_takes_one_heads_component_and_leaves_all_else(model, vectors, batch):
    before = cached(model, batch)[1]
    with ablated(model, vectors, "joy", [(1, 2)]):
        after = cached(model, batch)[1]
    assert torch.equal(before[site_hooks(model, "head")[0]], after[site_hooks(model, "head")[0]])
    old, new = outputs(model, before, 1), outputs(model, after, 1)
    u = torch.nn.functional.normalize(vectors.get("head", emotion="joy", layer=1, head=2).double(), dim=-1)
    assert (old[:, :, 2] @ u).abs().min() > 1e-4
    torch.testing.assert_close(new[:, :, 2] @ u, torch.zeros_like(new[:, :, 2, 0]), atol=2e-6, rtol=0)
    torch.testing.assert_close(new[:, :, 2], old[:, :, 2] - (old[:, :, 2] @ u)[..., None] * u, atol=5e-6, rtol=1e-5)
    others = [h for h in range(model.n_heads) if h != 2]
    assert torch.equal(new[:, :, others], old[:, :, others])


def test_a_foreign_vector_loses_its_component_too(model, batch):
    """A vector that no head could write: its component in the head's output is removed all the same."""
    vectors = tiny.random_vectors(model)
    with ablated(model, vectors, "anger", [(0, 1)]):
        new = outputs(model, cached(model, batch)[1], 0)[:, :, 1]
    u = torch.nn.functional.normalize(vectors.get("head", emotion="anger", layer=0, head=1).double(), dim=-1)
    torch.testing.assert_close(new @ u, torch.zeros_like(new[..., 0]), atol=2e-6, rtol=0)


def test_generated_positions_only(model, vectors, batch):
    before = outputs(model, cached(model, batch)[1], 1)
    with ablated(model, vectors, "joy", [(1, 0)], positions="generated"):
        after = outputs(model, cached(model, batch)[1], 1)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1, 0], after[:, -1, 0])


@pytest.mark.parametrize("plain", [True, False])
def test_nothing_remains_after_exit_or_an_exception(model, vectors, space, batch, plain):
    before = cached(model, batch)[0]
    edits = head_edits(space, [Change("ablate", "joy", ((0, 0), (1, 1)))], Window(["all"]))
    start = hooks_left(model)
    context = (lambda: edited(model, edits)) if plain else (lambda: ablated(model, vectors, "joy", [(0, 0), (1, 1)]))
    with pytest.raises(RuntimeError, match="inside"):
        with context():
            assert hooks_left(model) > start
            raise RuntimeError("inside")
    assert hooks_left(model) == start
    with context():
        pass
    assert hooks_left(model) == start
    assert torch.equal(before, cached(model, batch)[0])


def test_patching_all_heads_of_a_layer_is_patching_attention(model, space, batch):
    """From another prompt in front of the same text."""
    told = encode(model, ["answer with joy . " + q for q in QUERIES], TEXTS)
    plain = encode(model, QUERIES, TEXTS)
    layer, n = 1, max(int(m.sum()) for m in plain.response_mask) + 1
    name, z = site_hooks(model, "attn")[layer], site_hooks(model, "head")[layer]
    run = {"names_filter": [name, z]}
    with torch.inference_mode():
        source = model.run_with_cache(told.input_ids, attention_mask=told.attention_mask, **run)[1]
        sources = [
            source[z][i, -int(m.sum()) - 1 :][None].expand(2, -1, -1, -1) for i, m in enumerate(plain.response_mask)
        ]
        own = plain.attention_mask.sum(1)
        prompts = [
            (plain.input_ids.shape[1] - int(o), int(o - m.sum())) for o, m in zip(own, plain.response_mask, strict=True)
        ]
        change = Change("patch", "joy", tuple((layer, h) for h in range(model.n_heads)))
        edits = head_edits(space, [change] * 3, Window(["generated"], prompts), sources)
        with model.bridge.hooks(fwd_hooks=[(z, lambda x, hook: edits[layer](x))]):
            got, cache = model.run_with_cache(plain.input_ids, attention_mask=plain.attention_mask, **run)

        def swap(x, hook):
            for i, (pad, p) in enumerate(prompts):
                k = x.shape[1] - pad - p + 1
                x[i, -k:] = source[name][i, -k:]
            return x

        with model.bridge.hooks(fwd_hooks=[(name, swap)]):
            expected = model.bridge(plain.input_ids, attention_mask=plain.attention_mask)
    assert n > 2
    for i, (pad, p) in enumerate(prompts):
        k = plain.input_ids.shape[1] - pad - p + 1
        torch.testing.assert_close(cache[name][i, -k:], source[name][i, -k:], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(got[i, pad:], expected[i, pad:], atol=2e-5, rtol=1e-4)


def test_steering_a_head_is_steering_with_its_vector(model, vectors, space, batch):
    heads = {1: [0, 3], 0: [2]}
    with (
        torch.inference_mode(),
        steered(model, Steering(vectors, {"joy": 1.5}, site="head", heads=heads, positions="all")),
    ):
        expected = model(batch.input_ids, attention_mask=batch.attention_mask)
    change = Change("steer", "joy", ((1, 0), (1, 3), (0, 2)), 1.5)
    edits = head_edits(space, [change], Window(["all"]))
    mask = batch.attention_mask
    with torch.inference_mode(), edited(model, edits) as runner:
        assert runner is model.hf  # the fast one
        got = runner(
            input_ids=batch.input_ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        ).logits
    torch.testing.assert_close(got[:, -1], expected[:, -1], atol=5e-5, rtol=1e-4)


def test_random_directions_have_equal_size(space):
    _, norm = space.direction("joy")
    a, same = space.direction("joy", seed=3)
    assert torch.equal(norm, same)
    length = torch.einsum("lhd,lhdm->lhm", a, space.W_O).norm(dim=-1)
    torch.testing.assert_close(length, torch.ones_like(length))
    assert not torch.equal(a, space.direction("joy", seed=4)[0])


def some_jobs(model, patch=True):
    jobs = []
    for i, (query, text) in enumerate(zip(QUERIES, TEXTS, strict=True)):
        neutral, told = render_prompts(model, [query])[0], render_prompts(model, [query], "joy")[0]
        for head in ((0, 1), (1, 2), (1, 3)):
            jobs += [
                Job(told, text, "joy"),
                Job(told, text, "joy", Change("ablate", "joy", (head,))),
                Job(told, text, "anger", Change("ablate", "anger", (head, (0, 0)), 1.0, 5 + i)),
                Job(neutral, text, "joy", Change("steer", "joy", (head,), 2.0)),
            ]
            if patch:
                jobs += [
                    Job(neutral, text, "joy", Change("patch", "joy", (head,)), told),
                    Job(neutral, text, "joy", Change("patch", "joy", (head,), 1.0, 7), told),
                ]
    return jobs


def test_batched_words_are_single_words(model, space):
    measure = Words({"joy": [10, 11, 12], "anger": [13, 14]})
    jobs = some_jobs(model)
    together = measure(model, space, jobs)
    single = measure(model, space, jobs, batch_size=1)
    np.testing.assert_allclose(together, single, atol=1e-5)
    assert len(set(together.round(7))) > len(jobs) / 2  # changes do change something


def test_words_on_the_bridge_are_those_of_the_plain_model(model, space):
    measure, jobs = Words({"joy": [10, 11, 12], "anger": [13, 14]}), some_jobs(model)
    plain = measure(model, space, jobs)
    with model.bridge.hooks(fwd_hooks=[(site_hooks(model, "resid")[0], lambda x, hook: x)]):
        np.testing.assert_allclose(measure(model, space, jobs), plain, atol=1e-5)


def test_batched_texts_are_single_texts(model, space):
    texts = []

    def keep(batch):
        texts.append(list(batch))
        return np.tile([0.2, 0.3, 0.5], (len(batch), 1))

    measure = Judged(FunctionJudge(keep, ("anger", "joy", "neutral")), max_new_tokens=8)
    jobs = some_jobs(model, patch=False)
    p = measure(model, space, jobs)
    assert p.tolist() == [0.3 if j.emotion == "joy" else 0.2 for j in jobs]
    measure(model, space, jobs, batch_size=1)
    assert texts[0] == texts[1]
    unchanged = [t for t, j in zip(texts[0], jobs, strict=True) if j.change is None]
    assert unchanged == [t for p in dict.fromkeys(j.prompt for j in jobs if j.change is None)
                         for t in generate(model, [p], raw=True, max_new_tokens=8) * 3]  # fmt: skip
    assert len(set(texts[0])) > 6


def test_answer_z_is_that_of_the_whole_row(model):
    z = answer_z(model, QUERIES, TEXTS)
    alone = answer_z(model, QUERIES[1:2], TEXTS[1:2])[0]
    torch.testing.assert_close(z[1], alone, atol=1e-5, rtol=1e-4)
    assert z[1].shape == (model.n_layers, 6 + 1, model.n_heads, model.d_head)


def finite_difference(model, job, tokens, head, source=None, unit=None, step=0.01):
    """Slope of the words' log-probability as a head's z goes to the other run, or along a vector, on the bridge."""
    batch = encode(model, [job.prompt], [job.text])
    n = int(batch.response_mask.sum())
    name, at = site_hooks(model, "head")[head[0]], slice(-n - 1, -1)

    def value(share):
        def hook(z, hook):
            old = z[0, at, head[1]].clone()
            z[0, at, head[1]] = old + share * (unit(old) if source is None else source[at, head[1]] - old)
            return z

        with torch.inference_mode(), model.bridge.hooks(fwd_hooks=[(name, hook)]):
            logits = model.bridge(batch.input_ids, attention_mask=batch.attention_mask)[0, at]
        return logits.double().softmax(-1)[:, tokens].sum(-1).mean().log().item()

    return (value(step) - value(-step)) / (2 * step)


@pytest.mark.parametrize("test", ["patch", "ablate", "steer"])
def test_slopes_are_finite_differences(model, vectors, space, test):
    """Attribution is the derivative of the measure along the very change that the test makes, worked out by hand."""
    measure = Words({"joy": [10, 11, 12], "anger": [13, 14]})
    every = tuple((layer, head) for layer in range(model.n_layers) for head in range(model.n_heads))
    prompts = render_prompts(model, QUERIES[:1])[0], render_prompts(model, QUERIES[:1], "joy")[0]
    jobs = [Job(prompts[0], TEXTS[1], e, Change(test, e, every), prompts[1] if test == "patch" else None)
            for e in ("joy", "anger")]  # fmt: skip
    slopes = measure.slopes(model, space, jobs)
    assert slopes.shape == (2, model.n_layers, model.n_heads)
    told = encode(model, [prompts[1]], [TEXTS[1]])
    names = site_hooks(model, "head")
    with torch.inference_mode():
        source = model.run_with_cache(told.input_ids, attention_mask=told.attention_mask, names_filter=names)[1]
    W_O = output_weights(model)
    for i, job in enumerate(jobs):
        for layer, head in ((0, 0), (0, 3), (1, 2)):
            own, v = W_O[layer, head], vectors.get("head", emotion=job.emotion, layer=layer, head=head).double()
            z_of_v = torch.linalg.pinv(own.T) @ v  # z that writes the vector
            size = v.norm()
            changes = {
                "steer": lambda z: z_of_v.float(),  # noqa: B023
                "ablate": lambda z: (-(z.double() @ own @ v)[:, None] / size**2 * z_of_v).float(),  # noqa: B023
            }
            other = source[names[layer]][0] if test == "patch" else None
            expected = finite_difference(
                model, job, measure.tokens[job.emotion], (layer, head), other, changes.get(test)
            )
            assert slopes[i, layer, head] == pytest.approx(expected, abs=2e-4, rel=0.02), (test, job.emotion, layer)
    assert np.abs(slopes).max() > 0.01


def test_readings_are_whole_passes(model, space, monkeypatch):
    """What runs share is read once, and nothing differs; a model that cannot gets whole passes."""
    measure, jobs = Words({"joy": [10, 11, 12], "anger": [13, 14]}), some_jobs(model)
    every = tuple((layer, head) for layer in range(model.n_layers) for head in range(model.n_heads))
    several = Change("ablate", "joy", every[5:]), Change("steer", "joy", every[-2:]), Change("ablate", "joy", every)
    jobs += [Job(jobs[0].prompt, jobs[0].text, "joy", change) for change in several]
    assert rereads(model, jobs[0].prompt, jobs[0].text)
    tokens = []
    count = model.hf.get_input_embeddings().register_forward_hook(lambda m, args, y: tokens.append(args[0].numel()))
    found, read = measure(model, space, jobs), sum(tokens)
    count.remove()
    whole = sum(len(encode(model, [job.prompt], [job.text]).input_ids[0]) for job in jobs)
    assert read < whole  # prompts, of which these jobs have few in common, are read once
    slopes = measure.slopes(model, space, jobs)
    monkeypatch.setattr(patching, "rereads", lambda *_: False)
    np.testing.assert_allclose(found, measure(model, space, jobs), atol=1e-5)
    np.testing.assert_allclose(slopes, measure.slopes(model, space, jobs), atol=1e-5)
    for module, _ in hf_modules(model, "resid"):
        assert "forward" not in vars(module)


def test_a_skipped_layer_that_comes_back_otherwise_is_not_skipped(model, monkeypatch):
    """A model whose blocks hand something on besides their output would read otherwise: it is tried, and refused."""
    prompt = render_prompts(model, QUERIES[:1])[0]
    assert rereads(model, prompt, TEXTS[0])
    monkeypatch.setattr(Reading, "_run", lambda self, runner, rows, own=Reading._run: own(self, runner, rows) * 1.01)
    assert not rereads(model, prompt, TEXTS[0])


def test_slopes_whatever_the_user_has_done_to_gradients(model, space):
    measure, jobs = Words({"joy": [10, 11, 12], "anger": [13, 14]}), some_jobs(model)[-4:]
    jobs = [job for job in jobs if job.change]
    expected = measure.slopes(model, space, jobs)
    with torch.no_grad():
        np.testing.assert_array_equal(measure.slopes(model, space, jobs), expected)
    with torch.inference_mode():
        np.testing.assert_array_equal(measure.slopes(model, space, jobs), expected)
    with model.bridge.hooks(fwd_hooks=[(site_hooks(model, "resid")[0], lambda x, hook: x)]):  # on the bridge
        np.testing.assert_allclose(measure.slopes(model, space, jobs), expected, atol=1e-5)
    wanted = [p.requires_grad for p in model.hf.parameters()]
    try:
        model.hf.requires_grad_(True)
        np.testing.assert_allclose(measure.slopes(model, space, jobs), expected, atol=1e-6)
        assert all(p.grad is None for p in model.hf.parameters())
    finally:
        for p, flag in zip(model.hf.parameters(), wanted, strict=True):
            p.requires_grad_(flag)


def test_a_model_without_gradients_says_so(space):
    with torch.inference_mode():
        model = load_model((tiny.build(tiny.llama_config()), tiny.tokenizer()), device="cpu")
    with pytest.raises(EmolabError, match="loaded inside torch.inference_mode"):
        Words({"joy": [10], "anger": [13]}).slopes(model, space, some_jobs(model)[-2:])


def test_one_text_too_long_for_gradients_says_so(model, space, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.raises(ResourceError, match="memory ran out with one text alone"):
        Words({"joy": [10], "anger": [13]}).slopes(model, space, some_jobs(model)[-2:])


# --- a head that was planted ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    model = load_model(planted_model(tmp_path_factory.mktemp("planted")), device="cpu")
    responses = planted_responses(model)
    vectors = extract_vectors(model, responses)
    return model, responses, vectors


WORDS = {"joy": JOY, "sadness": SAD}


@pytest.mark.parametrize("test", ["ablate", "patch", "steer"])
def test_effects_name_the_planted_head(planted, test):
    model, responses, vectors = planted
    table = head_effects(model, vectors, responses, test=test, words=WORDS, n_queries=8)
    assert len(table) == model.n_layers * model.n_heads * 2
    sign = -1 if test == "ablate" else 1
    for emotion, own in table.groupby("emotion"):
        top = own.loc[own["share"].idxmax()]
        assert (top["layer"], top["head"]) == (LAYER, HEAD), emotion
        assert top["q"] < 0.05 and sign * top["lo"] > 0 and sign * top["hi"] > 0
        assert top["share"] > 0.5 and abs(top["random_direction"]) < 0.5 * abs(top["effect"])
        assert abs(top["other_heads"]) < 0.1 * abs(top["effect"])
        rest = own.drop(index=top.name)
        assert (rest["share"].abs() < 0.1).all()
        assert top["direct"] > 0.5 and (rest["direct"].abs() < 0.3).all()
        assert own["attribution"].abs().idxmax() == top.name and sign * top["attribution"] > 0.3
    assert table.attrs["about"]["n"] == "8 queries"


def test_screening_finds_the_planted_head_and_tests_as_many_random_ones(planted):
    model, responses, vectors = planted
    options = {"test": "patch", "words": WORDS, "n_queries": 5}
    table = head_effects(model, vectors, responses, screen=2, **options)
    whole = head_effects(model, vectors, responses, screen=None, **options)
    assert len(table) == len(whole) == model.n_layers * model.n_heads * 2
    assert (whole["screened"] == "none").all() and whole["effect"].notna().all()
    pd.testing.assert_series_equal(table["attribution"], whole["attribution"])
    for emotion, own in table.groupby("emotion"):
        assert own["screened"].value_counts().to_dict() == {"none": 4, "top": 2, "random": 2}
        best = own.loc[own["attribution"].abs().idxmax()]
        assert (best["layer"], best["head"], best["screened"]) == (LAYER, HEAD, "top"), emotion
    tested = table["screened"] != "none"
    measured = ["effect", "lo", "hi", "share"]
    assert table.loc[~tested, [*measured, "random_direction", "other_heads", "p", "q"]].isna().all(axis=None)
    assert (table.loc[~tested, "n"] == 0).all() and (table.loc[tested, "n"] == 5).all()
    pd.testing.assert_frame_equal(table.loc[tested, measured], whole.loc[tested, measured])
    top = table["screened"] == "top"
    assert table.loc[top, ["p", "q", "random_direction"]].notna().all(axis=None)
    assert table.loc[~top, ["p", "q", "random_direction"]].isna().all(axis=None)
    about = table.attrs["screening"]
    assert about["heads"] == 8 and about["tested"] == 4 and about["held_out"]
    assert about["correlation"] > 0.95 and about["lo"] > 0.5 and about["random_effect"] < 0.05 < about["top_effect"]
    again = head_effects(model, vectors, responses, screen=2, **options)
    pd.testing.assert_frame_equal(table, again)
    assert json.loads(json.dumps(about)) == again.attrs["screening"]
    few = head_effects(model, vectors, responses, screen=2, **options | {"n_queries": 8})
    assert not few.attrs["screening"]["held_out"]  # two other queries are too few to choose by
    named = head_effects(model, vectors, responses, heads=[(0, 1), (LAYER, HEAD)], screen=1, **options)
    assert named["effect"].notna().all() and (named["screened"] == "none").all()
    with pytest.raises(EmolabError, match="screen"):
        head_effects(model, vectors, responses, screen=0, **options)


def test_screened_tables_rank_and_draw(planted):
    """Heads that were not tested come behind those that were, by attribution; figures and summary take such tables."""
    model, responses, vectors = planted
    options = {"words": WORDS}
    for test, sign in (("ablate", -1), ("patch", 1)):
        table = head_effects(model, vectors, responses, test=test, n_queries=4, screen=2, **options)
        for emotion, own in table.groupby("emotion"):
            heads = list(_ranking(table, emotion))
            by = own.set_index(["layer", "head"]).loc[heads]
            assert heads[0] == (LAYER, HEAD) and len(heads) == 8
            assert by["share"].notna().tolist() == [True] * 4 + [False] * 4
            assert by["share"][:4].is_monotonic_decreasing and (sign * by["attribution"][4:]).is_monotonic_decreasing
    curve = ablation_curve(model, vectors, responses, ranked=table, n_queries=4, n_random=1, **options)
    assert set(curve["k"]) == {0, 1, 4}
    summary = head_summary(table, curve)
    assert summary["screening"] == table.attrs["screening"]
    json.dumps(summary, allow_nan=False)
    for fig in (plot.head_map(table, "share"), plot.head_map(table, "attribution"), plot.head_forest(table)):
        fig.canvas.draw()
    shown = plot.head_forest(table, top=8).axes[0].get_yticklabels()
    assert len(shown) == 4  # those that were tested
    assert "nan" not in plot.head_map(table, "share").axes[0].get_title()


def test_only_the_beginning_of_an_answer_is_read(planted):
    model, responses, vectors = planted
    long = responses.assign(text=responses["text"] + " the cat was in the house" * 20)
    _, measure, runs = patching.setup(
        model, vectors, long, test="patch", judge=None, words=WORDS, n_queries=3, max_new_tokens=8, seed=0
    )
    for query in (*runs.queries, *runs.others):
        text = runs.job(query, "joy").text
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        assert len(ids) == patching.READ and runs.rows[query, "neutral"][1].startswith(text[:40])


@pytest.fixture(scope="module")
def hybrid():
    """Qwen 3.5 has attention in every fourth layer; the others have none to steer or test."""
    from transformers import Qwen3_5TextConfig

    config = Qwen3_5TextConfig(
        vocab_size=len(tiny.tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
        layer_types=["linear_attention"] * 3 + ["full_attention"], linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="not among"):
        model = load_model((tiny.build(config, seed=3), tiny.tokenizer()), device="cpu")
    responses = planted_responses(model)
    with pytest.warns(UserWarning, match="has no attn, head in layers 0, 1, 2; means and vectors are zero there"):
        vectors = extract_vectors(model, responses)
    return model, responses, vectors


def test_vectors_of_hybrid_models_are_of_the_layers_that_have_attention(hybrid):
    model, responses, vectors = hybrid
    assert site_layers(model, "head") == [3] and site_layers(model, "resid") == [0, 1, 2, 3]
    attn, heads = vectors.get("attn"), vectors.get("head").sum(2)
    assert not attn[:, :3].any() and not heads[:, :3].any() and (attn[:, 3].norm(dim=-1) > 1e-3).all()
    torch.testing.assert_close(heads, attn, atol=1e-5, rtol=1e-4)
    assert (vectors.get("resid").norm(dim=-1) > 1e-3).all()
    with model.bridge.hooks(fwd_hooks=[(site_hooks(model, "resid")[0], lambda x, hook: x)]):
        with pytest.warns(UserWarning, match="has no attn, head in layers"):
            bridged = extract_vectors(model, responses)
    torch.testing.assert_close(bridged.get("head"), vectors.get("head"), atol=1e-5, rtol=1e-3)
    plain = generate(model, QUERIES, max_new_tokens=8)
    for setting in ({"site": "attn"}, {"site": "head", "heads": {3: [0, 2]}}):
        steering = Steering(vectors, {"joy": 4.0}, **setting)
        assert generate(model, QUERIES, steering=steering, max_new_tokens=8) != plain
    with pytest.warns(UserWarning, match="has no attn, head in layers"):
        means = response_means(model, responses)
    maps = head_maps(vectors, means, W_O=output_weights(model), n_splits=3)
    assert set(maps["layer"]) == {3} and maps["probe"].notna().all()


def test_hybrid_models_are_tested_where_they_have_heads(hybrid):
    model, responses, vectors = hybrid
    options = {"words": WORDS, "n_queries": 3}
    for test in ("ablate", "patch", "steer"):
        table = head_effects(model, vectors, responses, test=test, screen=1, **options)
        assert set(table["layer"]) == {3} and len(table) == 8
        assert table["attribution"].notna().all() and table["effect"].notna().sum() == 4
    curve = ablation_curve(model, vectors, responses, ranked=table, ks=[1], n_random=1, **options)
    assert curve["kept"].notna().all()
    with pytest.raises(EmolabError, match="layer 0 of .* has no attention heads; layers 3 have"):
        head_effects(model, vectors, responses, heads=[(0, 1)], **options)


def test_a_model_without_heads_is_refused_before_anything_runs(planted, monkeypatch):
    model, responses, vectors = planted
    names = {name: hook for name, hook in model._hook_names.items() if "attn.o" not in name}
    monkeypatch.setitem(vars(model), "_hook_names", names)
    monkeypatch.setattr(patching, "_run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(EmolabError, match="no layer of .* has a hook point for the site 'head'"):
        head_effects(model, vectors, responses, words=WORDS)


def test_only_one_head_carries_all(planted):
    """Patching the planted head restores the whole gap: it alone carries the instruction."""
    model, responses, vectors = planted
    table = head_effects(model, vectors, responses, test="patch", words=WORDS, heads=[(LAYER, HEAD)])
    assert table["share"].between(0.9, 1.1).all()
    assert table["other_heads"].isna().all()


def test_the_curve_falls_with_the_planted_head_only(planted):
    model, responses, vectors = planted
    ranked = head_effects(model, vectors, responses, words=WORDS, n_queries=10)
    curve = ablation_curve(
        model, vectors, responses, ranked=ranked, words=WORDS, ks=[1, 2], n_queries=8
    )
    kept = curve.set_index(["emotion", "order", "k"])["kept"].sort_index()
    assert set(curve["emotion"]) == {"joy", "sadness", "all"}
    assert (kept.xs(0, level="k") == 1).all()
    for emotion in ("joy", "sadness", "all"):
        assert kept[emotion, "ranked", 1] < 0.5 < 0.9 < kept[emotion, "random_heads", 1]
        assert kept[emotion, "random_direction", 1] > kept[emotion, "ranked", 1] + 0.2
    row = curve.set_index(["emotion", "order", "k"]).loc
    assert row["joy", "ranked", 1]["hi"] < row["joy", "random_heads", 1]["lo"]
    summary = head_summary(ranked, curve)
    assert summary["apart"] == {"joy": [1, 2], "sadness": [1, 2]} and summary["ablation_curve"]["ks"] == [0, 1, 2]
    assert {tuple(row[:2]) for row in summary["top"][:2]} == {(LAYER, HEAD)}
    np.testing.assert_allclose(summary["ablation_curve"]["random_mean"], kept.loc[("all", "random_heads")], atol=1e-4)
    json.dumps(summary)
    assert (curve["lo"] <= curve["kept"] + 1e-9).all() and (curve["kept"] <= curve["hi"] + 1e-9).all()


def test_the_judge_sees_it_too(planted):
    model, responses, vectors = planted

    def count(texts):
        joy = np.array([sum(w in JOY for w in t.split()) / max(1, len(t.split())) for t in texts])
        sad = np.array([sum(w in SAD for w in t.split()) / max(1, len(t.split())) for t in texts])
        return np.stack([joy, sad], 1)

    judge = FunctionJudge(count, ("joy", "sadness"))
    table = head_effects(model, vectors, responses, judge=judge, n_queries=6, max_new_tokens=6)
    for _, own in table.groupby("emotion"):
        top = own.loc[own["effect"].idxmin()]
        assert (top["layer"], top["head"]) == (LAYER, HEAD) and top["effect"] < -0.2
    curve = ablation_curve(
        model, vectors, responses, ranked=table, judge=judge, ks=[1], n_queries=6, max_new_tokens=6, test="steer",
        dose=2.0,
    )  # fmt: skip
    kept = curve[curve["emotion"] == "all"].set_index(["order", "k"])["kept"]
    assert kept["ranked", 0] == 0 and kept["ranked", 1] > 0.5 > kept["random_heads", 1]


def test_same_seed_same_table(planted):
    model, responses, vectors = planted
    make = lambda seed: head_effects(  # noqa: E731
        model, vectors, responses, words=WORDS, n_queries=4, seed=seed, heads=[(0, 0), (1, 1)]
    )
    pd.testing.assert_frame_equal(make(1), make(1))
    assert not make(1)["random_direction"].equals(make(2)["random_direction"])


def test_one_emotion_one_head_one_query(planted):
    model, responses, vectors = planted
    from emolab.vectors.vectors import EmotionVectors

    joy = EmotionVectors({s: x[:1] for s, x in vectors.data.items()}, ("joy",), vectors.resid_norm, vectors.meta)
    table = head_effects(model, joy, responses, words={"joy": JOY}, heads=[(1, 1)], n_queries=1)
    assert len(table) == 1 and table["p"].item() == 1.0  # one query can show nothing


def test_errors_say_what_to_do(planted, tiny_llama):
    model, responses, vectors = planted
    run = {"words": WORDS}
    with pytest.raises(EmolabError, match="unknown test"):
        head_effects(model, vectors, responses, test="delete", **run)
    with pytest.raises(EmolabError, match="no judge"):
        head_effects(model, vectors, responses, test="patch", judge=FunctionJudge(len, ("joy",)))
    with pytest.raises(EmolabError, match="no head 9"):
        head_effects(model, vectors, responses, heads=[(0, 9)], **run)
    with pytest.raises(EmolabError, match="another model"):
        head_effects(tiny_llama, vectors, responses, **run)
    with pytest.raises(EmolabError, match="collect_responses"):
        head_effects(model, vectors, responses.assign(prompt=""), **run)
    with pytest.raises(EmolabError, match="pairing"):
        head_effects(model, vectors, responses[responses["condition"] != "joy"], **run)
    with pytest.raises(EmolabError, match="ranking of sadness is empty"):
        ablation_curve(model, vectors, responses, ranked={"joy": [(0, 0)]}, **run)
    with pytest.raises(EmolabError, match="ks"):
        ablation_curve(model, vectors, responses, ranked={"joy": [(0, 0)], "sadness": [(0, 0)]}, ks=[2], **run)
    with pytest.raises(EmolabError, match="knows no"):
        head_effects(model, vectors, responses, judge=FunctionJudge(len, ("fear",)))
    with pytest.raises(EmolabError, match='no site "head"'):
        HeadSpace(model, extract_vectors(model, responses, sites=("resid",)))


def test_models_with_a_norm_after_attention(tmp_path):
    """Ablating and patching are defined there; a vector to add is not."""
    from transformers import Gemma2Config

    fields = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    fields |= dict(num_key_value_heads=2, vocab_size=len(tiny.tokenizer()), max_position_embeddings=128)
    config = Gemma2Config(**fields, bos_token_id=0, eos_token_id=1, pad_token_id=2, query_pre_attn_scalar=8)
    model = load_model(tiny.save(tmp_path, tiny.build(config), tiny.tokenizer()), device="cpu")
    responses = planted_responses(model)
    vectors = extract_vectors(model, responses)
    for test in ("ablate", "patch"):
        table = head_effects(model, vectors, responses, test=test, words=WORDS, n_queries=2)
        assert np.isfinite(table["effect"]).all() and table["effect"].abs().max() > 0
    with pytest.raises(EmolabError, match="rescales"):
        head_effects(model, vectors, responses, test="steer", words=WORDS)
    batch = encode(model, QUERIES)
    with ablated(model, vectors, "joy", [(1, 2)]):
        after = outputs(model, cached(model, batch, ("head",))[1], 1)[:, :, 2]
    u = torch.nn.functional.normalize(vectors.get("head", emotion="joy", layer=1, head=2).double(), dim=-1)
    torch.testing.assert_close(after @ u, torch.zeros_like(after[..., 0]), atol=1e-5, rtol=0)


def test_edit_refuses_another_batch():
    edit = HeadEdit(2, 1, 4, Window(["all", "all"]))
    with pytest.raises(EmolabError, match="batch of 3"):
        edit(torch.zeros(3, 5, 1, 4))


def test_sign_flips_of_heads_are_exact_and_keep_the_level():
    d = np.array([[1.0, 0.0, 1.0], [1.0, 0.0, -1.0], [1.0, 0.0, 1.0], [1.0, 0.0, -1.0]])
    assert sign_flip(d, n=FLIPS).tolist() == [2 / 16, 1.0, 1.0]
    many = np.random.default_rng(0).normal(2, 1, (40, 3))
    assert (sign_flip(many, n=FLIPS) < 1e-3).all()
    noise = np.random.default_rng(1).normal(0, 1, (12, 400))
    assert 0.02 < (sign_flip(noise, n=FLIPS) < 0.05).mean() < 0.09  # the level holds
