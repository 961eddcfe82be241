import json

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from transformers import Gemma2Config, GraniteConfig, Olmo2Config

from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError, MismatchError
from emolab.base.labels import NEUTRAL_QUERY
from emolab.base.storage import digest
from emolab.models.load import load_model
from emolab.models.prompts import render_prompts
from emolab.models.sites import output_weights
from emolab.steering.steering import Steering, steered
from emolab.vectors import activations, reading
from emolab.vectors.activations import ResponseMeans, response_means
from emolab.vectors.corpus import corpus_hash
from emolab.vectors.reading import check_parts
from emolab.vectors.vectors import extract_vectors
from tests import made_means, tiny

TEXTS = {
    "neutral": ["a road .", "the cat and the dog saw a house today ."],
    "joy": ["happy !", "it was a bright and warm walk in the park , so good !", "she was glad"],
}


def answers(model, prompts=("<bos>tell me about the park", "<bos>rain")):
    """Responses behind prompts of unequal length, so that every batch is padded."""
    table = responses_from_texts(TEXTS)
    if not model.start_ids:
        prompts = [prompt.removeprefix("<bos>") for prompt in prompts]
    return table.assign(prompt=[prompts[i % 2] for i in range(len(table))])


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def model(request):
    return request.getfixturevalue(request.param)


def alone(model, prompt, text):
    """Hidden states of the text's own tokens, from plain Hugging Face: one row, no padding. [layer, token, d_model]"""
    before = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    own = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        states = model.hf(torch.tensor([before + own]), output_hidden_states=True).hidden_states
    # states[0] is the embedding, the last stands behind the final norm: what is left are the layers but the last.
    return torch.stack(states[1:-1])[:, 0, len(before) :].double()


def test_means_are_those_of_each_response_alone_without_padding(model):
    responses = answers(model)
    means = response_means(model, responses)
    for row, response in enumerate(responses.itertuples()):
        states = alone(model, response.prompt, response.text)
        np.testing.assert_allclose(means.means["resid"][row, :-1], states.mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(means.resid_norm[row, :-1], states.norm(dim=-1).mean(1), rtol=1e-5)
        assert means.index["n_tokens"][row] == states.shape[1]
    assert list(means.index["condition"]) == list(responses["condition"])
    for site in means.sites:
        singly = response_means(model, responses, batch_size=1)
        # Each row in a batch of its own is rounded otherwise at every layer; 2e-5 was seen under other kernels.
        np.testing.assert_allclose(means.means[site], singly.means[site], rtol=1e-4, atol=1e-4)


def test_position_0_does_not_count(model):
    """Bare texts: BOS stands there where the model uses one, else the text's own first token."""
    responses = responses_from_texts(TEXTS, query=None)
    means = response_means(model, responses, sites=("resid",))
    for row, text in enumerate(responses["text"]):
        states = alone(model, "<bos>", text) if model.start_ids else alone(model, "", text)[:, 1:]
        np.testing.assert_allclose(means.means["resid"][row, :-1], states.mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(means.resid_norm[row, :-1], states.norm(dim=-1).mean(1), rtol=1e-5)
        assert means.index["n_tokens"][row] == states.shape[1]


def test_texts_without_a_prompt_are_read_behind_a_neutral_one(model):
    """Where the model has a chat template; the others read them bare."""
    for query in (NEUTRAL_QUERY, "tell me about the park"):
        responses = responses_from_texts(TEXTS, query=query)
        means = response_means(model, responses)
        chat = bool(model.tokenizer.chat_template)
        prompt = render_prompts(model, [query])[0] if chat else ""
        told = response_means(model, responses.assign(prompt=prompt))
        assert all(np.array_equal(means.means[site], told.means[site]) for site in means.sites)
        assert means.meta["read_behind"] == (query if chat else "nothing") and "read_behind" not in told.meta
        other = responses_from_texts(TEXTS, query="rain")
        assert len({corpus_hash(x) for x in (responses, other, responses.assign(prompt=prompt))}) == 3


def test_prompts_that_only_some_rows_hold_are_refused(tiny_llama):
    some = answers(tiny_llama)
    some.loc[[1, 3], "prompt"] = None
    with pytest.raises(EmolabError, match="'prompt' hold nan at place 1"):
        response_means(tiny_llama, some)


def test_resid_is_the_stream_that_the_block_adds_to(model):
    means = response_means(model, answers(model)).means
    step = means["resid"][:, 1:] - means["resid"][:, :-1]
    np.testing.assert_allclose(step, (means["attn"] + means["mlp"])[:, 1:], rtol=1e-4, atol=1e-5)


def small(config_class, **changes):
    fields = tiny.llama_config().to_dict()
    keys = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
    )
    config = config_class(**{key: fields[key] for key in keys}, head_dim=8, **changes)
    return load_model((tiny.build(config), tiny.tokenizer()))


def of_kind(kind, request):
    """Gemma 2 and OLMo 2 norm what attention gives, Granite scales it."""
    builders = {
        "gemma2": lambda: small(Gemma2Config),
        "olmo2": lambda: small(Olmo2Config),
        "granite": lambda: small(GraniteConfig, residual_multiplier=0.3),
    }
    return builders[kind]() if kind in builders else request.getfixturevalue(f"tiny_{kind}")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "olmo2", "granite"])
def test_heads_of_a_layer_sum_to_attn_minus_its_bias(kind, request):
    model = of_kind(kind, request)
    means = response_means(model, answers(model), sites=("attn", "head"), batch_size=2)
    heads = torch.einsum("rlhd,lhdm->rlm", torch.from_numpy(means.means["head"]).double(), output_weights(model))
    bias = torch.zeros(model.n_layers, model.d_model)
    if kind == "gpt2":
        bias = torch.stack([block.attn.c_proj.bias for block in model.hf.transformer.h])
        assert bias.norm() > 1
    attn = torch.from_numpy(means.means["attn"]).double()
    assert ((heads + bias - attn).norm() / attn.norm()).item() < 1e-5


def test_heads_that_do_not_add_up_are_refused(tiny_llama, monkeypatch):
    weights = 1.01 * output_weights(tiny_llama)
    monkeypatch.setattr("emolab.vectors.reading.output_weight", lambda model, layer, dtype: weights[layer].to(dtype))
    with pytest.raises(EmolabError, match="heads of layer 0 do not add up .* LlamaForCausalLM"):
        response_means(tiny_llama, answers(tiny_llama))


def test_heads_of_small_activations_are_checked_as_those_of_large_ones(tiny_llama):
    means = response_means(tiny_llama, answers(tiny_llama))
    for scale in (1e-5, 1.0, 1e5):
        z, attn = np.float32(scale) * means.means["head"], np.float32(scale) * means.means["attn"]
        check_parts(tiny_llama, "head", z, attn)
        for misread in (1.01 * z, z[:, :, ::-1]):
            with pytest.raises(EmolabError, match="do not add up"):
                check_parts(tiny_llama, "head", np.ascontiguousarray(misread), attn)


def test_half_precision_passes_the_check_of_heads_and_misread_ones_do_not(tiny_llama_dir):
    model = load_model(tiny_llama_dir, device="cpu", dtype="bfloat16")
    means = response_means(model, answers(model))
    assert means.meta["dtype"] == "bfloat16" and means.means["resid"].dtype == np.float32
    with pytest.raises(EmolabError, match="do not add up"):
        check_parts(model, "head", 1.2 * means.means["head"], means.means["attn"])


def test_what_does_not_count_may_be_infinite(tiny_llama, monkeypatch):
    """Some models give padding or the first token huge values, which overflow in half precision."""
    plain, batches, own = response_means(tiny_llama, answers(tiny_llama)), [], reading.encode
    monkeypatch.setattr(reading, "encode", lambda *args: batches.append(own(*args)) or batches[-1])

    def overflow(module, args, output):
        whole = output[0] if isinstance(output, tuple) else output
        whole[~batches[-1].response_mask.bool()] = float("inf")

    handle = tiny_llama.hf.model.layers[-1].register_forward_hook(overflow)  # the last: no later token reads it
    try:
        means = response_means(tiny_llama, answers(tiny_llama))
    finally:
        handle.remove()
    assert len(batches) == 1 and all(np.array_equal(means.means[site], plain.means[site]) for site in plain.sites)
    assert np.array_equal(means.resid_norm, plain.resid_norm)


def test_sums_are_taken_in_float64(tiny_llama):
    """Of large numbers that cancel, float32 would leave the rounding."""
    text, seen = TEXTS["neutral"][1], []
    n = len(tiny_llama.tokenizer(text, add_special_tokens=False)["input_ids"])

    def enlarge(module, args, output):
        whole = output[0] if isinstance(output, tuple) else output
        whole[:, ::2] += 1e7
        whole[:, 1::2] -= 1e7
        seen.append(whole.double())

    handle = tiny_llama.hf.model.layers[-1].register_forward_hook(enlarge)
    try:
        found = reading.batch_means(tiny_llama, ["<bos>tell me"], [text], [np.ones(n, bool)], {"resid"}, {})["resid"]
    finally:
        handle.remove()
    assert n % 2 == 0 and seen[0].abs().min() > 9e6
    np.testing.assert_allclose(found[0, -1], seen[0][0, -n:].mean(0), atol=1e-3)


def test_save_and_load_are_bit_equal(tiny_llama, tmp_path):
    means = response_means(tiny_llama, answers(tiny_llama), out=tmp_path)
    loaded = ResponseMeans.load(tmp_path / "response_means.safetensors")
    assert loaded.sites == means.sites == ("resid", "attn", "mlp", "head")
    assert all(np.array_equal(loaded.means[site], means.means[site]) for site in means.sites)
    assert np.array_equal(loaded.resid_norm, means.resid_norm)
    assert_frame_equal(loaded.index, means.index)
    assert json.dumps(loaded.meta, sort_keys=True) == json.dumps(means.meta, sort_keys=True)
    assert loaded.meta["fingerprint"] == tiny_llama.fingerprint and loaded.meta["compat"] is False


def test_an_index_of_digits_stays_text(tiny_llama, tmp_path):
    told = answers(tiny_llama).assign(query_id=["007", "7", "1e3", "2020-01-01", "nan"])
    response_means(tiny_llama, told, sites=("resid",), out=tmp_path)
    loaded = ResponseMeans.load(tmp_path / "response_means.safetensors").index
    assert loaded["query_id"].tolist() == told["query_id"].tolist() and loaded["query_id"].dtype == "str"


def test_select_keeps_rows_together(tiny_llama):
    means = response_means(tiny_llama, answers(tiny_llama), sites=("resid",))
    joy = means.select((means.index["condition"] == "joy").to_numpy())
    assert len(joy) == 3 and set(joy.index["condition"]) == {"joy"}
    picked = means.select([4, 0])
    assert np.array_equal(picked.means["resid"], means.means["resid"][[4, 0]])
    assert np.array_equal(picked.resid_norm, means.resid_norm[[4, 0]])
    assert_frame_equal(picked.index, means.index.iloc[[4, 0]].reset_index(drop=True))
    assert len(means.select([])) == 0 and len(means.select([-5, 4])) == 2
    for rows in ([5], [-6], [0.0], [[0]], [True]):
        with pytest.raises(EmolabError, match="expected positions below 5, or 5 times True or False"):
            means.select(rows)


def test_empty_texts_are_left_out_with_a_warning(tiny_llama):
    with pytest.warns(UserWarning, match="2 of 8 responses hold no token"):
        means = response_means(tiny_llama, responses_from_texts({**TEXTS, "fear": ["", "dark", " "]}), sites=("resid",))
    assert list(means.index["condition"]).count("fear") == 1 and len(means) == 6
    with pytest.raises(EmolabError, match="no text under fear"):
        response_means(tiny_llama, responses_from_texts({**TEXTS, "fear": [""]}))


def test_activations_that_are_not_finite_are_refused(tiny_llama_dir):
    model = load_model(tiny_llama_dir, device="cpu")
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(EmolabError, match="not finite at resid from layer 1 on in float32; its weights"):
        response_means(model, answers(model), sites=("resid",))


def on_bridge(model, responses, **options):
    """Means off the bridge: somebody else's hook, which only looks on, sends them there."""
    with model.bridge.hooks(fwd_hooks=[("blocks.0.hook_in", lambda x, hook: None)]):
        return response_means(model, responses, **options)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "olmo2", "granite"])
def test_plain_model_and_bridge_give_the_same_means(kind, request):
    model = of_kind(kind, request)
    plain, lens = response_means(model, answers(model)), on_bridge(model, answers(model))
    kinds = "eager" if kind == "granite" else model.hf.config._attn_implementation
    assert (plain.meta["attention"], lens.meta["attention"]) == (kinds, "eager")
    for site in plain.sites:
        np.testing.assert_allclose(plain.means[site], lens.means[site], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain.resid_norm, lens.resid_norm, rtol=1e-5)


def test_a_users_bridge_is_read_itself(tiny_llama, tiny_llama_dir):
    users = load_model(load_model(tiny_llama_dir, device="cpu").bridge, tokenizer=tiny_llama.tokenizer)
    theirs = response_means(users, answers(users))
    assert theirs.meta["attention"] == "eager"
    ours = on_bridge(tiny_llama, answers(tiny_llama))
    assert all(np.array_equal(theirs.means[site], ours.means[site]) for site in ours.sites)


def test_means_inside_steered_are_those_of_the_steered_model(tiny_llama):
    plain = on_bridge(tiny_llama, answers(tiny_llama), sites=("resid",))
    vectors = extract_vectors(tiny_llama, None, sites=("resid",), means=plain)
    with steered(tiny_llama, Steering(vectors, {"joy": 2.0}, layers=[1], positions="all")):
        moved = response_means(tiny_llama, answers(tiny_llama), sites=("resid",))
    shift = moved.means["resid"] - plain.means["resid"]
    assert not shift[:, 0].any()
    np.testing.assert_allclose(
        shift[:, 1], 2 * vectors.get("resid", emotion="joy", layer=1).expand(len(plain), -1), rtol=1e-4, atol=1e-5
    )
    assert np.abs(shift[:, 2]).max() > 0.01


def test_leaves_no_hook_behind(tiny_llama, monkeypatch):
    def hooks():
        own = [name for name, point in tiny_llama.bridge.hook_dict.items() if point.fwd_hooks]
        return own, [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny_llama.hf.modules()]

    before = hooks()
    response_means(tiny_llama, answers(tiny_llama))
    on_bridge(tiny_llama, answers(tiny_llama))
    assert hooks() == before and before[0] == []
    monkeypatch.setattr("emolab.vectors.reading.read_at_sites", lambda *args, **options: 1 / 0)
    for read in (response_means, on_bridge):
        with pytest.raises(ZeroDivisionError):
            read(tiny_llama, answers(tiny_llama))
        assert hooks() == before


def test_the_hash_of_the_templates_is_that_of_the_wording_around_the_queries(tiny_llama):
    def found(prompts, queries):
        table = answers(tiny_llama).head(2).assign(prompt=prompts, query=queries)
        return response_means(tiny_llama, table, sites=("resid",)).meta["template_hash"]

    told = found(["<bos>tell me about rain", "<bos>tell me about park"], ["rain", "park"])
    assert told == found(["<bos>tell me about sea", "<bos>tell me about dog"], ["sea", "dog"])
    assert told == digest(["<bos>tell me about {query}"])
    assert told != found(["<bos>rain", "<bos>tell me about park"], ["rain", "park"])
    assert found(["<bos>rain", "<bos>park"], ["", ""]) == digest(["<bos>park", "<bos>rain"])


def test_responses_of_another_model_are_refused(tiny_llama):
    ours, theirs = answers(tiny_llama), answers(tiny_llama)
    ours.attrs["emolab"] = {"model": tiny_llama.name, "fingerprint": tiny_llama.fingerprint}
    response_means(tiny_llama, ours, sites=("resid",))
    theirs.attrs["emolab"] = {"model": "other", "fingerprint": "0123"}
    with pytest.raises(MismatchError, match="these responses are of 'other' \\(0123\\)"):
        response_means(tiny_llama, theirs, sites=("resid",))


def test_a_bare_table_of_texts_and_conditions_is_enough(tiny_llama):
    bare = answers(tiny_llama)[["condition", "text"]].set_index(pd.Index([9, 7, 5, 3, 1]))
    means = response_means(tiny_llama, bare, sites=("resid",))
    full = answers(tiny_llama).assign(
        query_id=[f"r-000{i}" for i in range(1, 6)], query="", prompt=None, emotion=bare["condition"].tolist()
    )
    told = response_means(tiny_llama, full, sites=("resid",))
    assert_frame_equal(means.index, told.index)
    assert means.index["query_id"].tolist() == ["r-0001", "r-0002", "r-0003", "r-0004", "r-0005"]
    assert means.index.columns.tolist() == ["query_id", "emotion", "condition", "n_tokens"]
    assert np.array_equal(means.means["resid"], told.means["resid"]) and means.meta == told.meta


@pytest.mark.parametrize("column", ["text", "condition", "prompt", "query"])
def test_a_column_that_holds_no_texts_is_refused(tiny_llama, column):
    table = answers(tiny_llama).astype({column: object})
    table.loc[3, column] = float("nan")
    with pytest.raises(EmolabError, match=f"responses' column '{column}' hold nan at place 3"):
        response_means(tiny_llama, table)
    with pytest.raises(EmolabError, match="'condition' hold ' ' at place 3; expected texts with words"):
        response_means(tiny_llama, answers(tiny_llama).assign(condition=["neutral", "neutral", "joy", " ", "joy"]))


def test_each_site_alone_is_that_of_all(tiny_llama):
    whole = response_means(tiny_llama, answers(tiny_llama))
    for site in whole.sites:
        single = response_means(tiny_llama, answers(tiny_llama), sites=site)
        assert single.sites == (site,) and np.array_equal(single.means[site], whole.means[site])


def test_batches_are_as_large_as_asked_and_the_bar_counts_texts(tiny_llama, monkeypatch, bars):
    sizes = []
    own = reading.batch_means
    monkeypatch.setattr(activations, "batch_means", lambda *a: sizes.append(len(a[2])) or own(*a))
    response_means(tiny_llama, answers(tiny_llama), sites=("resid",), batch_size=2)
    assert sorted(sizes) == [1, 2, 2] and [(bar.desc, sum(bar.moves)) for bar in bars] == [("activations", 5)]
    response_means(tiny_llama, answers(tiny_llama), sites=("resid",))
    assert sizes[3:] == [5]


def test_within_queries_only_how_conditions_differ_is_left():
    """In any order of rows: every query's mean is zero, differences between its answers are as they were."""
    means = made_means.make_means(made_means.orthogonal(5, 3, 8), n_queries=4, topic=9.0, heads=2)
    means = means.select(np.random.default_rng(0).permutation(len(means)))
    within = means.within_queries()
    query = means.index["query_id"]
    for site, values in within.means.items():
        assert values.dtype == np.float32 and values.shape == means.means[site].shape
        for name in query.unique():
            rows = (query == name).to_numpy()
            before, after = means.means[site][rows], values[rows]
            np.testing.assert_allclose(after.mean(0), 0, atol=1e-5)
            np.testing.assert_allclose(after - after[:1], before - before[:1], atol=1e-5)
    assert within.index.equals(means.index) and within.meta == means.meta
