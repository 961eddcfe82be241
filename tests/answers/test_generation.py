"""Generation: the fast path, the cache, padding and batches change nothing but the time."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from emolab.answers import decoding
from emolab.answers.generation import generate
from emolab.answers.logprobs import token_logprobs
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.models import sharing
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.steering.steering import Steering, steered
from tests import tiny
from tests.answers.uncached import uncached
from tests.steering.on_both import tokens_on_both
from tests.steering.test_steering import hooks_left

QUERIES = ["tell me about the park .", "how ?", "a dog and a cat in the rain", "did you feel sad today ?"]
POSITIONS = ["generated", "all", slice(2, 9), slice(-2, None)]


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def vectors(model):
    return tiny.random_vectors(model, scale=0.5)


def test_batched_equals_single(model, vectors):
    for steering in (None, Steering(vectors, {"joy": 1.0})):
        together = generate(model, QUERIES, steering=steering, max_new_tokens=20)
        assert together == [generate(model, q, steering=steering, max_new_tokens=20)[0] for q in QUERIES]
        threes = Writing(batch_size=3)
        assert together == generate(model, QUERIES, steering=steering, max_new_tokens=20, writing=threes)
    assert len(set(together)) > 1 and all(together)


def test_a_prompt_of_many_rows_is_read_once(model, vectors, monkeypatch):
    """A grid's questions stand in every row: the texts are those of each row alone, however many share a prompt."""
    grid = itertools.product(("joy", "anger"), (-2, 3), ("resid", "attn"))
    doses = [None, *(Steering(vectors, {emotion: x}, site=site) for emotion, x, site in grid)]
    rows = [(query, steering) for steering in doses for query in QUERIES]
    read = tiny.passes(model, monkeypatch)
    queries, steerings = map(list, zip(*rows, strict=True))
    together = generate(model, queries, steering=steerings, max_new_tokens=12)
    longest = encode(model, render_prompts(model, QUERIES)).prompt_len
    assert read[:2] == [(len(QUERIES), longest - 1), (len(rows), 1)], "what all rows share, and then one token each"
    read.clear()
    assert together == [generate(model, q, steering=s, max_new_tokens=12)[0] for q, s in rows]
    assert len(set(together)) > 12 and {size for _, size in read} > {1}
    monkeypatch.setattr(sharing, "SHARE_FROM", 10**6)
    assert together == generate(model, queries, steering=steerings, max_new_tokens=12)
    monkeypatch.setattr(sharing, "SHARE_FROM", 1)
    sample = {"steering": steerings, "max_new_tokens": 12, "writing": Writing(temperature=1.0, seed=3)}
    assert generate(model, queries, **sample) == generate(model, queries, **sample) != together


def test_rows_that_have_ended_leave_the_batch(model, vectors, monkeypatch):
    """What each row writes is what it writes alone, with its own steering, window and fading to its own end."""
    kinds = (
        {}, {"op": "clamp"}, {"op": "ablate", "positions": "all"}, {"fade": 3.0}, {"positions": slice(2, None, 2)},
        {"positions": slice(-3, 30)}, {"site": "attn", "fade": 6.0},
    )  # fmt: skip
    steerings = [*(Steering(vectors, {"joy": 1.0}, **kind) for kind in kinds), None]
    rows = list(itertools.product(QUERIES, steerings))
    queries, steerings = map(list, zip(*rows, strict=True))
    options = {"steering": steerings, "max_new_tokens": 24}
    endless = generate(model, queries, **options)
    ends = torch.randperm(model.hf.config.vocab_size, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", [1, *ends[: len(ends) // 7].tolist()])
    read = tiny.passes(model, monkeypatch)
    together = generate(model, queries, **options)
    fewer, sizes = sum(rows for rows, _ in read), list(dict.fromkeys(rows for rows, _ in read))
    assert sizes[0] == len(rows) and len(sizes) > 2 and all(4 * b <= 3 * a for a, b in itertools.pairwise(sizes))
    assert together == [generate(model, q, steering=s, max_new_tokens=24)[0] for q, s in rows]
    assert all(long.startswith(short) for long, short in zip(endless, together, strict=True))
    assert 4 < len({len(text.split()) for text in together}) and together != endless
    read.clear()
    monkeypatch.setattr(decoding, "_MANY", 10**6)
    assert together == generate(model, queries, **options) and fewer < 0.8 * sum(rows for rows, _ in read)
    monkeypatch.undo()
    assert endless == generate(model, queries, **options)


def test_sampled_rows_that_have_ended_leave_the_batch(model, vectors, monkeypatch):
    """A row's words are then other draws of the same chances; one seed gives one text."""
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", list(range(3, model.hf.config.vocab_size, 7)))
    writing = Writing(temperature=1.0, seed=3)
    sample = {"steering": Steering(vectors, {"joy": 1.0}), "max_new_tokens": 24, "writing": writing}
    texts = generate(model, QUERIES * 8, **sample)
    assert texts == generate(model, QUERIES * 8, **sample) and len({len(text.split()) for text in texts}) > 4


def test_a_prompt_is_read_by_every_row_where_others_hook_the_model(tiny_llama):
    """Hooks of a user's own may change rows one by one, in the prompt already."""
    push, shapes = torch.zeros(4, 1, tiny_llama.d_model), []
    push[1:] = torch.randn(3, 1, tiny_llama.d_model, generator=torch.Generator().manual_seed(0))

    def hook(module, args, output):
        shapes.append(output.shape[:2])
        return output + push

    handle = tiny_llama.hf.model.layers[0].register_forward_hook(hook)
    try:
        texts = generate(tiny_llama, [QUERIES[0]] * 4, max_new_tokens=8)
    finally:
        handle.remove()
    assert {rows for rows, _ in shapes} == {4} and shapes[0][1] > 8
    assert texts[0] == generate(tiny_llama, QUERIES[0], max_new_tokens=8)[0] and len(set(texts)) > 1


@pytest.mark.parametrize("positions", POSITIONS[1:])
def test_a_prompt_that_is_steered_is_read_by_every_row(model, vectors, positions):
    steering = [Steering(vectors, {"joy": x}, positions=positions) for x in (1.0, 2.0, 3.0, -1.0)]
    together = generate(model, [QUERIES[0]] * 4, steering=steering, max_new_tokens=12)
    assert together == [generate(model, QUERIES[0], steering=s, max_new_tokens=12)[0] for s in steering]


def test_left_padded_equals_unpadded(model):
    prompts = render_prompts(model, QUERIES)
    batch = encode(model, prompts)
    with torch.inference_mode():
        padded = model(batch.input_ids, attention_mask=batch.attention_mask)[:, -1]
        alone = torch.cat([model(encode(model, [p]).input_ids)[:, -1] for p in prompts])
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("op", ["add", "clamp"])
def test_cached_equals_uncached(model, vectors, positions, op):
    steering = Steering(vectors, {"joy": 1.0}, positions=positions, op=op)
    fast = generate(model, QUERIES, steering=steering, max_new_tokens=16)
    with uncached():
        assert fast == generate(model, QUERIES, steering=steering, max_new_tokens=16)
    assert fast != generate(model, QUERIES, max_new_tokens=16)


@pytest.mark.parametrize("positions", POSITIONS)
def test_plain_hooks_equal_bridge_hooks(model, vectors, positions):
    """Raw hooks on model.hf give the tokens of TransformerLens hooks on the bridge."""
    for site in ("resid", "attn", "mlp", "head"):
        steering = Steering(vectors, {"joy": 1.0, "anger": -0.5}, site=site, positions=positions)
        assert torch.equal(*tokens_on_both(model, QUERIES, steering, max_new_tokens=16)), site


def test_generate_inside_steered_and_on_a_users_bridge(model, vectors):
    steering = Steering(vectors, {"joy": 1.0})
    expected = generate(model, QUERIES, steering=steering, max_new_tokens=16)
    with steered(model, steering):
        assert generate(model, QUERIES, max_new_tokens=16) == expected
    rows = [None, steering, None, steering]
    with steered(model, rows):
        per_row = generate(model, QUERIES, max_new_tokens=16)
    assert per_row == generate(model, QUERIES, steering=rows, max_new_tokens=16)
    users = load_model(model.bridge, tokenizer=model.tokenizer)
    assert generate(users, QUERIES, steering=steering, max_new_tokens=16) == expected


def test_a_transformer_lens_generate_inside_steered(tiny_llama):
    vectors = tiny.random_vectors(tiny_llama, scale=0.5)
    steering, batch = Steering(vectors, {"joy": 1.0}), encode(tiny_llama, render_prompts(tiny_llama, QUERIES[:1]))
    with steered(tiny_llama, steering):
        ids = tiny_llama.generate(
            batch.input_ids, max_new_tokens=12, do_sample=False, verbose=False, eos_token_id=1, return_type="tokens"
        )
    text = tiny_llama.tokenizer.decode(ids[0, batch.prompt_len :], skip_special_tokens=True).strip()
    plain = Writing(repetition_penalty=1)
    assert [text] == generate(tiny_llama, QUERIES[0], steering=steering, max_new_tokens=12, writing=plain)


def test_per_row_steering_equals_separate_runs(model, vectors):
    steerings = [
        Steering(vectors, {"joy": 1.0}),
        None,
        Steering(vectors, {"anger": 1.0, "joy": 1.0}, op="ablate", positions="all"),
        Steering(vectors, {"sadness": 0.5}, site="attn", op="clamp", unit="residual", positions=slice(1, None, 2)),
    ]
    together = generate(model, QUERIES, steering=steerings, max_new_tokens=16)
    apart = [generate(model, q, steering=s, max_new_tokens=16)[0] for q, s in zip(QUERIES, steerings, strict=True)]
    assert together == apart and together[1] == generate(model, QUERIES[1], max_new_tokens=16)[0]
    grid = generate(model, QUERIES[:1] * 4, steering=steerings, max_new_tokens=16)
    assert len(set(grid)) > 1


def test_zero_dose_changes_nothing(model, vectors):
    steering = Steering(vectors, {"joy": 0.0})
    assert generate(model, QUERIES, steering=steering, max_new_tokens=16) == generate(model, QUERIES, max_new_tokens=16)


def test_no_hook_is_left(model, vectors, monkeypatch):
    clean, steering = hooks_left(model), Steering(vectors, {"joy": 1.0})
    generate(model, QUERIES, steering=steering, max_new_tokens=4)
    assert hooks_left(model) == clean
    settings = model.hf.generation_config

    def broken(*args, **kwargs):
        assert hooks_left(model) > clean
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.hf, "generate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(model, QUERIES, steering=steering, max_new_tokens=4)
    assert hooks_left(model) == clean and model.hf.generation_config is settings


def test_a_module_that_never_runs_is_an_error(tiny_llama, monkeypatch):
    steering = Steering(tiny.random_vectors(tiny_llama), {"joy": 1.0})
    lost = (torch.nn.Linear(1, 1), "output")
    monkeypatch.setattr("emolab.models.hooks.hf_modules", lambda model, site, layers: [lost] * len(layers))
    with pytest.raises(EmolabError, match="resid of layer 0 ran 0 times in one forward pass"):
        generate(tiny_llama, QUERIES, steering=steering, max_new_tokens=2)


def test_end_of_answer_ids_are_honoured(tiny_llama):
    """Ids from generation_config, one or several, cut the answer; nothing else of that config counts."""
    model = load_model((tiny.build(tiny.llama_config(eos_token_id=None)), tiny.tokenizer()))
    model.hf.generation_config.eos_token_id = model.tokenizer.eos_token_id = None
    prompts, words = render_prompts(model, QUERIES), {}
    for query, text in zip(QUERIES, generate(model, QUERIES, max_new_tokens=24), strict=True):
        words[query] = text.split()
    assert len(words[QUERIES[0]]) > 8
    for stops in ([words[QUERIES[0]][3]], [words[QUERIES[0]][5], words[QUERIES[2]][2]]):
        ids = [model.tokenizer.convert_tokens_to_ids(w) for w in stops]
        model.hf.generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]
        for query, text in zip(QUERIES, generate(model, prompts, raw=True, max_new_tokens=24), strict=True):
            ends = [i for i, w in enumerate(words[query]) if w in stops]
            assert text.split() == words[query][: min(ends, default=None)]
    model.hf.generation_config.repetition_penalty = 5.0
    assert generate(model, prompts, raw=True, max_new_tokens=24)[-1] == text
    assert model.hf.generation_config.repetition_penalty == 5.0


def test_sampling_reproduces_and_leaves_global_state_alone(model):
    third, fourth = (Writing(temperature=1.5, top_p=0.95, seed=seed) for seed in (3, 4))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = generate(model, QUERIES, writing=third, max_new_tokens=12)
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()
    torch.rand(3)
    assert first == generate(model, QUERIES, writing=third, max_new_tokens=12)
    assert first != generate(model, QUERIES, writing=fourth, max_new_tokens=12)
    batches = generate(model, QUERIES[:1] * 4, writing=replace(third, batch_size=2), max_new_tokens=12)
    assert batches[:2] != batches[2:], "two batches drew the same numbers"


def test_order_and_raw(tiny_llama):
    one = [generate(tiny_llama, q, max_new_tokens=8)[0] for q in QUERIES]
    assert generate(tiny_llama, QUERIES[::-1], max_new_tokens=8, writing=Writing(batch_size=1)) == one[::-1]
    assert generate(tiny_llama, render_prompts(tiny_llama, QUERIES), raw=True, max_new_tokens=8) == one


def test_vectors_of_another_model_are_used_when_said_by_hand(model):
    foreign = tiny.random_vectors(model)
    foreign.meta = {**foreign.meta, "fingerprint": "f" * 16}
    with pytest.raises(EmolabError, match="another model"):
        generate(model, QUERIES, steering=Steering(foreign, {"joy": 1.0}))
    generate(model, QUERIES[1], steering=Steering(foreign.for_model(model), {"joy": 1.0}), max_new_tokens=1)


def test_token_logprobs(model, vectors):
    prompts, texts = render_prompts(model, QUERIES), ["it was quiet .", "sun", "", "we saw the sea and the sun"]
    found = token_logprobs(model, prompts, texts)
    for prompt, text, values in zip(prompts, texts, found, strict=True):
        ids = encode(model, [prompt], [text])
        n = int(ids.response_mask.sum())
        logp = model.hf(ids.input_ids).logits.log_softmax(-1)[0]
        where = range(ids.input_ids.shape[1] - n, ids.input_ids.shape[1])
        expected = [logp[i - 1, ids.input_ids[0, i]].item() for i in where]
        np.testing.assert_allclose(values, expected, atol=1e-5)
    for a, b in zip(found, token_logprobs(model, prompts, texts, batch_size=1), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_token_logprobs_sees_steering(model, vectors):
    """Greedy steered text is, under the same steering, token by token the likeliest: the positions agree."""
    steering = Steering(vectors, {"joy": 1.0})
    prompts, text = render_prompts(model, QUERIES), generate(model, QUERIES, steering=steering, max_new_tokens=6)
    with_it, without = (token_logprobs(model, prompts, text, steering=s) for s in (steering, None))
    by_row = token_logprobs(model, prompts, text, steering=[steering, None, steering, None])
    for i in range(4):
        assert not np.allclose(with_it[i], without[i])
        np.testing.assert_allclose(by_row[i], (without if i % 2 else with_it)[i], atol=1e-5)
    everywhere = Steering(vectors, {"joy": 1.0}, positions="all")
    with steered(model, everywhere):
        inside = token_logprobs(model, prompts, text)
    for a, b in zip(inside, token_logprobs(model, prompts, text, steering=everywhere), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_token_logprobs_of_a_text_at_the_very_start(tiny_gpt2):
    long, short, beside = token_logprobs(
        tiny_gpt2, ["", "", "a dog"], ["tell me about", "sun", "and a cat in the rain"]
    )
    assert np.isnan(long[0]) and np.isfinite(long[1:]).all() and len(long) == 3
    assert np.isnan(short).tolist() == [True] and np.isfinite(beside).all()
    [alone] = token_logprobs(tiny_gpt2, [""], ["tell me about"])
    np.testing.assert_allclose(alone[1:], long[1:], atol=1e-5)
    assert np.isnan(alone[0]) and len(alone) == 3
