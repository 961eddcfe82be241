"""Changes to heads do exactly what they say, and the measures of their runs are those of single, whole passes."""

from unittest import mock

import numpy as np
import pytest
import torch

from emolab.answers.generation import generate
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError, ResourceError
from emolab.heads import measures, patching
from emolab.heads.measures import READ, JudgedText, PatchRun, WordProbability, answer_z
from emolab.heads.patching import HeadTest
from emolab.heads.rereading import Reading, rereads
from emolab.judges.judges import FunctionJudge
from emolab.models import sharing
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.models.sites import hf_modules, output_weights, site_hooks
from emolab.steering.edits import hooked
from emolab.steering.head_edits import Change, HeadEdit, HeadSpace, ablated
from emolab.steering.positions import PositionMask
from emolab.steering.steering import Steering, steered
from tests import tiny
from tests.heads.conftest import WORDS

QUERIES = ["tell me about the park .", "how did you feel ?", "a dog and a cat in the rain"]
TEXTS = ["the park was quiet .", "i was happy and glad today", "it was"]
TOKENS = {"joy": [10, 11, 12], "anger": [13, 14]}


@pytest.fixture(scope="module")
def vectors(model):
    """Random vectors of which every head's part lies in that head's output space, as real ones do."""
    vectors = tiny.random_vectors(model)
    W_O = output_weights(model)
    z = torch.randn(3, *W_O.shape[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors.data["head"] = torch.einsum("elhd,lhdm->elhm", z, W_O).float()
    return vectors


@pytest.fixture(scope="module")
def space(model, vectors):
    return HeadSpace(model, vectors)


@pytest.fixture(scope="module")
def batch(model):
    return encode(model, QUERIES)


def on_bridge(model):
    """A hook of the user's, so that the bridge runs."""
    return model.bridge.hooks(fwd_hooks=[(site_hooks(model, "resid")[0], lambda x, hook: x)])


def outputs(model, batch, layer=1):
    """What each head writes at a layer: [row, token, head, d_model]."""
    name = site_hooks(model, "head")[layer]
    with torch.inference_mode():
        cache = model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask, names_filter=[name])[1]
    return torch.einsum("bshd,hdm->bshm", cache[name].double(), output_weights(model)[layer])


def unit(vectors, emotion, layer, head):
    return torch.nn.functional.normalize(vectors.get("head", emotion=emotion, layer=layer, head=head).double(), dim=-1)


def test_ablation_takes_one_heads_component_and_leaves_all_else(model, vectors, batch):
    before = outputs(model, batch, 0), outputs(model, batch)
    with ablated(model, vectors, "joy", [(1, 2)]):
        after = outputs(model, batch, 0), outputs(model, batch)
    assert torch.equal(before[0], after[0])
    old, new, u = before[1], after[1], unit(vectors, "joy", 1, 2)
    assert (old[:, :, 2] @ u).abs().min() > 1e-4
    torch.testing.assert_close(new[:, :, 2] @ u, torch.zeros_like(new[:, :, 2, 0]), atol=2e-6, rtol=0)
    torch.testing.assert_close(new[:, :, 2], old[:, :, 2] - (old[:, :, 2] @ u)[..., None] * u, atol=5e-6, rtol=1e-5)
    others = [h for h in range(model.n_heads) if h != 2]
    assert torch.equal(new[:, :, others], old[:, :, others])


def test_a_foreign_vector_loses_its_component_too(model, batch):
    """A vector that no head could write: its component in the head's output is removed all the same."""
    vectors = tiny.random_vectors(model)
    with ablated(model, vectors, "anger", [(0, 1)]):
        new = outputs(model, batch, 0)[:, :, 1] @ unit(vectors, "anger", 0, 1)
    torch.testing.assert_close(new, torch.zeros_like(new), atol=2e-6, rtol=0)


def test_generated_positions_only(model, vectors, batch):
    before = outputs(model, batch)
    with ablated(model, vectors, "joy", [(1, 0)], positions="generated"):
        after = outputs(model, batch)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1, 0], after[:, -1, 0])


@pytest.mark.parametrize("plain", [True, False])
def test_nothing_remains_after_exit_or_an_exception(model, vectors, space, batch, plain):
    def hooks():
        bridge = sum(len(p.fwd_hooks) + len(p._forward_hooks) for p in model.bridge.hook_dict.values())
        return bridge + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())

    before, start = outputs(model, batch), hooks()
    edits = space.edits([Change("ablate", "joy", ((0, 0), (1, 1)))], PositionMask(["all"]))
    context = (lambda: hooked(model, edits)) if plain else (lambda: ablated(model, vectors, "joy", [(0, 0), (1, 1)]))
    with pytest.raises(RuntimeError, match="inside"), context():
        assert hooks() > start
        raise RuntimeError("inside")
    with context():
        pass
    assert hooks() == start and torch.equal(before, outputs(model, batch))


def test_patching_all_heads_of_a_layer_is_patching_attention(model, space):
    """From another prompt in front of the same text, in a batch of several lengths."""
    layer = 1
    plain, told = encode(model, QUERIES, TEXTS), encode(model, ["answer with joy . " + q for q in QUERIES], TEXTS)
    attn, z = site_hooks(model, "attn")[layer], site_hooks(model, "head")[layer]
    answers = [int(mask.sum()) for mask in plain.response_mask]
    lengths = plain.attention_mask.sum(1).tolist()
    prompts = [(plain.input_ids.shape[1] - n, n - k) for n, k in zip(lengths, answers, strict=True)]
    with torch.inference_mode():
        run = {"names_filter": [attn, z]}
        source = model.run_with_cache(told.input_ids, attention_mask=told.attention_mask, **run)[1]
        sources = [source[z][i, -k - 1 :].expand(2, -1, -1, -1) for i, k in enumerate(answers)]
        change = Change("patch", "joy", tuple((layer, h) for h in range(model.n_heads)))
        edits = space.edits([change] * 3, PositionMask(["generated"], prompts), sources)
        with model.bridge.hooks(fwd_hooks=[(z, lambda x, hook: edits["head", layer](x))]):
            got, cache = model.run_with_cache(plain.input_ids, attention_mask=plain.attention_mask, **run)

        def swap(x, hook):
            for i, k in enumerate(answers):
                x[i, -k - 1 :] = source[attn][i, -k - 1 :]
            return x

        with model.bridge.hooks(fwd_hooks=[(attn, swap)]):
            expected = model.bridge(plain.input_ids, attention_mask=plain.attention_mask)
    for i, ((pad, _), k) in enumerate(zip(prompts, answers, strict=True)):
        torch.testing.assert_close(cache[attn][i, -k - 1 :], source[attn][i, -k - 1 :], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(got[i, pad:], expected[i, pad:], atol=2e-5, rtol=1e-4)


def test_steering_a_head_is_steering_with_its_vector(model, vectors, space, batch):
    steering = Steering(vectors, {"joy": 1.5}, site="head", heads={1: [0, 3], 0: [2]}, positions="all")
    edits = space.edits([Change("steer", "joy", ((1, 0), (1, 3), (0, 2)), 1.5)], PositionMask(["all"]))
    mask = batch.attention_mask
    with torch.inference_mode():
        with steered(model, steering):
            expected = model(batch.input_ids, attention_mask=mask)
        with hooked(model, edits) as runner:
            assert runner is model.hf  # the fast one
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            got = runner(input_ids=batch.input_ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(got[:, -1], expected[:, -1], atol=5e-5, rtol=1e-4)


def test_random_directions_have_equal_size(space):
    a, norm = space.direction("joy", seed=3)
    assert torch.equal(norm, space.direction("joy")[1])
    length = torch.einsum("lhd,lhdm->lhm", a, space.W_O).norm(dim=-1)
    torch.testing.assert_close(length, torch.ones_like(length))
    assert not torch.equal(a, space.direction("joy", seed=4)[0])


def some_runs(model, patch=True):
    runs = []
    for i, (query, text) in enumerate(zip(QUERIES, TEXTS, strict=True)):
        neutral, told = render_prompts(model, [query])[0], render_prompts(model, [query], "joy")[0]
        for head in ((0, 1), (1, 2), (1, 3)):
            runs += [
                PatchRun(told, text, "joy"),
                PatchRun(told, text, "joy", Change("ablate", "joy", (head,))),
                PatchRun(told, text, "anger", Change("ablate", "anger", (head, (0, 0)), 1.0, 5 + i)),
                PatchRun(neutral, text, "joy", Change("steer", "joy", (head,), 2.0)),
            ]
            if patch:
                runs += [
                    PatchRun(neutral, text, "joy", Change("patch", "joy", (head,)), told),
                    PatchRun(neutral, text, "joy", Change("patch", "joy", (head,), 1.0, 7), told),
                ]
    return runs


def test_words_are_the_same_in_batches_alone_on_the_bridge_and_in_whole_passes(model, space, monkeypatch):
    """What runs share is read once, and nothing differs; a model that cannot gets whole passes."""
    runs = some_runs(model)
    every = tuple((layer, head) for layer in range(model.n_layers) for head in range(model.n_heads))
    several = Change("ablate", "joy", every[5:]), Change("steer", "joy", every[-2:]), Change("ablate", "joy", every)
    runs += [PatchRun(runs[0].prompt, runs[0].text, "joy", change) for change in several]
    changed = [run for run in runs if run.change]
    measure = WordProbability(TOKENS)
    assert rereads(model, runs[0].prompt, runs[0].text)
    tokens = []
    count = model.hf.get_input_embeddings().register_forward_hook(lambda m, args, y: tokens.append(args[0].numel()))
    values = measure(space, runs)
    count.remove()
    assert len(set(values.round(7))) > len(runs) / 2  # changes do change something
    whole = sum(len(encode(model, [run.prompt], [run.text]).input_ids[0]) for run in runs)
    assert sum(tokens) < whole  # prompts, of which these runs have few in common, are read once
    slopes = measure.slopes(space, changed)

    np.testing.assert_allclose(WordProbability(TOKENS, batch_size=1)(space, runs), values, atol=1e-5)
    with on_bridge(model):
        np.testing.assert_allclose(measure(space, runs), values, atol=1e-5)
        np.testing.assert_allclose(measure.slopes(space, changed), slopes, atol=1e-5)
    monkeypatch.setattr(measures, "rereads", lambda *_: False)
    np.testing.assert_allclose(measure(space, runs), values, atol=1e-5)
    np.testing.assert_allclose(measure.slopes(space, changed), slopes, atol=1e-5)
    assert not any("forward" in vars(module) for module, _ in hf_modules(model, "resid"))


def test_a_skipped_layer_that_comes_back_otherwise_is_not_skipped(model, monkeypatch):
    """A model whose blocks hand something on besides their output would read otherwise: it is tried, and refused."""
    prompt = render_prompts(model, QUERIES[:1])[0]
    monkeypatch.setattr(Reading, "_run", lambda self, runner, rows, own=Reading._run: own(self, runner, rows) * 1.01)
    assert not rereads(model, prompt, TEXTS[0])


def test_batched_texts_are_single_texts(model, space):
    texts = []

    def keep(batch):
        texts.append(list(batch))
        return np.tile([0.2, 0.3, 0.5], (len(batch), 1))

    judge, runs = FunctionJudge(keep, ("anger", "joy", "neutral")), some_runs(model, patch=False)
    p = JudgedText(judge, max_new_tokens=8)(space, runs)
    assert p.tolist() == [0.3 if run.emotion == "joy" else 0.2 for run in runs]
    JudgedText(judge, 8, Writing(batch_size=1))(space, runs)
    with on_bridge(model):
        JudgedText(judge, max_new_tokens=8)(space, runs)
    assert texts[0] == texts[1] == texts[2] and len(set(texts[0])) > 6
    plain = {run.prompt: text for text, run in zip(texts[0], runs, strict=True) if run.change is None}
    assert list(plain.values()) == [generate(model, [p], raw=True, max_new_tokens=8)[0] for p in plain]


def test_texts_of_one_prompt_read_it_once_and_rows_that_ended_take_their_edits_along(model, space, monkeypatch):
    changes = [Change("ablate", "joy", ((layer, head),), 2.0) for layer in range(model.n_layers) for head in (0, 1)]
    prompt = " ".join(QUERIES)
    runs = [PatchRun(prompt, TEXTS[0], "joy", change) for change in changes * 3]
    judge = FunctionJudge(lambda batch: np.full((len(batch), 2), 0.5), ("joy", "neutral"))
    spy = mock.Mock(side_effect=sharing.read_on)
    monkeypatch.setattr(sharing, "read_on", spy)
    JudgedText(judge, max_new_tokens=2)(space, runs)
    read = [tuple(call.args[1].input_ids.shape) for call in spy.call_args_list]
    n_prompt = len(encode(model, [prompt]).input_ids[0])
    assert read.count((1, n_prompt - 1)) == model.n_layers, "heads of one layer are a batch"

    z = torch.randn(len(changes), 3, model.n_heads, model.d_head)
    edits, fewer = (space.edits(changes, PositionMask(["all"])) for _ in range(2))
    rows = torch.tensor([0, len(changes) - 1])
    for place, edit in fewer.items():
        edit.keep_rows(rows)
        torch.testing.assert_close(edit(z[rows]), edits[place](z)[rows], atol=0, rtol=0)


def test_answer_z_is_that_of_the_prompt_alone(model):
    z = answer_z(model, QUERIES, TEXTS[1])
    assert z.shape == (3, model.n_layers, 6 + 1, model.n_heads, model.d_head)
    torch.testing.assert_close(z[1], answer_z(model, QUERIES[1:2], TEXTS[1])[0], atol=1e-5, rtol=1e-4)


def finite_difference(model, run, head, change, step=0.01):
    """Slope of the words' log-probability as a head's z goes along change(z), on the bridge."""
    batch = encode(model, [run.prompt], [run.text])
    n = int(batch.response_mask.sum())
    name, read = site_hooks(model, "head")[head[0]], slice(-n - 1, -1)

    def value(share):
        def hook(z, hook):
            z[0, read, head[1]] += share * change(z[0, read, head[1]].clone())
            return z

        with torch.inference_mode(), model.bridge.hooks(fwd_hooks=[(name, hook)]):
            logits = model.bridge(batch.input_ids, attention_mask=batch.attention_mask)[0, read]
        return logits.double().softmax(-1)[:, TOKENS[run.emotion]].sum(-1).mean().log().item()

    return (value(step) - value(-step)) / (2 * step)


@pytest.mark.parametrize("op", ["patch", "ablate", "steer"])
def test_slopes_are_finite_differences(model, vectors, space, op):
    """Attribution is the derivative of the measure along the very change that the test makes, worked out by hand."""
    every = tuple((layer, head) for layer in range(model.n_layers) for head in range(model.n_heads))
    neutral, told = render_prompts(model, QUERIES[:1])[0], render_prompts(model, QUERIES[:1], "joy")[0]
    runs = [
        PatchRun(neutral, TEXTS[1], e, Change(op, e, every), told if op == "patch" else None) for e in ("joy", "anger")
    ]
    slopes = WordProbability(TOKENS).slopes(space, runs)
    assert slopes.shape == (2, model.n_layers, model.n_heads) and np.abs(slopes).max() > 0.01
    other = answer_z(model, [told], TEXTS[1])[0, :, :-1]  # [layer, token, head, d_head]
    W_O = output_weights(model)
    for i, run in enumerate(runs):
        for layer, head in ((0, 0), (0, 3), (1, 2)):
            own, v = W_O[layer, head], vectors.get("head", emotion=run.emotion, layer=layer, head=head).double()
            z_of_v = torch.linalg.pinv(own.T) @ v  # z that writes the vector
            component = own @ v / v.norm() ** 2
            changes = {
                "patch": lambda z: other[layer, :, head] - z,  # noqa: B023
                "ablate": lambda z: (-(z.double() @ component)[:, None] * z_of_v).float(),  # noqa: B023
                "steer": lambda z: z_of_v.float(),  # noqa: B023
            }
            expected = finite_difference(model, run, (layer, head), changes[op])
            assert slopes[i, layer, head] == pytest.approx(expected, abs=2e-4, rel=0.02), (run.emotion, layer, head)


def test_slopes_whatever_the_user_has_done_to_gradients(model, space):
    measure, runs = WordProbability(TOKENS), [run for run in some_runs(model)[-4:] if run.change]
    expected = measure.slopes(space, runs)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            np.testing.assert_array_equal(measure.slopes(space, runs), expected)
    wanted = [p.requires_grad for p in model.hf.parameters()]
    try:
        model.hf.requires_grad_(True)
        np.testing.assert_allclose(measure.slopes(space, runs), expected, atol=1e-6)
        assert all(p.grad is None for p in model.hf.parameters())
    finally:
        for p, flag in zip(model.hf.parameters(), wanted, strict=True):
            p.requires_grad_(flag)


def test_what_takes_no_gradients_says_so(tiny_llama, monkeypatch):
    space, runs = HeadSpace(tiny_llama, tiny.random_vectors(tiny_llama)), some_runs(tiny_llama)[-2:]

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.raises(ResourceError, match="memory ran out with one text alone"):
        WordProbability(TOKENS).slopes(space, runs)
    with torch.inference_mode():
        space.model = load_model((tiny.build(tiny.llama_config()), tiny.tokenizer()), device="cpu")
    with pytest.raises(EmolabError, match="loaded inside torch.inference_mode"):
        WordProbability(TOKENS).slopes(space, runs)


def test_only_the_beginning_of_an_answer_is_read(planted):
    long = planted.responses.assign(text=planted.responses["text"] + " the cat was in the house" * 20)
    test = HeadTest("patch", words=WORDS, n_queries=3)
    trial = patching.setup(HeadSpace(planted.model, planted.vectors), long, test, 0)
    assert len(trial.queries) == len(trial.others) == 3 and not set(trial.queries) & set(trial.others)
    answers = long[long["condition"] == "neutral"].set_index("query_id")["text"]
    for query in (*trial.queries, *trial.others):
        text = trial.run(query, "joy").text
        assert len(planted.model.tokenizer(text, add_special_tokens=False).input_ids) == READ
        assert answers[query].startswith(text[:40])


def test_edit_refuses_another_batch():
    edit = HeadEdit(2, 1, 4, PositionMask(["all", "all"]))
    with pytest.raises(EmolabError, match="batch of 3"):
        edit(torch.zeros(3, 5, 1, 4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"op": "knock"}, "unknown test 'knock'"),
        ({"op": "patch", "judge": FunctionJudge(len, ("joy",))}, "has no judge"),
        ({"dose": float("nan")}, "dose is nan"),
        ({"n_queries": 0}, "n_queries is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"writing": 0.7}, "writing is 0.7"),
    ],
)
def test_a_test_that_cannot_be_is_refused(given, message):
    with pytest.raises(EmolabError, match=message):
        HeadTest(**given)
